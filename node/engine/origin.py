"""Where a model of the store came from and under what licence: files beside it for people, no part of its digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

SOURCE: Final = ".nsllm-source.json"
CARD: Final = "README.md"


def write_source(folder: Path, source: str) -> None:
    """Keep where the model came from."""
    (folder / SOURCE).write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")


def read_source(folder: Path) -> str | None:
    """What `write_source` kept; None for a model that was not put into the store by `nsllm model`."""
    try:
        value = json.loads((folder / SOURCE).read_bytes())
    except (OSError, ValueError):
        return None
    source = value.get("source") if isinstance(value, dict) else None
    return source if isinstance(source, str) else None


def write_card(folder: Path, licence: str, said: str) -> None:
    """A model card as short as can be: the licence where the Hugging Face hub reads it, and one line."""
    front = f"license: {licence}\n" if licence else ""
    (folder / CARD).write_text(f"---\n{front}---\n{said}\n", encoding="utf-8")
