"""What a ledger proves of records, as the peer asks for it, and whoever waits until there is something to prove."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import CertifiedRecord, CertifiedScores, Inclusion
from nsllm.consensus.observation import ScoreLeaf
from nsllm.governance.ledger_state import LedgerState
from nsllm.governance.newest_scores import NewestScores
from nsllm.governance.record_proof import RecordProof
from nsllm.governance.retraction import RetractionNotice
from nsllm.governance.turn import Run
from nsllm.governance.waiters import Waiters
from nsllm.ids import Digest
from nsllm.record import SignedRecord


class Proofs:
    """A part of `Ledger`."""

    def __init__(self, run: Run) -> None:
        """Use `Ledger.proofs` instead."""
        self._run = run
        self._newest = NewestScores()
        self._waiters = Waiters()

    async def of(self, record: Digest, given: CertifiedScores | None = None) -> RecordProof | None:
        """All that can be proved of a record by now; None if it is not scored. A receipt is built from this.

        Args:
            record: its digest.
            given: its scores as somebody else gave them, verified: what is left where the block was never here, or is
                gone.
        """
        return await self._run(lambda state: state.past.proof(record, given))

    async def kept(self, after: Digest | None, count: int) -> list[Digest]:
        """At most `count` records whose proofs are kept without their blocks, or will be, ascending above `after`."""
        return await self._run(lambda state: state.past.kept(after, count))

    async def forget(self, records: Sequence[Digest]) -> None:
        """Keep the proofs of these no longer, once their blocks are gone. Raises `StorageError`."""
        await self._run(lambda state: state.past.forget(records))

    async def retraction(self, record: Digest) -> RetractionNotice | None:
        """Proof that validators took a record back, for whoever has an older receipt; None if they have not."""
        return await self._run(lambda state: state.past.retraction(record))

    async def scores(self, record: Digest) -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
        """Scores of a record, their inclusion in the header's `scores_root`, and its certificate."""
        return await self._run(lambda state: state.past.scores(record))

    async def wait_certified(self, signed: SignedRecord) -> CertifiedRecord:
        """The certified record, once a block holds its scores. Give it a deadline: nobody may ever score it.

        Raises:
            UnscoredError: a block settled that it stays unscored; says who abstained.
            MissedError: a block settled it that was never here: a snapshot stands in its place.
        """
        record = signed.record.digest()

        def find(state: LedgerState) -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
            if (found := state.past.scores(record)) is None:
                state.past.check_scorable(record)
            return found

        async def ask() -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
            return self._newest.find(record) or await self._run(find)

        leaf, inclusion, certificate = await self._waiters.until(record, ask)
        return CertifiedRecord(signed=signed, leaf=leaf, inclusion=inclusion, certificate=certificate)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a record to be certified."""
        return bool(self._waiters)

    def settled(
        self, decided: DecidedBlock, leaves: Sequence[ScoreLeaf], hashes: Sequence[Digest], records: Iterable[Digest]
    ) -> None:
        """A block certified these leaves and settled these records: whoever waits for one looks again."""
        self._newest.add(decided, leaves, hashes)
        self._waiters.wake(records)

    def replaced(self) -> None:
        """A snapshot replaced the state: any record may have been settled."""
        self._waiters.wake_all()
