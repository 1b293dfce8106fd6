"""A ledger's observations as the peer uses them: commits and rows put in, our own opened, how each validator stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from nsllm.consensus.batch import BatchReveal, Row, SignedCommit
from nsllm.consensus.errors import BatchEquivocationError
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.observation import Subject
from nsllm.governance.observation_pool import Standing
from nsllm.governance.pending import Pending
from nsllm.ids import Address, Digest


class Observations:
    """A part of `Ledger`."""

    def __init__(self, pending: Callable[[], Pending], convict: Callable[[Evidence], None]) -> None:
        """Use `Ledger.observations` instead."""
        self._pending = pending
        self._convict = convict

    def add_commit(self, signed: SignedCommit) -> bool:
        """Take a validator's committed batch; True if it is new and speaks of a record that is not settled yet.

        Raises:
            ObservationError: a later epoch, another rubric, no validator's, or malformed.
            SignatureError: not its signer's.
            BatchEquivocationError: it contradicts an earlier one; carries the proof, which the next block shall hold.
        """
        try:
            return self._pending().add_commit(signed, trio.current_time())
        except BatchEquivocationError as error:
            self._convict(error.conflict)
            raise

    def add_reveal(self, reveal: BatchReveal) -> bool:
        """Take opened rows of a batch that was committed to; True if one of them is new.

        Raises:
            ObservationError: malformed, or not what was committed to.
        """
        return self._pending().add_reveal(reveal, trio.current_time())

    def open_own(self, number: int, opened: Sequence[tuple[Subject, Row]]) -> None:
        """Open rows of a batch of ours: they are what was committed to, since this peer made them."""
        self._pending().pool.open_own(number, opened, trio.current_time())

    def openable(self) -> list[Digest]:
        """Records whose rows of ours may be shown now: enough validators have committed to them."""
        return self._pending().pool.openable(trio.current_time())

    def opens_in_s(self) -> float | None:
        """Seconds until a row of ours may be shown without anybody else's doing; None while there is none to come."""
        return self._pending().pool.opens_in_s(trio.current_time())

    def shown(self, record: Digest) -> bool:
        """Is our row about this record opened?"""
        return self._pending().pool.shown(record)

    def standings(self) -> Mapping[Address, Standing]:
        """What each validator observed, abstained from and contradicted, since this ledger was opened."""
        return self._pending().pool.standings
