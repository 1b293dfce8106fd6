"""The policy that a new network starts with; every number says where it was measured."""

from __future__ import annotations

from functools import cache
from typing import Final

from nsllm.consensus.observation import DimensionScore
from nsllm.governance import coherence, computation, toxicity
from nsllm.governance.policy import Policy, Rubric, RuleSet
from nsllm.ids import Digest, Ppm

TOXICITY_MAX_PPM: Final = Ppm(800_000)
"""The toxicity heads are calibrated to this limit; `benchmarks/train_toxicity.py` prints what it lets through."""
COHERENCE_MIN_PPM: Final = Ppm(350_000)
"""Of SmolLM2's benign answers of up to 128 tokens 98 % lie above (378 answers); of shuffled ones 5 %, of sentences said
four times over 21 %, of loops and random words none. Measured as in `benchmarks/score_separation.py`."""
REUSE_MIN_PPM: Final = Ppm(600_000)
"""Same answers, with the weights below: 97 % lie above; of off-topic ones 10 %, of shuffled ones 4 %, of repeated ones
22 %, of loops and random words none."""
WEIGHTS_PPM: Final = {
    "coherence": 540_000,
    "computation": 0,
    "relevance": 270_000,
    "safety": 90_000,
    "support": 100_000,
}
"""Of the weights tried, these let the fewest spoilt answers past a reuse limit that 97 % of benign ones pass. Safety
weighs little, because the toxicity limit has already withheld what is toxic. Computation is no quality that could make
up for another: it has a floor in place of a weight. Support is left out where nothing is cited, and the others share
its weight as 6 : 3 : 1. It weighs little: it tells passages of another topic, but hardly a changed number."""
OPTIONAL: Final = ("computation", "support")
"""Not every validator has every model; not every answer cites evidence."""
FLOORS_PPM: Final = {"computation": computation.PASS_PPM}
"""What the error rates in `docs/dimensions.md` are measured at."""


@cache
def built_in_rule_sets() -> tuple[RuleSet, ...]:
    """What the built-in layers judge with: the gates and the toxicity head of this version."""
    return (
        RuleSet(name="coherence", digest=coherence.RULES.digest()),
        RuleSet(name="computation", digest=computation.RULES.digest()),
        RuleSet(name="toxicity", digest=toxicity.default_head().digest),
    )


def default_policy(scorer_model: Digest, encoder: Digest) -> Policy:
    """The default policy over the default rubric.

    Args:
        scorer_model: digest of the text model that validators judge with.
        encoder: digest of the embedding model.
    """
    rubric = Rubric(
        scorer_model=scorer_model,
        encoder=encoder,
        dimensions=tuple(WEIGHTS_PPM),
        rule_sets=built_in_rule_sets(),
        optional=OPTIONAL,
    )
    return Policy(
        rubric=rubric,
        weights=tuple(DimensionScore(name=name, ppm=Ppm(ppm)) for name, ppm in WEIGHTS_PPM.items()),
        floors=tuple(DimensionScore(name=name, ppm=Ppm(ppm)) for name, ppm in FLOORS_PPM.items()),
        toxicity_max_ppm=TOXICITY_MAX_PPM,
        coherence_min_ppm=COHERENCE_MIN_PPM,
        reuse_min_ppm=REUSE_MIN_PPM,
    )
