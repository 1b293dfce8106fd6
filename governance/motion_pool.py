"""Motions that wait for approvals or, once carried, for a block. In memory and bounded; `motion_store` keeps them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from nsllm.consensus.registry import RegistryState
from nsllm.governance.block_rules import MAX_BLOCK_MOTIONS, BlockRules
from nsllm.governance.errors import MotionError
from nsllm.governance.motion import MAX_TERM_MS, GovernanceTransaction, check_approval, check_possible, merge
from nsllm.ids import Digest, TimeMs, hex0x

PER_PROPOSER: Final = 8
"""Motions of one validator that wait; a further one is refused until one of them is decided or expires."""
LEAST_TERM_MS: Final = 5_000
"""A new motion that expires sooner is refused: nobody could approve it, and each costs a write to the disk."""


class MotionPool:
    """Motions by digest, each with the approvals that came so far."""

    def __init__(
        self, rules: BlockRules, decided: Iterable[Digest], kept: Iterable[GovernanceTransaction] = ()
    ) -> None:
        """Begin with what is on disk.

        Args:
            rules: whose approvals count, and how many are needed.
            decided: motions that blocks hold and that have not expired.
            kept: motions that waited before, oldest first, checked when they came.
        """
        self._rules = rules
        self._decided = set(decided)
        self._waiting: OrderedDict[Digest, GovernanceTransaction] = OrderedDict()
        for transaction in kept:
            self.keep(transaction)

    def merged(self, transaction: GovernanceTransaction, time_ms: TimeMs) -> GovernanceTransaction | None:
        """A motion with all of its approvals, those that came before too; None if nothing of it is new.

        Raises:
            MotionError: expired or about to, not approved by its proposer, not a validator's, or its proposer has too
                many.
            SignatureError: an approval that its validator did not sign.
        """
        motion, network = transaction.motion, self._rules.network
        digest = motion.digest(network)
        if digest in self._decided:
            return None
        self._expire(time_ms)
        if time_ms >= motion.expires_ms:
            raise MotionError(f"the motion expired at {motion.expires_ms}, now is {time_ms}")
        if motion.expires_ms > time_ms + MAX_TERM_MS:
            raise MotionError(f"the motion expires at {motion.expires_ms}, more than {MAX_TERM_MS} ms after {time_ms}")
        held = self._waiting.get(digest)
        known = held.approvals if held is not None else ()
        fresh = [approval for approval in transaction.approvals if approval not in known]
        for approval in fresh:
            check_approval(network, motion, approval, self._rules.validators)
        if held is None:
            if motion.expires_ms < time_ms + LEAST_TERM_MS:
                raise MotionError(f"the motion expires at {motion.expires_ms}, within {LEAST_TERM_MS} ms of {time_ms}")
            if all(approval.validator != motion.proposer for approval in fresh):
                raise MotionError(f"the proposer {hex0x(motion.proposer)} did not approve its own motion")
            if sum(other.motion.proposer == motion.proposer for other in self._waiting.values()) >= PER_PROPOSER:
                raise MotionError(f"{PER_PROPOSER} motions of {hex0x(motion.proposer)} wait already")
        approvals = merge(known, fresh)
        return GovernanceTransaction(motion=motion, approvals=approvals) if approvals != known else None

    def keep(self, transaction: GovernanceTransaction) -> None:
        """Let a motion wait, as `merged` gave it, unless it was decided meanwhile; former validators count no more."""
        digest = transaction.motion.digest(self._rules.network)
        approvals = tuple(each for each in transaction.approvals if each.validator in self._rules.validators)
        by_proposer = any(each.validator == transaction.motion.proposer for each in approvals)
        if by_proposer and digest not in self._decided:
            self._waiting[digest] = GovernanceTransaction(motion=transaction.motion, approvals=approvals)
        else:
            self._waiting.pop(digest, None)

    def get(self, digest: Digest) -> GovernanceTransaction | None:
        """A waiting motion with its approvals."""
        return self._waiting.get(digest)

    def waiting(self, time_ms: TimeMs) -> tuple[GovernanceTransaction, ...]:
        """Motions that wait, oldest first."""
        self._expire(time_ms)
        return tuple(self._waiting.values())

    def ready(self, registry: RegistryState, time_ms: TimeMs) -> tuple[GovernanceTransaction, ...]:
        """Carried motions that can be done after the last block, ascending by digest: at most a block's worth."""
        self._expire(time_ms)
        needed = self._rules.policy.approvals_needed(self._rules.validators)
        found: list[GovernanceTransaction] = []
        for digest in sorted(self._waiting):
            transaction = self._waiting[digest]
            if len(transaction.approvals) < needed or len(found) == MAX_BLOCK_MOTIONS:
                continue
            try:
                check_possible(transaction.motion.action, registry, self._rules.policy)
            except MotionError:
                continue
            found.append(transaction)
        return tuple(found)

    def decided(self, digest: Digest) -> None:
        """A block holds the motion."""
        self._waiting.pop(digest, None)
        self._decided.add(digest)

    def begin_epoch(self, rules: BlockRules) -> None:
        """Other validators are in force: their approvals count, those of former ones no longer."""
        self._rules = rules
        for transaction in list(self._waiting.values()):
            self.keep(transaction)

    def _expire(self, time_ms: TimeMs) -> None:
        for digest, transaction in list(self._waiting.items()):
            if transaction.motion.expires_ms <= time_ms:
                del self._waiting[digest]
