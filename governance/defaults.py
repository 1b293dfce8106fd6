"""The policy that a new network starts with; every number says where it was measured."""

from __future__ import annotations

from typing import Final

from nsllm.consensus.observation import DimensionScore
from nsllm.governance import coherence, toxicity
from nsllm.governance.policy import Policy, Rubric, RuleSet
from nsllm.ids import Digest, Ppm

TOXICITY_MAX_PPM: Final = Ppm(800_000)
"""The heads are calibrated to this limit (`benchmarks/train_toxicity.py`)."""
COHERENCE_MIN_PPM: Final = Ppm(300_000)
REUSE_MIN_PPM: Final = Ppm(450_000)
WEIGHTS_PPM: Final = {"coherence": 500_000, "relevance": 300_000, "safety": 200_000}


def built_in_rule_sets() -> tuple[RuleSet, ...]:
    """What the built-in layers judge with: the coherence gates and the toxicity head of this version."""
    return (
        RuleSet(name="coherence", digest=coherence.RULES.digest()),
        RuleSet(name="toxicity", digest=toxicity.default_head().digest),
    )


def default_policy(scorer_model: Digest, encoder: Digest) -> Policy:
    """The default policy over the default rubric.

    Args:
        scorer_model: digest of the text model that validators judge with.
        encoder: digest of the embedding model.
    """
    rubric = Rubric(
        scorer_model=scorer_model, encoder=encoder, dimensions=tuple(WEIGHTS_PPM), rule_sets=built_in_rule_sets()
    )
    return Policy(
        rubric=rubric,
        weights=tuple(DimensionScore(name=name, ppm=Ppm(ppm)) for name, ppm in WEIGHTS_PPM.items()),
        toxicity_max_ppm=TOXICITY_MAX_PPM,
        coherence_min_ppm=COHERENCE_MIN_PPM,
        reuse_min_ppm=REUSE_MIN_PPM,
    )
