"""This peer's part in agreement: a validator's driver or a follower's, and what happens when the state diverges."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, assert_never

import trio

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.driver import Driver
from nsllm.consensus.errors import DivergenceError, GuardError, WalError
from nsllm.consensus.events import (
    BlockCommitted,
    ConsensusEvent,
    Halted,
    OffenceSeen,
    PeerBlamed,
    RoundEntered,
    SigningRefused,
)
from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.follower import Follower
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.wal import WriteAheadLog
from nsllm.errors import OwnFault
from nsllm.files import private_folder
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Height, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.links import BlockFeed, ConsensusMesh
from nsllm.node.snapshot_feed import SnapshotFeed

log = logging.getLogger(__name__)

CONSENSUS_FOLDER = "consensus"
GATHER_S: Final = 10.0
"""Longest wait of a follower of a large network after an announcement."""
RETRY_S: Final = 5.0
"""Between a fault of our own (such as a full disk) and the next try."""


class Agreement:
    """Runs the driver (validators) or the follower (everybody else) over the ledger."""

    def __init__(
        self,
        *,
        context: PeerContext,
        ledger: Ledger,
        mesh: ConsensusMesh,
        feed: BlockFeed,
        snapshots: SnapshotFeed,
        folder: Path,
        checkpoint: Callable[[str], None],
        calm: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take up from what is on disk; nothing runs yet.

        Args:
            context: who we are.
            ledger: what blocks are committed to.
            mesh: carries votes.
            feed: decided blocks of others.
            snapshots: their state, where blocks are too many.
            folder: of guard and write-ahead log.
            checkpoint: see `World.checkpoint`.
            calm: whether the network is so large that followers take their time.
        """
        self._calm = calm
        self._context = context
        self._ledger = ledger
        self._mesh = mesh
        self._feed = feed
        self._snapshots = snapshots
        self._folder = folder
        self._checkpoint = checkpoint
        self._driver: Driver | None = None
        self._follower: Follower | None = None
        self._wal: WriteAheadLog | None = None
        self.halted: str | None = None
        """Why this peer takes no part in agreement: for good if its state diverged, else until a try succeeds."""
        ledger.on_offence(self._accuse)
        self._take_up()

    async def run(self) -> None:
        """Take part until cancelled: as a validator in the epochs that list us, else as a follower.

        Trouble of our own is told and tried again, from what is on disk, as after a restart. A diverged state halts
        this part loudly for good. The rest of the peer goes on in both cases.

        Raises:
            WalError, GuardError: their files are damaged, or another validator's.
        """
        context = self._context
        while True:
            try:
                if self._driver is None and self._follower is None:
                    self._take_up()
                if self._driver is not None:
                    await self._driver.run()
                elif self._follower is not None:
                    await self._follower.run()
                self._driver = self._follower = None
                self.close()
                log.info("consensus_role epoch=%d validates=%s", context.validators.epoch, context.is_validator)
                context.events.emit("epoch_role", epoch=context.validators.epoch, validates=context.is_validator)
                continue
            except DivergenceError as error:
                self.halted = str(error)
                log.critical("consensus_halted reason=%s", error)
                await trio.sleep_forever()
            except (WalError, GuardError):
                raise
            except OwnFault as error:
                self.halted = str(error)
                log.error("consensus_halted reason=%s again_s=%s", error, RETRY_S)
                self._context.events.emit("consensus_halted", height=self._ledger.height + 1, reason=error.message)
            self._driver = self._follower = None
            self.close()
            await trio.sleep(RETRY_S)

    def _take_up(self) -> None:
        """A driver or follower that starts from what is on disk."""
        context = self._context
        if not context.is_validator:
            self._follower = Follower(
                network=context.network_id,
                application=self._ledger,
                source=self._feed,
                observer=self._observe,
                me=context.address,
                patience=self._patience,
                snapshots=self._snapshots,
            )
            return
        home = private_folder(self._folder / CONSENSUS_FOLDER)
        guard = SignerGuard(context.key, context.network_id, home / "guard")
        self._wal = WriteAheadLog(home / "wal")
        self._driver = Driver(
            network=context.network_id,
            guard=guard,
            application=self._ledger,
            mesh=self._mesh,
            source=self._feed,
            clock=context.clock,
            wal=self._wal,
            timeouts=Timeouts(),
            observer=self._observe,
            checkpoint=self._checkpoint,
            snapshots=self._snapshots,
        )

    def close(self) -> None:
        """Close the write-ahead log."""
        if self._wal is not None:
            self._wal.close()
            self._wal = None

    def receive(self, sender: Address, message: bytes) -> None:
        """A consensus message from another validator; raises `PeerFault` for one that is malformed."""
        if self._driver is not None:
            self._driver.receive(sender, message)

    def poke(self) -> None:
        """A block may have become due."""
        if self._driver is not None:
            self._driver.poke()

    def announce(self, height: Height) -> None:
        """Somebody says that `height` was decided."""
        if self._follower is not None:
            self._follower.announce(height)
        if self._driver is not None:
            self._driver.announce(height)

    def view(self) -> dict[str, Any]:
        """For the status page."""
        validators = self._context.validators
        shown: dict[str, Any] = {
            "height": self._ledger.height,
            "epoch": validators.epoch,
            "round": None,
            "validators": validators.size,
            "quorum": validators.quorum,
            "faults": validators.faults,
            "validating": self._context.is_validator,
            "halted": self.halted,
            "observers": [
                {
                    "validator": hex0x(address),
                    "observed": standing.observed,
                    "late": standing.late,
                    "uncommitted": standing.uncommitted,
                    "abstained": standing.abstained,
                    "reason": standing.reason,
                    "equivocated": standing.equivocated,
                }
                for address, standing in sorted(self._ledger.observations.standings().items())
            ],
        }
        if self._driver is not None:
            shown["round"] = self._driver.status().round
        return shown

    def _patience(self) -> float:
        """A follower of a large network fetches some blocks at once, unless one of its own records waits for them."""
        if not self._calm() or self._ledger.proofs.awaited:
            return 0.0
        return self._context.rng.uniform(GATHER_S / 2, GATHER_S)

    def _accuse(self, evidence: Evidence) -> None:
        """The ledger has found somebody out."""
        if self._driver is not None:
            self._driver.accuse(evidence)

    def _resumed(self) -> None:
        """Something was written again after a fault of our own."""
        if self.halted is not None:
            self.halted = None
            self._context.events.emit("consensus_resumed")

    def _observe(self, event: ConsensusEvent) -> None:
        emit = self._context.events.emit
        match event:
            case BlockCommitted(decided=decided, synced=synced):
                self._resumed()
                emit("block", **describe(decided), synced=synced)
            case RoundEntered(height=height, round=round_):
                self._resumed()
                emit("round", height=height, round=round_)
            case OffenceSeen(evidence=evidence):
                seen = offence_of(evidence)
                emit("offence", validator=hex0x(seen.validator), offence=seen.kind, height=seen.height)
            case PeerBlamed(sender=sender, code=code, reason=reason):
                emit("peer_blamed", sender=hex0x(sender) if sender else None, code=code, reason=reason)
            case SigningRefused(height=height, round=round_, reason=reason):
                emit("signing_refused", height=height, round=round_, reason=reason)
            case Halted(height=height, reason=reason):
                self.halted = reason
                emit("consensus_halted", height=height, reason=reason)
            case _:
                assert_never(event)


def describe(decided: DecidedBlock) -> dict[str, str | int | bool | None]:
    """A decided block as event fields."""
    header = decided.block.header
    return {
        "height": header.height,
        "round": decided.certificate.round,
        "records": len(decided.block.body.records),
        "log_size": header.log_size,
        "signers": len(decided.certificate.precommits),
        "anchor": bool(decided.block.body.transactions),
    }
