"""Pictures out of files of strangers: what is decoded, and what is refused before it is."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from nsllm.node.attachments.images import MODEL_SIDE, ImageError, open_image, prepared


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("JPEG", {}), ("WebP", {"lossless": True})])
def test_each_format_is_read(file_of, form, options):
    image = open_image(file_of(Image.new("RGB", (40, 30), (10, 200, 30)), form, **options), form)
    assert (image.size, image.mode) == ((40, 30), "RGB")
    assert all(abs(have - want) < 4 for have, want in zip(image.getpixel((5, 5)), (10, 200, 30), strict=True))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((100_000, 100_000), "beyond"),
        ((8_000, 8_000), "8000x8000"),
        ((16_385, 400), "16,384 a side"),
        ((10_000, 100), "50 times"),
        ((2**31 - 1, 2**31 - 1), "32,000,000|damaged"),
    ],
)
def test_a_bomb_is_refused_by_what_its_header_claims(size, said):
    with pytest.raises(ImageError, match=said):
        open_image(png_that_claims(*size), "PNG")


def test_a_bomb_that_is_compressed_well_is_never_decoded(file_of, monkeypatch):
    data = file_of(Image.new("L", (9_000, 9_000)))
    assert len(data) < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="9000x9000"):
        open_image(data, "PNG")


@pytest.mark.parametrize("form", ["PNG", "WebP"])
def test_an_animated_picture_is_refused(file_of, form):
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 120, 240)]
    data = file_of(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(ImageError, match="animated \\(3 frames\\)"):
        open_image(data, form)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP"])
def test_a_damaged_picture_is_refused(file_of, draw, form):
    data = file_of(draw("hello"), form)
    for cut in (len(data) // 2, 20):
        with pytest.raises(ImageError, match="damaged"):
            open_image(data[:cut], form)
    with pytest.raises(ImageError):
        open_image(b"", form)


def test_another_format_than_the_declared_one_is_refused(file_of):
    with pytest.raises(ImageError, match="no JPEG"):
        open_image(file_of(Image.new("RGB", (9, 9))), "JPEG")


def test_a_picture_is_turned_upright(file_of):
    image = Image.new("RGB", (40, 20), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by 90 degrees
    assert open_image(file_of(image, "JPEG", exif=exif), "JPEG").size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(file_of, mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    image = open_image(file_of(Image.new(mode, (8, 8)), form), form)
    assert image.mode == "RGB"


def test_what_is_transparent_shows_white(file_of):
    image = open_image(file_of(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), "PNG")
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_a_prepared_picture_is_a_png_file_within_its_bounds():
    noise = Image.effect_noise((2_400, 1_800), 90).convert("RGB")
    data = prepared(noise, 600_000)
    assert len(data) <= 600_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert max(image.size) < MODEL_SIDE
        assert abs(image.width / image.height - 4 / 3) < 0.01


def test_a_small_picture_is_prepared_as_it_is(draw):
    image = draw("as it is")
    with Image.open(io.BytesIO(prepared(image, 1 << 20))) as same:
        assert same.tobytes() == image.tobytes()
