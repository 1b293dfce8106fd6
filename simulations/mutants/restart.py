"""Directed power cuts: what a validator signed before one, it must know after it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import trio
from trio.testing import MockClock

from nsllm.clock import TrioClock
from nsllm.consensus import core
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.core import State, Turn
from nsllm.consensus.driver import Driver
from nsllm.consensus.errors import GuardError
from nsllm.consensus.events import ConsensusEvent, SigningRefused
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.inputs import Input, encode_input
from nsllm.consensus.message import Recalled, Request, decode_message, encode_message
from nsllm.consensus.recollection import recall
from nsllm.consensus.replay import begin_entry, replay
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.vote import Choice, Proposal, Vote, VoteBody, VoteKind
from nsllm.consensus.wal import WriteAheadLog
from nsllm.crypto import MemberKey
from nsllm.ids import Address, Digest, Epoch, Height, Round, TimeMs
from nsllm.simulations.mutants.bench import Bench
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import NETWORK, START_MS, make_block, make_keys, make_set, sign_vote
from nsllm.simulations.mutants.rules import LOCK_A, NEXT

CUTS = 3
"""Signatures after which power is lost: the proposal, the prevote, the precommit."""


def a_restart_keeps_the_lock() -> None:
    """Power is lost after locking A; the proposer of round 1 then offers B. No timer that fired is armed again."""
    bench = Bench()
    entries = [begin_entry(NETWORK, bench.key.address, Height(1))]

    def logging_step(state: State, event: Input) -> Turn:
        entries.append(encode_input(event))
        return core.step(state, event)

    bench.step = logging_step
    bench.run(LOCK_A + NEXT)
    replayed = replay(entries, bench.fresh(), NETWORK)
    holds(replayed is not None and replayed.state == bench.state, "the log gives back the state")
    due = [type(effect).__name__ for effect in replayed.pending] if replayed is not None else []
    holds(due == ["Schedule"], f"only the timer of round 1 is due, not {due}")
    bench.step = core.step
    bench.state = replayed.state if replayed is not None else bench.fresh()
    holds(bench.run("prop 1 B") == ["prevote 1 nil"], "the lock outlives the restart")


def a_guard_signs_once() -> None:
    """Another vote in the same place, before and after a restart; a prevote against the lock that was signed."""
    key = make_keys(4)[0]
    value = make_block(make_set(make_keys(4)), proposer=key.address).header.id()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guard"
        guard = SignerGuard(key, NETWORK, path)
        guard.vote(_said(key, "prevote", 0, value))
        for each in (guard, SignerGuard(key, NETWORK, path)):
            again = partial(each.vote, _said(key, "prevote", 0, None))
            refused(GuardError, again, "a guard signs two votes in one place")
        guard = SignerGuard(key, NETWORK, path)
        guard.vote(_said(key, "precommit", 0, value))
        refused(
            GuardError,
            lambda: SignerGuard(key, NETWORK, path).vote(_said(key, "prevote", 1, None)),
            "a guard signs a prevote that forgets a lock",
        )
        guard.vote(_said(key, "prevote", 1, None, Choice(round=Round(0), value=value)))


def _said(key: MemberKey, kind: VoteKind, round_: int, value: Digest | None, lock: Choice | None = None) -> VoteBody:
    return VoteBody(
        kind=kind,
        epoch=Epoch(0),
        height=Height(1),
        round=Round(round_),
        value=value,
        validator=key.address,
        lock=lock,
        valid_round=None,
    )


def a_power_cut_loses_no_vote() -> None:
    """The proposer loses power after it sent; what it did not sync is gone. It says the same again, and goes on."""
    for cut in range(1, CUTS + 1):
        with tempfile.TemporaryDirectory() as folder, _disk() as disk:
            before = _Life(Path(folder), cut)
            trio.run(before.live, clock=MockClock(autojump_threshold=0))
            holds(before.cut, f"power is lost after signature {cut}")
            disk.cut_power(Path(folder))
            after = _Life(Path(folder), None)
            trio.run(after.live, clock=MockClock(autojump_threshold=0))
            said = {**before.said}
            for slot, value in after.said.items():
                holds(said.setdefault(slot, value) == value, f"{slot} was signed twice")
            holds(not after.refusals, f"after a power cut it may not sign any more: {after.refusals[:1]}")
            holds(set(before.said) <= set(after.said), "it says again what it had said")


def an_old_copy_contradicts_nothing() -> None:
    """Log and guard are those of before the first signature; the others have heard what was signed since."""
    with tempfile.TemporaryDirectory() as folder:
        before = _Life(Path(folder), CUTS)
        trio.run(before.live, clock=MockClock(autojump_threshold=0))
        holds(len(before.said) == CUTS, "it proposes and votes")
        for path in Path(folder).iterdir():
            path.unlink()
        after = _Life(Path(folder), None)
        after.heard = before.words
        trio.run(after.live, clock=MockClock(autojump_threshold=0))
        holds(not after.said, f"from an old copy it signs {sorted(after.said)[:1]} again")
        holds(bool(after.refusals), "it says that it abstains")


def what_was_heard_is_told() -> None:
    """Of a validator's votes the last one is told, and of nobody else's."""
    bench = Bench()
    bench.run("start; prop 0 A; pv 123 0 A; pc 2 0 A")
    asker = bench.keys[2].address
    told = recall(asker, START_MS, bench.state, None, ())
    holds(told.vote is not None and (told.vote.validator, told.vote.kind) == (asker, "precommit"), "its last vote")


@dataclass
class _Disk:
    """What a power cut leaves of files: what stood in them when they were synced."""

    synced: dict[int, bytes] = field(default_factory=dict)
    """By inode."""

    def sync(self, handle: int) -> None:
        about = os.fstat(handle)
        if stat.S_ISREG(about.st_mode):
            self.synced[about.st_ino] = Path(f"/dev/fd/{handle}").read_bytes()

    def cut_power(self, folder: Path) -> None:
        for path in folder.iterdir():
            path.write_bytes(self.synced.get(path.stat().st_ino, b""))


@contextmanager
def _disk() -> Iterator[_Disk]:
    """While the block runs, what is synced is remembered."""
    disk, real = _Disk(), os.fsync

    def sync(handle: int) -> None:
        real(handle)
        disk.sync(handle)

    with patch.object(os, "fsync", sync), patch.object(os, "fdatasync", sync, create=True):
        yield disk


class _PowerCut(BaseException):
    """Nothing catches it."""


class _Life:
    """One run of a real driver, as the proposer among validators that are not there; their votes come out of the air.

    It is application, mesh and source of blocks to its driver.

    Args:
        folder: what outlives it.
        cut: after how many messages of its own power is lost; None: never.
    """

    def __init__(self, folder: Path, cut: int | None) -> None:
        self._keys = make_keys(4)
        self.validators = make_set(self._keys)
        self._me = self._keys[1]
        self._folder = folder
        self._cut = cut
        self._built = 0
        self.cut = False
        self.said: dict[tuple[str, int], bytes | None] = {}
        """By kind and round, what it sent over its own signature."""
        self.refusals: list[str] = []
        self.words: list[Vote] = []
        """Its votes, as they were sent."""
        self.heard: Sequence[Vote] = ()
        """What the others tell of an earlier life."""
        self._driver: Driver | None = None

    async def live(self) -> None:
        """Until power is lost, or two seconds have passed."""
        wal = WriteAheadLog(self._folder / "wal")
        self._driver = Driver(
            network=NETWORK,
            guard=SignerGuard(self._me, NETWORK, self._folder / "guard"),
            application=self,
            mesh=self,
            source=self,
            clock=TrioClock(START_MS),
            wal=wal,
            timeouts=Timeouts(),
            observer=self._observe,
            checkpoint=self._at,
        )
        try:
            with trio.move_on_after(2):
                await self._driver.run()
        except _PowerCut:
            self.cut = True
        finally:
            wal.close()

    def _observe(self, event: ConsensusEvent) -> None:
        if isinstance(event, SigningRefused):
            self.refusals.append(event.reason)

    def _at(self, moment: str) -> None:
        if moment == "vote_sent" and self._cut is not None and len(self.said) >= self._cut:
            raise _PowerCut

    # mesh

    def send(self, to: Address, message: bytes) -> None:
        """Remember what was said; others tell what they heard, and prevote what was proposed, once each."""
        body = decode_message(message)
        if isinstance(body, Proposal) and body.proposer == self._me.address:
            self.said["proposal", body.round] = body.value
            key = next(key for key in self._keys if key.address == to)
            vote = sign_vote(key, "prevote", body.value, round_=body.round)
            if self._driver is not None:
                self._driver.receive(to, encode_message(vote))
        elif isinstance(body, Vote) and body.validator == self._me.address:
            self.said[body.kind, body.round] = body.value
            self.words.append(body)
        elif isinstance(body, Request) and body.asked_ms is not None and self._driver is not None:
            last = self.heard[-1] if self.heard else None
            answer = Recalled(asked_ms=body.asked_ms, height=Height(1), vote=last, proposal=None)
            self._driver.receive(to, encode_message(answer))

    # application and source

    async def due_in(self) -> float | None:
        """At once."""
        return 0.0

    async def propose(self, height: Height, now_ms: TimeMs, proposer: Address) -> Block:
        """Another block each time, as in life."""
        del now_ms
        self._built += 1
        salt = 2 * self._built + (self._cut is None)
        return make_block(self.validators, height, proposer=proposer, salt=salt)

    async def validate(self, block: Block, now_ms: TimeMs, round_: Round) -> None:
        """Every block will do."""

    async def commit(self, decided: DecidedBlock) -> None:
        """Nothing is decided: the others never precommit."""
        raise AssertionError(decided.block.header.height)

    def add_evidence(self, evidence: Evidence) -> bool:
        """Nobody gives any."""
        del evidence
        return False

    async def decided(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Nothing."""
        del start, count
        return ()

    def refuse(self) -> bool:
        """Nobody else."""
        return False

    async def tip(self) -> Height:
        """The genesis."""
        return Height(0)

    async def fetch(self, start: Height, count: int) -> Sequence[DecidedBlock]:
        """Nothing."""
        del start, count
        return ()
