"""What the core wants done. The driver does it, in order; the core never learns how."""

from __future__ import annotations

from dataclasses import dataclass

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.inputs import TimerStep
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.vote import Proposal, Vote, VoteKind
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
class Equivocation:
    """Two messages that one honest validator never signs both."""

    first: Vote | Proposal
    second: Vote | Proposal


@dataclass(frozen=True, slots=True)
class Accuse:
    """Evidence against a validator, reported once a slot."""

    equivocation: Equivocation


@dataclass(frozen=True, slots=True)
class Decide:
    """The height is over: commit the block. The core accepts nothing more at this height."""

    decided: DecidedBlock


Effect = BuildValue | SignProposal | SignVote | Schedule | Relay | Accuse | Decide
