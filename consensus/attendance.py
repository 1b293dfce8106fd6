"""Attendance: which validators showed themselves lately, and who leaves because it did not. Pure; from blocks alone.

A validator shows itself by a block that it proposed, or by a batch of its observations in somebody's block. Its turn to
propose comes every n heights, so that whoever leaves out its batches cannot hide it: they would have to keep the others
from deciding its blocks, again and again.

Attendance is taken in windows within one epoch. A window is over when the network has been deciding for as many minutes
as the policy says, and long enough for everybody to have had some turns. A minute counts if a block is decided in it:
while the network stands still, nobody is absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from nsllm.canonical import Value
from nsllm.consensus.block import Body
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address, AddressField, CountField, TimeMs, TimeMsField

MINUTE_MS: Final = 60_000
TURNS: Final = 4
"""So many times in a window it is everybody's turn to propose, at least."""
MIN_VALIDATORS: Final = 4
"""Of fewer than this, not one may be faulty: nobody leaves them."""


class Attendance(Value, frozen=True, kw_only=True):
    """Of the present window, after a block."""

    since: CountField = 0
    """The last height before the window."""
    minutes: CountField = 0
    """Minutes in which the network decided something."""
    counted_ms: TimeMsField = TimeMs(0)
    """Time of the block that began the minute counted last."""
    seen: Annotated[tuple[AddressField, ...], Meta(max_length=256)] = ()
    """Validators that showed themselves, ascending."""

    @classmethod
    def begin(cls, height: int, time_ms: TimeMs) -> Attendance:
        """A window that begins after the block of `height`."""
        return cls(since=height, counted_ms=time_ms)

    def after(self, time_ms: TimeMs, shown: Iterable[Address]) -> Attendance:
        """After a further block, in which these validators show themselves; itself where that is no news."""
        attendance = self
        if time_ms >= self.counted_ms + MINUTE_MS:
            attendance = replace(attendance, minutes=self.minutes + 1, counted_ms=time_ms)
        fresh = set(shown) - set(self.seen)
        return replace(attendance, seen=tuple(sorted({*self.seen, *fresh}))) if fresh else attendance

    def is_over(self, height: int, validators: ValidatorSet, minutes: int) -> bool:
        """Whether the window ends with the block of `height`."""
        return self.minutes >= minutes and height - self.since >= TURNS * validators.size

    def leaving(self, validators: ValidatorSet, appointed: int) -> tuple[Address, ...]:
        """Who leaves at the window's end.

        Args:
            validators: of the epoch, all of whom could show themselves.
            appointed: how many there would be if nobody were absent.

        Returns:
            Validators that were not seen, the first ones by address: never so many that more than f of all that were
            appointed are away, or fewer than `MIN_VALIDATORS` remain. So never more than f of these at once.
        """
        floor = max(MIN_VALIDATORS, appointed - (appointed - 1) // 3)
        most = max(0, validators.size - floor)
        return tuple(member for member in validators.members if member not in self.seen)[:most]


def shown_in(body: Body, proposer: Address) -> frozenset[Address]:
    """Validators that show themselves in a block: who built it, and whose observations it holds."""
    return frozenset({proposer, *(excerpt.signed.commit.validator for excerpt in body.batches)})
