"""The signer guard of a schedule: what `nsllm.consensus.guard` remembers and refuses, without key and file."""

from __future__ import annotations

from nsllm.consensus.guard import SIGN_STEPS
from nsllm.consensus.vote import Choice, Proposal, Vote, keeps_lock


class MemoryGuard:
    """Survives power cuts: what it remembers is on disk before a signature leaves."""

    def __init__(self) -> None:
        self.last: Vote | Proposal | None = None
        """What was signed last."""
        self._lock: Choice | None = None

    def takes(self, message: Vote | Proposal) -> bool:
        """Whether it signs: only what comes later than the last, or that again, and no prevote against the lock."""
        last = self.last
        held = self._lock if last is not None and last.height == message.height else None
        if isinstance(message, Vote):
            if message.kind == "prevote":
                if not _keeps(held, message):
                    return False
            elif message.value is not None:
                held = Choice(round=message.round, value=message.value)
        if last is not None and message != last and _place(message) <= _place(last):
            return False
        self.last, self._lock = message, held
        return True


def _keeps(held: Choice | None, vote: Vote) -> bool:
    """A prevote states the lock that was signed here, or a later one, and is not against it."""
    stated = vote.lock
    known = held is None or held.round >= vote.round or (stated is not None and stated.round > held.round)
    return keeps_lock(vote.value, stated, vote.valid_round) and (known or stated == held)


def _place(message: Vote | Proposal) -> tuple[int, int, int]:
    return (message.height, message.round, SIGN_STEPS[message.kind if isinstance(message, Vote) else "proposal"])
