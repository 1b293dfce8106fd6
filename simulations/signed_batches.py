"""Batches of observations found on real peers' disks, in blocks and in validators' own logs of what they committed to.

Nobody honest signs two that contradict each other, and each log can open what its batches hold. Blocking.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.consensus.batch import BatchCommit, BatchReveal, SignedCommit, check_row, row_bytes, unpack_rows
from nsllm.consensus.batch_conflict import contradict
from nsllm.consensus.observation import SUBJECT_BYTES, Subject
from nsllm.consensus.observation_message import MAX_OBSERVATION_BYTES
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, NetworkId, hex0x
from nsllm.simulations.errors import InvariantError

BATCH_FILE: Final = "batches.sqlite"


class SignedBatches:
    """What each validator committed to, by where it was found."""

    def __init__(self, network: NetworkId, byzantine: frozenset[Address] = frozenset()) -> None:
        """Nothing was found yet.

        Args:
            network: salt of every signature.
            byzantine: validators that may have signed two that contradict each other.
        """
        self._network = network
        self._byzantine = byzantine
        self._found: dict[bytes, tuple[BatchCommit, str]] = {}
        """By what was signed."""
        self._places: dict[tuple[object, ...], list[bytes]] = {}
        """Batches by validator, epoch and what they may contradict each other in: their number, or a record."""
        self.liars: set[Address] = set()
        """Byzantine validators that did contradict themselves."""

    def __len__(self) -> int:
        """Different batches found."""
        return len(self._found)

    def add(self, batches: Iterable[SignedCommit], where: str) -> None:
        """Batches that stand somewhere, such as in a block.

        Raises:
            InvariantError: one that nobody signed, or somebody honest signed two that contradict each other.
        """
        for signed in batches:
            try:
                signed.check(self._network)
            except PeerFault as error:
                raise InvariantError(f"{where}: {error.message}") from None
            self._note(signed.commit, where)

    def add_left(self, home: Path, validator: Address, where: str) -> None:
        """What a validator that does not run left in its log of batches.

        Args:
            home: the folder of its consensus.
            validator: its address.
            where: the log's name, for people.

        Raises:
            InvariantError: another's log, a batch of somebody else or one that its rows do not open, or see `add`.
        """
        path = home / BATCH_FILE
        if not path.exists():
            return
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            owner = connection.execute("SELECT value FROM meta WHERE name = 'owner'").fetchone()[0]
            rows = connection.execute("SELECT signed, rows FROM batch ORDER BY epoch, number").fetchall()
        if owner != self._network + validator:
            raise InvariantError(f"{where} is that of {hex0x(owner[32:])}")
        for body, opened in rows:
            try:
                signed = canonical.decode(body, SignedCommit, limit_bytes=MAX_OBSERVATION_BYTES)
                reveal = canonical.decode(opened, BatchReveal, limit_bytes=MAX_OBSERVATION_BYTES)
                if signed.commit.validator != validator:
                    raise InvariantError(f"{where} holds a batch of {hex0x(signed.commit.validator)}")
                self.add([signed], where)
                self._check_opened(signed.commit, reveal)
            except PeerFault as error:
                raise InvariantError(f"{where}: {error.message}") from None

    def _check_opened(self, commit: BatchCommit, reveal: BatchReveal) -> None:
        """Pass silently if a validator can show all that it committed to. Raises `InvariantError`, `PeerFault`."""
        count = len(commit.record_digests)
        name = f"batch {commit.number} of {hex0x(commit.validator)}"
        told = (reveal.validator, reveal.epoch, reveal.number, len(reveal.subjects))
        if told != (commit.validator, commit.epoch, commit.number, SUBJECT_BYTES * count):
            raise InvariantError(f"{name} is kept with the rows of another one")
        if not count:
            return
        dimensions = (len(reveal.rows) // count - row_bytes(0)) // 4
        rows = unpack_rows(reveal.rows, max(0, dimensions))
        if len(rows) != count:
            raise InvariantError(f"{name} has {count} records and {len(rows)} rows")
        for row in rows:
            packed = reveal.subjects[SUBJECT_BYTES * row.position :][:SUBJECT_BYTES]
            subject = Subject(Digest(packed[:32]), Address(packed[32:52]), Digest(packed[52:]))
            check_row(commit, self._network, subject, row)

    def _note(self, commit: BatchCommit, where: str) -> None:
        signed = bytes(commit.digest(self._network))
        if signed in self._found:
            return
        self._found[signed] = (commit, where)
        validator, epoch = commit.validator, commit.epoch
        for place in (commit.number, *commit.record_digests, *sorted(commit.abstained)):
            others = self._places.setdefault((validator, epoch, place), [])
            for other, before in map(self._found.__getitem__, others):
                if contradict(commit, other):
                    self._convict(validator, f"batch {other.number} in {before} and batch {commit.number} in {where}")
            others.append(signed)

    def _convict(self, validator: Address, what: str) -> None:
        if validator not in self._byzantine:
            raise InvariantError(f"{hex0x(validator)} signed {what}, which contradict each other")
        self.liars.add(validator)
