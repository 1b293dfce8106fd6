"""What of a block's batches was checked when it came by itself, so that the block's check need not repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nsllm.consensus.batch import Excerpt, SignedCommit
from nsllm.consensus.block import Body
from nsllm.consensus.errors import ObservationError
from nsllm.governance.observation_pool import ObservationPool


@dataclass(frozen=True, slots=True)
class Checked:
    """Parts of one body, told by their identity: the body is looked at elsewhere while the pool goes on."""

    commits: frozenset[int] = frozenset()
    """Whose signature holds."""
    excerpts: frozenset[int] = frozenset()
    """Whose rows open what was committed to."""

    @classmethod
    def of(cls, body: Body, pool: ObservationPool) -> Self:
        """What the pool holds of a body. Of a malformed one nothing: its check says what is wrong."""
        held = [each for each in body.batches if pool.holds(each.signed)]
        try:
            scored = {subject.record: subject for subject in body.scored}
            opened = [each for each in held if pool.has_opened(each, scored)]
        except ObservationError:
            return cls()
        return cls(frozenset(id(each.signed) for each in held), frozenset(map(id, opened)))

    def signed(self, commit: SignedCommit) -> bool:
        """Was this very commit's signature checked?"""
        return id(commit) in self.commits

    def opened(self, excerpt: Excerpt) -> bool:
        """Was each of the excerpt's rows checked against its commit?"""
        return id(excerpt) in self.excerpts
