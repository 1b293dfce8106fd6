"""Layers measure, the policy judges: safety withholds, quality only keeps from publication."""

from __future__ import annotations

import pytest

from nsllm.governance.defaults import default_policy
from nsllm.governance.errors import SafetyUnavailableError
from nsllm.governance.validation import Measure, judge
from nsllm.ids import Digest

POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))


def toxicity(ppm):
    return Measure(layer="toxicity", kind="safety", ppm=ppm)


def coherence(ppm):
    return Measure(layer="coherence", kind="quality", ppm=ppm)


def plugin(kind, ppm, limit_ppm):
    return Measure(layer="shouting.capitals", kind=kind, ppm=ppm, limit_ppm=limit_ppm, note="share of capitals")


@pytest.mark.parametrize(
    ("measures", "withheld", "publishable"),
    [
        ([toxicity(10_000), coherence(900_000)], False, True),
        ([toxicity(799_999)], False, True),
        ([toxicity(800_000), coherence(900_000)], True, False),
        ([toxicity(10_000), coherence(349_999)], False, False),
        ([toxicity(10_000), coherence(350_000)], False, True),
        ([toxicity(10_000), plugin("safety", 700_000, 700_000)], True, False),
        ([toxicity(10_000), plugin("quality", 100_000, 200_000)], False, False),
        ([toxicity(10_000), plugin("safety", 1_000_000, None)], False, True),
    ],
    ids=[
        "good",
        "just below",
        "toxic",
        "incoherent",
        "coherent enough",
        "plugin withholds",
        "plugin holds back",
        "report",
    ],
)
def test_what_becomes_of_a_text(measures, withheld, publishable):
    decision = judge("output", measures, POLICY)
    assert (decision.withheld, decision.publishable) == (withheld, publishable)
    assert bool(decision.reason) == (not publishable)


def test_the_reason_names_layer_measure_and_limit():
    assert (
        judge("input", [toxicity(913_000)], POLICY).reason == "layer toxicity measured 0.913, the limit is below 0.800"
    )
    reason = judge("output", [toxicity(0), coherence(120_000)], POLICY).reason
    assert reason == "layer coherence measured 0.120, the limit is at least 0.350"
    both = judge("output", [toxicity(900_000), coherence(120_000)], POLICY).reason
    assert "toxicity" in both
    assert "coherence" not in both


@pytest.mark.parametrize(
    "measures", [[], [coherence(900_000)], [Measure(layer="toxicity", kind="quality", ppm=900_000)]]
)
def test_without_the_toxicity_layer_nothing_passes(measures):
    with pytest.raises(SafetyUnavailableError, match="toxicity layer gave no measure at the input stage"):
        judge("input", measures, POLICY)


def test_a_layers_own_limit_cannot_loosen_the_policy():
    lax = Measure(layer="toxicity", kind="safety", ppm=900_000, limit_ppm=1_000_000)
    assert judge("output", [lax], POLICY).withheld


def test_the_worst_measure_of_a_layer_counts_and_order_does_not():
    measures = [toxicity(10_000), toxicity(950_000), coherence(900_000), plugin("safety", 800_000, 700_000)]
    decision = judge("output", measures, POLICY)
    assert decision == judge("output", measures[::-1], POLICY)
    assert [verdict.layer for verdict in decision.verdicts] == ["coherence", "shouting.capitals", "toxicity"]
    assert decision.verdicts[2].ppm == 950_000
