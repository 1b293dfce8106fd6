"""Text in pictures, read by PP-OCRv6 (rapidocr on onnxruntime, one thread). Runs in the worker only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from nsllm.node.attachments.attached import PLACE
from nsllm.node.attachments.pins import OCR, pinned

LEAST_SURE: Final = 0.6
"""Text that the model is less sure of is left out: roofs and leaves have letters in them, too."""
LEAST_SIDE: Final = 480
"""Pixels; without a border, 3 of 6 small signs were misread, with it none."""
MAX_BOXES: Final = 300
"""Stretches of text that are read; a dense page has about a hundred lines."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Text that stands in one piece; pixels from the top left."""

    text: str
    left: float
    middle: float
    """Of its height, from the top."""
    height: float


class Ocr:
    """Reads text; loads its models when it is made."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        params: dict[str, Any] = {
            "Global.log_level": "critical",
            "Global.text_score": LEAST_SURE,
            "Det.max_candidates": MAX_BOXES,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        for task, pin in OCR.items():
            params[f"{task}.model_path"] = str(pinned(pin))
        self._engine = RapidOCR(params=params)

    def read(self, image: Image.Image) -> list[str]:
        """The lines of text in a picture, from top to bottom; what stands side by side is one line."""
        result = self._engine(np.asarray(_framed(image))[:, :, ::-1])  # (height, width, 3), blue first
        if not result.txts:
            return []
        stretches = []
        for text, box in zip(result.txts, result.boxes, strict=True):  # box: (4, 2), clockwise from the top left
            top, bottom = float(box[:, 1].min()), float(box[:, 1].max())
            stretches.append(Stretch(text, float(box[:, 0].min()), (top + bottom) / 2, bottom - top))
        return lines(stretches)


def _framed(image: Image.Image) -> Image.Image:
    """With a border where it is small: rapidocr enlarges a small picture until its text is too large to be found."""
    size = (max(image.width, LEAST_SIDE), max(image.height, LEAST_SIDE))
    if size == image.size:
        return image
    frame = Image.new("RGB", size, image.getpixel((0, 0)))
    frame.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return frame


def lines(stretches: Sequence[Stretch]) -> list[str]:
    """Stretches as lines: one belongs to the line above it if it begins no more than half its height lower."""
    rows: list[list[Stretch]] = []
    for one in sorted(stretches, key=lambda one: (one.middle, one.left)):
        if rows and one.middle - rows[-1][0].middle <= min(one.height, rows[-1][0].height) / 2:
            rows[-1].append(one)
        else:
            rows.append([one])
    return ["  ".join(_tame(one.text) for one in sorted(row, key=lambda one: one.left)) for row in rows]


def _tame(text: str) -> str:
    """Without what means something to a chat template or to us: a picture may come from anybody."""
    return " ".join(text.replace(PLACE, "").replace("<|", "< |").replace("|>", "| >").split())
