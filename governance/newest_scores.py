"""Proofs of the scores that were certified last, from memory: whoever waited for them asks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nsllm import merkle
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.certified import Inclusion
from nsllm.consensus.observation import ScoreLeaf
from nsllm.ids import Digest
from nsllm.merkle import NodeSource

BLOCKS: Final = 8
"""Blocks that are remembered: about half a kilobyte a record, of which a block has 1,024 at most."""


class NewestScores:
    """Scores of the newest blocks by record."""

    def __init__(self) -> None:
        self._blocks: list[_BlockScores] = []
        """Oldest first."""

    def add(self, decided: DecidedBlock, leaves: Sequence[ScoreLeaf], hashes: Sequence[Digest]) -> None:
        """A block was committed, which certified these leaves; `hashes` are theirs in the score tree."""
        if leaves:
            self._blocks = [*self._blocks[1 - BLOCKS :], _BlockScores(decided.certificate, leaves, hashes)]

    def find(self, record: Digest) -> tuple[ScoreLeaf, Inclusion, Certificate] | None:
        """Scores of a record, their inclusion in the header's `scores_root`, and its certificate; None if not here."""
        for block in reversed(self._blocks):
            position = block.positions.get(record)
            if position is not None:
                return block.leaves[position], block.inclusion(position), block.certificate
        return None


class _BlockScores:
    """One block's; the tree over its leaves is made when it is asked for."""

    def __init__(self, certificate: Certificate, leaves: Sequence[ScoreLeaf], hashes: Sequence[Digest]) -> None:
        self.certificate = certificate
        self.leaves = leaves
        self._hashes = hashes
        self.positions = {leaf.record: position for position, leaf in enumerate(leaves)}
        self._tree: NodeSource | None = None

    def inclusion(self, position: int) -> Inclusion:
        if self._tree is None:
            self._tree = merkle.complete_nodes(self._hashes)
        size = len(self.leaves)
        return Inclusion(index=position, size=size, path=merkle.inclusion_path_from(self._tree, position, size))
