"""What the core wants done. The driver does it, in order; the core never learns how."""

from __future__ import annotations

from dataclasses import dataclass

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.inputs import TimerStep
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.vote import Choice, Vote, VoteKind
from nsllm.ids import Digest, Round


@dataclass(frozen=True, slots=True)
class BuildValue:
    """The paper's getValue(): ask the application for a block, answer with `ValueBuilt`."""

    round: Round


@dataclass(frozen=True, slots=True)
class SignProposal:
    """Sign ⟨PROPOSAL, h, round, block, valid_round⟩, send it, feed it back as our own."""

    round: Round
    block: Block
    valid_round: Round | None
    polka: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class SignVote:
    """Sign a vote, send it, feed it back as our own. `value` None is nil."""

    kind: VoteKind
    round: Round
    value: Digest | None
    lock: Choice | None = None
    """Of a prevote: the lock that it is cast under."""
    valid_round: Round | None = None
    """Of a prevote for a value: valid round of its proposal."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Answer with `TimedOut(step, round)` after that step's timeout for that round."""

    step: TimerStep
    round: Round


@dataclass(frozen=True, slots=True)
class Relay:
    """Send this proof of the step just taken to everybody."""

    certificate: PolkaCertificate | RoundCertificate


@dataclass(frozen=True, slots=True)
class Accuse:
    """Two messages that an honest validator never signs both, reported once a slot."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Decide:
    """The height is over: commit the block. The core accepts nothing more at this height."""

    decided: DecidedBlock


Effect = BuildValue | SignProposal | SignVote | Schedule | Relay | Accuse | Decide
