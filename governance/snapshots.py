"""The ledger's snapshots as the peer uses them: handed out to others, taken in from others, installed as a whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nsllm.governance.ledger_state import LedgerState
from nsllm.governance.retraction import RetractionProof
from nsllm.governance.snapshot import Handover, Offer, Proved
from nsllm.governance.turn import Run
from nsllm.ids import Digest, Height


class Snapshots:
    """A part of `Ledger`."""

    def __init__(
        self,
        run: Run,
        state: Callable[[], LedgerState],
        installing: Callable[[Proved, Sequence[RetractionProof]], Awaitable[None]],
    ) -> None:
        """Use `Ledger.snapshots` instead."""
        self._run = run
        self._state = state
        self._installing = installing

    @property
    def every(self) -> int:
        """Heights between two snapshots."""
        return self._state().past.every

    @property
    def keeps_all(self) -> bool:
        """Whether this ledger forgets nothing, so that it would rather have every block than a snapshot."""
        return self._state().past.keeps_all

    @property
    def epoch(self) -> int:
        """The epoch from which an offer must be proved."""
        return self._state().rules.validators.epoch

    async def newest(self) -> Height | None:
        """Height of the newest snapshot here."""
        return await self._run(lambda state: state.past.snapshots.newest())

    # Handing out

    async def offer(self, since: int) -> tuple[Offer, tuple[Handover, ...]] | None:
        """The newest snapshot that can be proved here, and the handovers after epoch `since`; None if there is none."""
        return await self._run(lambda state: state.past.offer(since))

    async def chunk(self, digest: Digest, position: int) -> bytes | None:
        """One chunk of a snapshot by its manifest's digest; None if it is not (or no longer) here."""
        return await self._run(lambda state: state.past.snapshots.chunk(digest, position))

    async def retractions(self, start: int, count: int) -> Sequence[RetractionProof]:
        """Proofs of records that were taken back, from the `start`-th on: each peer keeps them all, in one order."""
        return await self._run(lambda state: state.past.retractions(start, count))

    # Taking in

    def check(self, offer: Offer, handovers: Sequence[Handover]) -> Proved:
        """The offer, if certificates lead to it from what we trust.

        Raises:
            CertificateError, SignatureError: they do not.
        """
        return self._state().check_offer(offer, handovers)

    async def begin(self) -> None:
        """Forget what was taken in before and not installed."""
        await self._run(lambda state: state.past.begin_incoming())

    async def put(self, proved: Proved, position: int, data: bytes) -> None:
        """Take in one chunk; it is of no use before all of them are installed.

        Raises:
            SnapshotError: not the certified one.
            StorageError: no space.
        """
        await self._run(lambda state: state.past.put_incoming(proved, position, data))

    async def install(self, proved: Proved, retractions: Sequence[RetractionProof]) -> None:
        """Replace the ledger's state by the snapshot that was taken in.

        Args:
            proved: the snapshot.
            retractions: proofs after those that `retractions` gives here.

        Raises:
            SnapshotError: not whole, or it leads elsewhere; nothing was replaced.
            StorageError: no space; nothing was replaced.
        """
        await self._installing(proved, retractions)

    def known_retractions(self) -> int:
        """How many records were taken back, as far as this ledger has come."""
        return len(self._state().registry.state.retracted)
