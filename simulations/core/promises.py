"""What must hold in a schedule, checked whenever a validator signs, accuses or decides.

Agreement; validity of decided blocks and of their certificates; no honest validator signs two things in one place, or
for an invalid block, or asks its guard for what that refuses; no honest validator is accused. With more than f
Byzantine validators agreement may break, and then f+1 of them must be named by what honest validators have in their
logs, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.evidence import Evidence, offence_of
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Digest
from nsllm.simulations.core.accountability import guilty
from nsllm.simulations.core.marks import is_refused
from nsllm.simulations.errors import InvariantError


class Promises:
    """Remembers what was signed, built and decided, and refuses what breaks a promise.

    Args:
        validators: of the schedule.
        byzantine: those that follow no algorithm.
    """

    def __init__(self, validators: ValidatorSet, byzantine: frozenset[Address]) -> None:
        self._validators = validators
        self._byzantine = byzantine
        self._tolerated = len(byzantine) <= (validators.size - 1) // 3
        self._quorum = (validators.size + (validators.size - 1) // 3) // 2 + 1
        self._signed: dict[tuple[Address, int, int, str], Digest | None] = {}
        self._precommits: set[tuple[Address, int, int, Digest]] = set()
        self._blocks: dict[Digest, Block] = {}
        self._first: dict[Digest, DecidedBlock] = {}
        self.decided: dict[int, Digest] = {}
        """By height."""
        self.broken: tuple[DecidedBlock, DecidedBlock] | None = None
        """Two decisions of one height, where more than f are Byzantine."""

    def built(self, block: Block) -> None:
        """Only what somebody built may be decided."""
        self._blocks[block.header.id()] = block

    def signed(self, signer: Address, message: Vote | Proposal) -> None:
        """No honest validator signs two different things in one place, nor for what the application refuses.

        Raises:
            InvariantError: one did.
        """
        value = message.value
        if isinstance(message, Vote):
            kind: str = message.kind
            if kind == "precommit" and value is not None:
                self._precommits.add((signer, message.height, message.round, value))
        else:
            kind = "proposal"
        if signer in self._byzantine:
            return
        block = self._blocks.get(value) if value is not None else None
        if block is not None and is_refused(block):
            raise InvariantError(f"validator {self._number(signer)} signed a {kind} for an invalid block")
        slot = (signer, message.height, message.round, kind)
        if self._signed.setdefault(slot, value) != value:
            raise InvariantError(f"validator {self._number(signer)} signed two {kind}s at {slot[1:3]}")

    def refused(self, signer: Address, message: Vote | Proposal) -> None:
        """No honest validator asks its guard for what it refuses to sign: the guard is the last line, not the first.

        Raises:
            InvariantError: one did.
        """
        kind = message.kind if isinstance(message, Vote) else "proposal"
        place = (message.height, message.round)
        raise InvariantError(f"validator {self._number(signer)} asks for a {kind} at {place} that its guard refuses")

    def accused(self, by: Address, evidence: Evidence) -> None:
        """No honest validator is accused by another.

        Raises:
            InvariantError: one was.
        """
        accused = offence_of(evidence).validator
        if by not in self._byzantine and accused not in self._byzantine:
            raise InvariantError(f"validator {self._number(by)} accuses {self._number(accused)}, which is honest")

    def committed(self, decided: DecidedBlock) -> None:
        """An honest validator's decision: agreement, validity of the block and of its certificate.

        Raises:
            InvariantError: names the height.
        """
        header = decided.block.header
        value, height = header.id(), header.height
        certificate = decided.certificate
        if self.decided.setdefault(height, value) != value:
            if self._tolerated:
                raise InvariantError(f"two blocks are decided at height {height}")
            self.broken = (self._first[self.decided[height]], decided)
        self._first.setdefault(value, decided)
        if value not in self._blocks or is_refused(decided.block):
            raise InvariantError(f"a block is decided that nobody built, or that is invalid, at height {height}")
        signers = [vote.validator for vote in certificate.precommits]
        if certificate.header.id() != value or signers != sorted(set(signers)):
            raise InvariantError(f"the certificate of height {height} is not in order")
        if len(signers) < self._quorum:
            raise InvariantError(f"the certificate of height {height} has {len(signers)} signers")
        for signer in signers:
            honest = signer not in self._byzantine
            if honest and (signer, height, certificate.round, value) not in self._precommits:
                raise InvariantError(f"the certificate of height {height} names one that did not sign it")

    def named(self, votes: Iterable[Vote]) -> frozenset[Address]:
        """Who is guilty by the votes in honest logs, after agreement broke.

        Raises:
            InvariantError: an honest validator is named, or too few of the others are.
        """
        found = guilty(votes, self._quorum)
        innocent = found - self._byzantine
        if innocent:
            raise InvariantError(f"honest validators {sorted(map(self._number, innocent))} look guilty")
        enough = (self._validators.size - 1) // 3 + 1
        if self.broken is not None and len(found) < enough:
            raise InvariantError(f"agreement broke, and only {len(found)} of {enough} guilty validators are named")
        return found

    def _number(self, address: Address) -> int:
        return self._validators.members.index(address)
