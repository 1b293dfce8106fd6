"""This peer's part in agreement: a validator's driver or a follower's, and what happens when the state diverges."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.driver import ConsensusEvent, Driver, Timeouts
from nsllm.consensus.errors import DivergenceError
from nsllm.consensus.follower import Follower
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.wal import WriteAheadLog
from nsllm.files import private_folder
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Height
from nsllm.node.context import PeerContext
from nsllm.node.links import BlockFeed, ConsensusMesh

log = logging.getLogger(__name__)

CONSENSUS_FOLDER = "consensus"


class Agreement:
    """Runs the driver (validators) or the follower (everybody else) over the ledger."""

    def __init__(
        self,
        *,
        context: PeerContext,
        ledger: Ledger,
        mesh: ConsensusMesh,
        feed: BlockFeed,
        folder: Path,
        checkpoint: Callable[[str], None],
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._driver: Driver | None = None
        self._follower: Follower | None = None
        self.halted: str | None = None
        """Why this peer takes no part in agreement any more; None while it does."""
        if context.is_validator:
            home = private_folder(folder / CONSENSUS_FOLDER)
            self._driver = Driver(
                network=context.network_id,
                guard=SignerGuard(context.key, context.network_id, home / "guard"),
                validators=context.validators,
                application=ledger,
                mesh=mesh,
                source=feed,
                clock=context.clock,
                wal=WriteAheadLog(home / "wal"),
                timeouts=Timeouts(),
                observer=self._observe,
                checkpoint=checkpoint,
            )
        else:
            self._follower = Follower(
                network=context.network_id,
                validators=context.validators,
                application=ledger,
                source=feed,
                observer=self._observe,
            )

    async def run(self) -> None:
        """Take part until cancelled. A diverged state halts this part loudly; the rest of the peer goes on."""
        try:
            if self._driver is not None:
                await self._driver.run()
            elif self._follower is not None:
                await self._follower.run()
        except DivergenceError as error:
            self.halted = str(error)
            log.critical("consensus_halted reason=%s", error)
            self._context.events.emit("consensus_halted", reason=str(error))
            await trio.sleep_forever()

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
            "validating": self._driver is not None,
            "halted": self.halted,
        }
        if self._driver is not None:
            shown["round"] = self._driver.status().round
        return shown

    def _observe(self, event: ConsensusEvent) -> None:
        self._context.events.emit("consensus", what=event.kind, height=event.height, detail=event.detail)


def describe(decided: DecidedBlock) -> dict[str, str | int | bool | None]:
    """A decided block as event fields."""
    header = decided.block.header
    return {
        "height": header.height,
        "round": decided.certificate.round,
        "records": len({signed.observation.record for signed in decided.block.body.observations}),
        "log_size": header.log_size,
        "signers": len(decided.certificate.precommits),
        "anchor": bool(decided.block.body.transactions),
    }
