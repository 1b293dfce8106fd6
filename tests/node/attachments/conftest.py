"""Pictures drawn for a test, as files."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageDraw, ImageFont


def as_file(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def drawn(*rows: str, size=(640, 320)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(rows):
        left, _, right = row.partition("|")
        draw.text((30, 30 + 70 * number), left, fill="black", font=ImageFont.load_default(30))
        draw.text((400, 30 + 70 * number), right, fill="black", font=ImageFont.load_default(30))
    return image


@pytest.fixture
def file_of():
    """A picture as a file of a format."""
    return as_file


@pytest.fixture
def draw():
    """A picture of rows of text; `|` begins a second column."""
    return drawn


@pytest.fixture
def invoice() -> bytes:
    """A PNG file."""
    return as_file(drawn("INVOICE 4711", "Widgets|36.00", "Total due|40.50 EUR"))
