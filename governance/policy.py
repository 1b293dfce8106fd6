"""The policy in force: thresholds that answers must pass, weights of the hybrid score, and the rubric behind it."""

from __future__ import annotations

from functools import cached_property
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


class Rubric(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """What validators score with, everything pinned by digest."""

    scorer_model: DigestField
    encoder: DigestField
    dimensions: Annotated[tuple[NameField, ...], Meta(min_length=1, max_length=16)]
    """Ascending; the names that every observation carries."""
    rule_sets: Annotated[tuple[RuleSet, ...], Meta(max_length=16)] = ()
    optional: Annotated[tuple[NameField, ...], Meta(max_length=16)] = ()
    """Ascending; dimensions that a validator leaves out, and does not abstain, where it lacks what they need."""

    def __post_init__(self) -> None:
        if list(self.optional) != sorted(set(self.optional) & set(self.dimensions)):
            raise ValueError("optional dimensions are the rubric's, ascending")

    def covered(self, names: tuple[str, ...]) -> bool:
        """Whether these are all of its dimensions, in their order, but for optional ones."""
        wanted = tuple(name for name in self.dimensions if name in names or name not in self.optional)
        return bool(names) and names == wanted

    def digest(self) -> Digest:
        """What observations are bound to; the same rubric has the same digest on every network. Computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> Digest:
        return canonical.digest("rubric", b"", self)


class Policy(Value, frozen=True, kw_only=True):
    """Thresholds and weights, in ppm. Weights apply at use: certified leaves hold dimensions, not the sum."""

    rubric: Rubric
    weights: Annotated[tuple[DimensionScore, ...], Meta(min_length=1, max_length=16)]
    """Weight of each dimension of the rubric, ascending by name; they sum to 1,000,000."""
    floors: Annotated[tuple[DimensionScore, ...], Meta(max_length=16)] = ()
    """Ascending by name: a record with a dimension below its floor is worth nothing, whatever its other dimensions."""
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
    absence_minutes: Annotated[int, Meta(ge=0, le=2**32)] = 360
    """A validator leaves that did not show itself in so many minutes of deciding, see `consensus.attendance`; 0: none
    does."""

    def __post_init__(self) -> None:
        names = tuple(weight.name for weight in self.weights)
        if names != self.rubric.dimensions or list(names) != sorted(set(names)):
            raise ValueError("weights name each dimension of the rubric once, ascending")
        floored = [floor.name for floor in self.floors]
        if floored != sorted(set(floored) & set(names)):
            raise ValueError("floors name dimensions of the rubric, each once, ascending")
        if sum(weight.ppm for weight in self.weights) != PPM_ONE:
            raise ValueError("weights sum to 1,000,000")

    def approvals_needed(self, validators: ValidatorSet) -> int:
        """How many of these validators carry a motion; all of them if the policy asks for more than there are."""
        return min(self.approvals, validators.size) if self.approvals else validators.size // 2 + 1

    def digest(self) -> Digest:
        """The header's `policy_digest`."""
        return canonical.digest("policy", b"", self)

    def hybrid_ppm(self, leaf: ScoreLeaf) -> Ppm:
        """Weighted mean of a leaf's dimensions, rounded down; 0 if one is below its floor.

        A dimension that the leaf lacks takes no part: the others share its weight.

        Raises:
            PolicyError: the leaf was scored under another rubric, or its dimensions are not the rubric's.
        """
        if leaf.rubric != self.rubric.digest():
            raise PolicyError(f"scores under rubric {leaf.rubric.hex()[:16]}, the policy has another")
        scores = {score.name: score.ppm for score in leaf.scores}
        if not self.rubric.covered(tuple(score.name for score in leaf.scores)):
            raise PolicyError(f"{len(scores)} scores that are not the rubric's {len(self.rubric.dimensions)}")
        if any(scores.get(floor.name, PPM_ONE) < floor.ppm for floor in self.floors):
            return Ppm(0)
        total = sum(weight.ppm * scores.get(weight.name, 0) for weight in self.weights)
        return Ppm(total // (sum(weight.ppm for weight in self.weights if weight.name in scores) or PPM_ONE))
