"""Committed batches by validator, each validator's bounded by itself: whoever floods drops its own, never another's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nsllm.consensus.batch import SignedCommit
from nsllm.governance.record_case import RecordCase
from nsllm.ids import Address, Digest

MAX_OUTSTANDING: Final = 256
"""Batches of one validator that are not settled: beyond it the oldest is dropped."""
MAX_ROWS: Final = 4096
"""Rows of one validator, over all of its batches: about two megabytes."""
EXPIRY_S: Final = 600.0
MAX_NUMBERS_AHEAD: Final = 3_600_000
"""A number this far from those that are held is junk: they count milliseconds, and none is held so long. A validator of
which nothing is held may begin anywhere."""


@dataclass(slots=True)
class Held:
    """One batch that waits for blocks."""

    signed: SignedCommit
    came_s: float
    cases: dict[Digest, RecordCase]
    """What is known of those of its records that wait for a block."""


@dataclass(slots=True)
class _Lane:
    batches: OrderedDict[int, Held] = field(default_factory=OrderedDict[int, Held])
    rows: int = 0
    banned: bool = False


class BatchLanes:
    """One lane a validator, made when it is first heard of; the caller has checked that it is one."""

    def __init__(self) -> None:
        self._lanes: dict[Address, _Lane] = {}

    def get(self, validator: Address, number: int) -> Held | None:
        """The batch with this number."""
        lane = self._lanes.get(validator)
        return lane.batches.get(number) if lane is not None else None

    def takes(self, validator: Address, number: int) -> bool:
        """May a batch of this number come in? Asked before anything costly is done about it."""
        lane = self._lanes.get(validator)
        if lane is None:
            return True
        if lane.banned:
            return False
        return not lane.batches or abs(number - max(lane.batches)) <= MAX_NUMBERS_AHEAD

    def banned(self, validator: Address) -> bool:
        """Did the validator equivocate?"""
        lane = self._lanes.get(validator)
        return lane is not None and lane.banned

    def put(self, signed: SignedCommit, cases: dict[Digest, RecordCase], now: float) -> list[Held]:
        """Keep a batch; returns what it pushes out."""
        lane = self._lanes.setdefault(signed.commit.validator, _Lane())
        lane.batches[signed.commit.number] = Held(signed, now, cases)
        lane.rows += len(cases)
        pushed: list[Held] = []
        while len(lane.batches) > 1 and (len(lane.batches) > MAX_OUTSTANDING or lane.rows > MAX_ROWS):
            pushed.append(self._drop(lane, next(iter(lane.batches))))
        return pushed

    def ban(self, validator: Address) -> list[Held]:
        """Take no batch of the validator any more; returns those that were held."""
        lane = self._lanes.setdefault(validator, _Lane())
        lane.banned = True
        return [self._drop(lane, number) for number in list(lane.batches)]

    def settled(self, record: Digest, case: RecordCase) -> None:
        """A block has the record; a batch of which all are settled is forgotten."""
        for validator, place in case.committed.items():
            self._settled(validator, place.number, record)
        for validator, number in case.abstained.items():
            self._settled(validator, number, record)

    def _settled(self, validator: Address, number: int, record: Digest) -> None:
        lane = self._lanes[validator]
        cases = lane.batches[number].cases
        del cases[record]
        lane.rows -= 1
        if not cases:
            del lane.batches[number]

    def expired(self, now: float) -> Iterator[Held]:
        """Drop and return batches older than `EXPIRY_S`."""
        for lane in self._lanes.values():
            while lane.batches and next(iter(lane.batches.values())).came_s + EXPIRY_S <= now:
                yield self._drop(lane, next(iter(lane.batches)))

    def outstanding(self, validator: Address) -> int:
        """Batches held of a validator."""
        lane = self._lanes.get(validator)
        return len(lane.batches) if lane is not None else 0

    @staticmethod
    def _drop(lane: _Lane, number: int) -> Held:
        held = lane.batches.pop(number)
        lane.rows -= len(held.cases)
        return held
