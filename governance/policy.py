"""The policy in force: thresholds that answers must pass, weights of the hybrid score, and the rubric behind it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.observation import DimensionScore, ScoreLeaf
from nsllm.consensus.validators import ValidatorSet
from nsllm.governance.errors import PolicyError
from nsllm.ids import PPM_ONE, Digest, DigestField, NameField, Ppm, PpmField


class RuleSet(Value, frozen=True, kw_only=True):
    """A pinned set of rules or weights of a layer, such as the toxicity head."""

    name: NameField
    digest: DigestField


class Rubric(Value, frozen=True, kw_only=True):
    """What validators score with, everything pinned by digest."""

    scorer_model: DigestField
    encoder: DigestField
    dimensions: Annotated[tuple[NameField, ...], Meta(min_length=1, max_length=16)]
    """Ascending; the names that every observation carries."""
    rule_sets: Annotated[tuple[RuleSet, ...], Meta(max_length=16)] = ()

    def digest(self) -> Digest:
        """What observations are bound to; the same rubric has the same digest on every network."""
        return canonical.digest("rubric", b"", self)


class Policy(Value, frozen=True, kw_only=True):
    """Thresholds and weights, in ppm. Weights apply at use: certified leaves hold dimensions, not the sum."""

    rubric: Rubric
    weights: Annotated[tuple[DimensionScore, ...], Meta(min_length=1, max_length=16)]
    """Weight of each dimension of the rubric, ascending by name; they sum to 1,000,000."""
    toxicity_max_ppm: PpmField
    """Text at or above this is withheld (input and output)."""
    coherence_min_ppm: PpmField
    """Answers below this are not published."""
    reuse_min_ppm: PpmField
    """Certified records whose hybrid score is below this are not served from the cache."""
    evidence_heights: Annotated[int, Meta(ge=1, le=2**32)] = 10_000
    """So many heights after an offence, evidence of it is admitted no more."""
    approvals: Annotated[int, Meta(ge=0, le=256)] = 0
    """Validators that must approve a motion; 0 stands for more than half of them."""

    def __post_init__(self) -> None:
        names = tuple(weight.name for weight in self.weights)
        if names != self.rubric.dimensions or list(names) != sorted(set(names)):
            raise ValueError("weights name each dimension of the rubric once, ascending")
        if sum(weight.ppm for weight in self.weights) != PPM_ONE:
            raise ValueError("weights sum to 1,000,000")

    def approvals_needed(self, validators: ValidatorSet) -> int:
        """How many of these validators carry a motion; all of them if the policy asks for more than there are."""
        return min(self.approvals, validators.size) if self.approvals else validators.size // 2 + 1

    def digest(self) -> Digest:
        """The header's `policy_digest`."""
        return canonical.digest("policy", b"", self)

    def hybrid_ppm(self, leaf: ScoreLeaf) -> Ppm:
        """Weighted sum of a leaf's dimensions, rounded down.

        Raises:
            PolicyError: the leaf was scored under another rubric, or its dimensions are not the rubric's.
        """
        if leaf.rubric != self.rubric.digest():
            raise PolicyError(f"scores under rubric {leaf.rubric.hex()[:16]}, the policy has another")
        if tuple(score.name for score in leaf.scores) != self.rubric.dimensions:
            raise PolicyError(f"{len(leaf.scores)} scores that are not the rubric's {len(self.rubric.dimensions)}")
        total = sum(w.ppm * s.ppm for w, s in zip(self.weights, leaf.scores, strict=True))
        return Ppm(total // PPM_ONE)
