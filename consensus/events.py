"""What the driver and the follower tell whoever watches, and the status they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.core import State, Step
from nsllm.consensus.evidence import Evidence
from nsllm.ids import Address, Digest, Height, Round


@dataclass(frozen=True, slots=True)
class BlockCommitted:
    """A block is decided, executed and stored."""

    decided: DecidedBlock
    synced: bool
    """Fetched from others, not decided by our own count."""


@dataclass(frozen=True, slots=True)
class RoundEntered:
    """A round begins."""

    height: Height
    round: Round


@dataclass(frozen=True, slots=True)
class OffenceSeen:
    """A validator signed two contradicting messages."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class PeerBlamed:
    """A validator sent something malformed, forged or contradicting the rules; `sender` None: a block source's."""

    sender: Address | None
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class SigningRefused:
    """The signer guard refused, or this validator abstains at the height; it goes on without its vote."""

    height: Height
    round: Round
    reason: str


@dataclass(frozen=True, slots=True)
class Halted:
    """This validator's state contradicts a quorum's: it stops."""

    height: Height
    reason: str


ConsensusEvent = BlockCommitted | RoundEntered | OffenceSeen | PeerBlamed | SigningRefused | Halted

StepName = Literal["idle", "propose", "prevote", "precommit", "decided", "halted"]
STEP_NAMES: dict[Step, StepName] = {
    Step.NEW: "idle",
    Step.PROPOSE: "propose",
    Step.PREVOTE: "prevote",
    Step.PRECOMMIT: "precommit",
    Step.DECIDED: "decided",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsensusStatus:
    """A snapshot for pages and metrics."""

    height: Height
    """The height being decided: one above the last committed."""
    round: Round
    step: StepName
    locked: Digest | None
    pending: int
    """Messages waiting to be handled."""
    last_decided: Height
    behind: int
    """Heights that others are known to have decided and we have not committed."""
    abstaining: bool
    """What was signed at this height is no longer known; this validator follows and does not vote until the next."""
    halted: str | None
    """Why it stopped; None while it runs."""


def status_of(
    state: State, last_decided: Height, known: Height, *, pending: int, abstaining: bool, halted: str | None
) -> ConsensusStatus:
    """The snapshot of a driver at `state`, where others are known to have decided `known`."""
    return ConsensusStatus(
        height=state.height,
        round=state.round,
        step="halted" if halted is not None else STEP_NAMES[state.step],
        locked=state.locked.value if state.locked is not None else None,
        pending=pending,
        last_decided=last_decided,
        behind=max(0, known - last_decided),
        abstaining=abstaining,
        halted=halted,
    )
