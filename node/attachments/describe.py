"""A picture in words: its size, the text in it, and what it likely shows. Runs in the worker only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from nsllm.node.attachments.attached import Format
from nsllm.node.attachments.images import open_image

if TYPE_CHECKING:
    from nsllm.node.attachments.labels import Label, Labeller
    from nsllm.node.attachments.ocr import Ocr

READ_SIDE: Final = 2_000
"""Larger pictures are scaled down to it: rapidocr's own default."""
TEXT_CHARS: Final = 4_000
"""Of the text in one picture: about a page."""


class Onlooker:
    """Describes pictures; each model is loaded when it is first needed."""

    @cached_property
    def _ocr(self) -> Ocr:
        from nsllm.node.attachments.ocr import Ocr

        return Ocr()

    @cached_property
    def _labeller(self) -> Labeller:
        import torch

        from nsllm.node.attachments.labels import Labeller

        torch.set_num_threads(1)
        return Labeller()

    def describe(self, data: bytes, form: Format) -> str:
        """A picture file in words, several lines.

        Raises:
            ImageError: it cannot be used.
            PinError: a model is not there.
        """
        image = open_image(data, form)
        size = image.size
        image.thumbnail((READ_SIDE, READ_SIDE))
        return words(size, form, self._ocr.read(image), self._labeller.labels(image))


def words(size: tuple[int, int], form: Format, lines: Sequence[str], labels: Sequence[Label]) -> str:
    """The form that a model reads.

    >>> from nsllm.node.attachments.labels import Label
    >>> print(words((640, 480), "PNG", ["EXIT"], [Label("street sign", 87)]))
    640x480 PNG.
    Text in it:
    EXIT
    Likely shows: street sign (87 %).
    """
    said = [f"{size[0]}x{size[1]} {form}."]
    text = "\n".join(lines)
    if len(text) > TEXT_CHARS:
        text = f"{text[:TEXT_CHARS]} … ({len(text) - TEXT_CHARS} more characters)"
    said += ["Text in it:", text] if text else ["No text in it."]
    if labels:
        said.append(f"Likely shows: {', '.join(f'{label.name} ({label.percent} %)' for label in labels)}.")
    return "\n".join(said)
