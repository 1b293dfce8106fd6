"""What simulated peers said beside what real ones did: the last measurement of `benchmarks/messages.py`."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import msgspec

FILE: Final = "data/messages.json"


class Machine(msgspec.Struct, frozen=True):
    """Where real peers ran, as far as a reader asks."""

    cpu: str
    cores: int
    date: str
    command: str


class Row(msgspec.Struct, frozen=True):
    """One thing that was counted, of all peers together."""

    counted: str
    real: int
    simulated: int
    ratio: float | None
    """Simulated over real; None where no real peer did it."""
    per_block: float | None
    """The same for one block: how many there are depends on how fast real peers are."""


class Comparison(msgspec.Struct, frozen=True):
    """The same questions, asked of real and of simulated peers."""

    machine: Machine
    peers: int
    seconds: float
    questions: int
    rows: tuple[Row, ...]


def measured() -> Comparison:
    """The last measurement."""
    return msgspec.json.decode(files(__package__).joinpath(FILE).read_bytes(), type=Comparison)
