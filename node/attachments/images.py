"""Pictures out of untrusted files: bounded before they are decoded, one frame, upright, RGB. For the worker only."""

from __future__ import annotations

import io
import warnings
from typing import Final

from PIL import Image, ImageOps

from nsllm.node.attachments.attached import Format

MAX_PIXELS: Final = 32_000_000
"""Width times height, as the file's header claims them: 96 MB decoded."""
MAX_SIDE: Final = 16_384
"""Pixels; the largest side of a WebP, by its format."""
MAX_RATIO: Final = 50
"""The longer side over the shorter one: a picture beyond it would be scaled to less than 40 pixels across."""
MODEL_SIDE: Final = 1_536
"""Longest side of what a model gets to see: no vision-language model of these years tiles more."""
SHRINK: Final = 0.75


class ImageError(ValueError):
    """A picture that cannot be used: damaged, or beyond a bound."""


def open_image(data: bytes, form: Format) -> Image.Image:
    """The picture in a file, decoded.

    Raises:
        ImageError: not of this format, damaged, animated, or beyond a bound; says which.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bounds: ours are tighter and come first
        try:
            image = Image.open(io.BytesIO(data), formats=[form.upper()])
        except Image.DecompressionBombError:
            raise ImageError(f"the picture is beyond {MAX_PIXELS:,} pixels") from None
        except Exception:  # noqa: BLE001 - see below
            raise ImageError(f"the file is no {form} picture, or damaged") from None
        _check(image)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - decoders raise whatever they please over damaged files
            raise ImageError(f"the {form} picture is damaged") from None
        return _on_white(upright)


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"the picture is {width}x{height} pixels; the limit is {MAX_PIXELS:,} in all and {MAX_SIDE:,} a side"
        )
    if max(width, height) > MAX_RATIO * max(1, min(width, height)):
        raise ImageError(f"the picture is {width}x{height} pixels: one side is more than {MAX_RATIO} times the other")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"the picture is animated ({frames} frames); send one frame")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, as on paper."""
    if image.mode == "RGB":
        return image
    if image.mode in {"I;16", "I;16B", "I"}:  # 16-bit greys: the upper byte
        image = image.point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        paper.alpha_composite(layer)
        return paper.convert("RGB")
    return image.convert("RGB")


def prepared(image: Image.Image, max_bytes: int) -> bytes:
    """The picture as a PNG file of at most `max_bytes`, scaled down where need be."""
    side = MODEL_SIDE
    while True:
        copy = image.copy()
        copy.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        copy.save(out, "PNG", compress_level=3)
        if out.tell() <= max_bytes or side < 64:
            return out.getvalue()
        side = int(side * SHRINK)
