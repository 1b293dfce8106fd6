"""Log and guard come back from an old copy, with the ledger or without: what the others heard is not said otherwise.

The victim's folder is copied at every moment of its part in two heights, it goes on for a while, stops, and starts from
the copy. Judged is the union of everything that it ever sent.
"""

from __future__ import annotations

import shutil

import pytest
import trio
from honesty import judge_votes, locks_alone

VICTIM = 2
HEIGHTS = 3
MOMENTS = 9
"""Of signing, sending and committing, after which the folder is copied."""


class Copier:
    """Copies the victim's folder at one moment and stops it at a later one."""

    def __init__(self, kit, victim, copy_at: int, stop_at: int) -> None:
        self._kit, self._victim = kit, victim
        self._left = {"copy": copy_at, "stop": stop_at}
        self._copy = victim.folder.parent / "copy"
        self._height = 0
        victim.checkpoint = self._at

    def _at(self, _moment: str) -> None:
        for what in self._left:
            self._left[what] -= 1
        if self._left["copy"] == 0:
            shutil.copytree(self._victim.folder, self._copy)
            self._height = self._victim.height
        if self._left["stop"] == 0:
            raise self._kit.Crash

    def restore(self, *, ledger: bool) -> None:
        shutil.rmtree(self._victim.folder)
        shutil.copytree(self._copy, self._victim.folder)
        if ledger:
            del self._victim.application.chain[self._height :]


@pytest.mark.parametrize("ledger", [False, True], ids=["log and guard", "the ledger too"])
@pytest.mark.parametrize("later", [4, 7])
async def test_a_validator_from_an_old_copy_contradicts_nothing(autojump_clock, house, kit, ledger, later):
    for copy_at in range(1, MOMENTS + 1):
        town = house(4)
        victim = town.peers[VICTIM]
        locks_alone(town, town.peers[VICTIM])
        copier = Copier(kit, victim, copy_at, copy_at + later)
        async with trio.open_nursery() as nursery:
            await kit.start(nursery, town)
            town.want(HEIGHTS)
            with trio.fail_after(600):
                await victim.stopped()
            await trio.sleep(1)  # what it said has arrived, where it arrives at all
            copier.restore(ledger=ledger)
            town.peers[3].application.refuse = lambda block: (
                False
            )  # a vote that abstains is the one that may be missing
            await nursery.start(victim.run)
            await town.until_height(HEIGHTS, timeout_s=600)
            nursery.cancel_scope.cancel()
        judge_votes(town, victim)
