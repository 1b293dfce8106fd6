"""What a block's body settles by itself, whatever block it stands on: scores, and the entries that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nsllm import canonical, merkle
from nsllm.consensus.block import Body
from nsllm.consensus.observation import ScoreLeaf, Unscored
from nsllm.consensus.settlement import Settlement, Terms, settle
from nsllm.governance.log_entry import certified_entry_of, unscored_entry
from nsllm.ids import Digest


@dataclass(frozen=True, slots=True)
class SettledBody:
    """What a body says by itself, whatever block it stands on."""

    leaves: tuple[ScoreLeaf, ...]
    unscored: tuple[Unscored, ...]
    leaf_hashes: tuple[Digest, ...]
    """Of the leaves, in the tree that `scores_root` is the root of."""
    scores_root: Digest
    entries: tuple[bytes, ...]
    """Of the network log, in order: scores, records without any, then what else the body holds."""
    hashes: tuple[Digest, ...]
    """Of the entries, as leaves of the log."""


def settled_body(body: Body, terms: Terms) -> SettledBody:
    """Scores and log entries that a body gives under the terms of its epoch.

    Raises:
        ObservationError: see `settlement.settle`.
    """
    return _settled(_Question(body, body.digest(terms.network), terms))


class _Question:
    """What determines how a body is settled: its digest and the terms. The body itself is only read."""

    __slots__ = ("about", "body")

    def __init__(self, body: Body, digest: Digest, terms: Terms) -> None:
        self.about = (digest, terms)
        self.body: Body | None = body
        """No part of the question, and let go once it is answered."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and other.about == self.about

    def __hash__(self) -> int:
        return hash(self.about)


@lru_cache(maxsize=8)
def _settled(question: _Question) -> SettledBody:
    """Pure in `question.about`, so the newest results are remembered: a simulation's peers all ask the same.

    What raises is computed again when it is asked again.
    """
    body, question.body = question.body, None
    if body is None:
        raise RuntimeError("a question is asked once")
    terms = question.about[1]
    settlement: Settlement = settle(body.subjects, body.unscored, body.batches, terms)
    encoded = [canonical.encode(leaf) for leaf in settlement.leaves]
    leaf_hashes = tuple([merkle.leaf_hash(data) for data in encoded])
    entries = (
        *map(certified_entry_of, encoded),
        *(unscored_entry(unscored) for unscored in settlement.unscored),
        *body.entries,
    )
    return SettledBody(
        leaves=settlement.leaves,
        unscored=settlement.unscored,
        leaf_hashes=leaf_hashes,
        scores_root=merkle.root(leaf_hashes),
        entries=entries,
        hashes=tuple(merkle.leaf_hash(entry) for entry in entries),
    )
