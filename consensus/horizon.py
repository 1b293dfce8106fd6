"""The horizon: what is known of heights above the one being decided, in bounded space.

A vote or proposal for height h shows that its signer has committed h-1. Once f+1 validators have shown that, or a
certificate has, h-1 is decided for certain. Messages for the very next height are kept until we get there.
"""

from __future__ import annotations

from typing import Final

from nsllm.consensus.certificate import Certificate
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Address, Height

MAX_KEPT: Final = 8
"""Messages of one signer for the next height: one proposal, and votes of the first rounds."""


class Horizon:
    """Evidence of later heights, and the next height's first messages."""

    def __init__(self, validators: ValidatorSet, me: Address) -> None:
        self._honest = validators.faults + 1
        self._me = me
        self._seen: dict[Address, Height] = {}
        self._kept: dict[Address, list[tuple[Address, Vote | Proposal]]] = {}
        self._decided = Height(0)
        self._certificate: Certificate | None = None

    @property
    def decided(self) -> Height:
        """Highest height that is known to be decided by others."""
        return self._decided

    @property
    def certificate(self) -> Certificate | None:
        """The highest certificate that was shown to us."""
        return self._certificate

    def is_news(self, message: Vote | Proposal, current: Height) -> bool:
        """Whether a later height's message, if genuine, would tell us something: only then is it worth a check."""
        signer = _signer(message)
        if signer == self._me:
            return False
        return message.height > self._seen.get(signer, -1) or (
            message.height == current + 1 and self._has_room(message)
        )

    def is_better(self, certificate: Certificate) -> bool:
        """Whether a certificate, if genuine, is of a greater height than the one we have."""
        return self._certificate is None or certificate.header.height > self._certificate.header.height

    def note(self, sender: Address, message: Vote | Proposal, current: Height) -> None:
        """Take in a checked message of a height above `current`."""
        signer = _signer(message)
        self._seen[signer] = max(message.height, self._seen.get(signer, Height(0)))
        heights = sorted(self._seen.values(), reverse=True)
        if len(heights) >= self._honest:
            self._decided = max(self._decided, Height(heights[self._honest - 1] - 1))
        if message.height == current + 1 and self._has_room(message):
            self._kept.setdefault(signer, []).append((sender, message))

    def prove(self, certificate: Certificate) -> None:
        """Take in a checked certificate."""
        if self.is_better(certificate):
            self._certificate = certificate
        self._decided = max(self._decided, certificate.header.height)

    def kept_of(self, signer: Address) -> list[Vote | Proposal]:
        """The kept messages of one signer."""
        return [message for _, message in self._kept.get(signer, [])]

    def release(self, height: Height) -> list[tuple[Address, Vote | Proposal]]:
        """The kept messages of `height`, where we have arrived, by signer; whatever else was kept is forgotten."""
        kept = [item for signer in sorted(self._kept) for item in self._kept[signer] if item[1].height == height]
        self._kept.clear()
        return kept

    def _has_room(self, message: Vote | Proposal) -> bool:
        kept = self._kept.get(_signer(message), [])
        return len(kept) < MAX_KEPT and not any(_same_slot(message, known) for _, known in kept)


def _signer(message: Vote | Proposal) -> Address:
    return message.validator if isinstance(message, Vote) else message.proposer


def _same_slot(one: Vote | Proposal, other: Vote | Proposal) -> bool:
    if isinstance(one, Vote) and isinstance(other, Vote):
        return (one.kind, one.height, one.round) == (other.kind, other.height, other.round)
    return isinstance(one, Proposal) and isinstance(other, Proposal)
