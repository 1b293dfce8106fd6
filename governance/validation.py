"""Validation: layers measure, the policy judges.

A safety measure at or above its limit withholds the text; a quality measure below its limit only keeps the answer from
being published and reused. Limits of the policy's own layers stand in the policy; a layer that this peer's operator
switched on brings a limit of its own, so a peer can be stricter than the network and never laxer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.governance.errors import SafetyUnavailableError
from nsllm.governance.policy import Policy
from nsllm.ids import NameField, Ppm, PpmField

Stage = Literal["input", "output"]
TOXICITY: Final = "toxicity"
COHERENCE: Final = "coherence"


class Measure(Value, frozen=True, kw_only=True):
    """One number that a layer measured of a text."""

    layer: NameField
    """The plugin that measured, `toxicity` or `coherence` for the built-in ones."""
    kind: Literal["safety", "quality"]
    """`safety`: higher is worse, may withhold. `quality`: lower is worse, may keep from publication."""
    ppm: PpmField
    limit_ppm: PpmField | None = None
    """The layer's own limit; ignored where the policy has one, None only reports."""
    note: Annotated[str, Meta(max_length=200)] = ""
    """What was measured, for people; never a part of the text."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure held against its limit."""

    layer: str
    kind: Literal["safety", "quality"]
    ppm: Ppm
    limit_ppm: Ppm | None
    passed: bool
    note: str = ""

    def reason(self) -> str:
        """Layer, measure and limit in one line.

        >>> Verdict(layer="toxicity", kind="safety", ppm=Ppm(910000), limit_ppm=Ppm(800000), passed=False).reason()
        'layer toxicity measured 0.910, the limit is below 0.800'
        """
        measured = f"layer {self.layer} measured {self.ppm / 1_000_000:.3f}"
        if self.limit_ppm is None:
            return f"{measured}, no limit is set"
        bound = "below" if self.kind == "safety" else "at least"
        tail = f" ({self.note})" if self.note else ""
        return f"{measured}, the limit is {bound} {self.limit_ppm / 1_000_000:.3f}{tail}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a text."""

    stage: Stage
    verdicts: tuple[Verdict, ...]
    """Ascending by layer."""

    @property
    def withheld(self) -> bool:
        """A safety layer failed: the text is not shown and the finish reason is `content_filter`."""
        return any(not verdict.passed for verdict in self.verdicts if verdict.kind == "safety")

    @property
    def publishable(self) -> bool:
        """Every layer passed: the answer may be published and reused."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def reason(self) -> str:
        """Why it was withheld, else why it stays unpublished, else empty."""
        failed = [verdict for verdict in self.verdicts if not verdict.passed]
        safety = [verdict for verdict in failed if verdict.kind == "safety"]
        return "; ".join(verdict.reason() for verdict in safety or failed)


def judge(stage: Stage, measures: Sequence[Measure], policy: Policy) -> Decision:
    """Hold every measure against its limit.

    Args:
        stage: `input` for what the user asks, `output` for an answer.
        measures: of all layers; at most one a layer counts, the worst.
        policy: the policy in force.

    Raises:
        SafetyUnavailableError: the toxicity layer's measure is missing: without it nothing passes.
    """
    limits = {TOXICITY: policy.toxicity_max_ppm, COHERENCE: policy.coherence_min_ppm}
    kinds = {TOXICITY: "safety", COHERENCE: "quality"}
    worst: dict[str, Verdict] = {}
    for measure in measures:
        if kinds.get(measure.layer, measure.kind) != measure.kind:
            continue  # a layer of the policy is judged by the policy's own kind only
        verdict = _held_against(measure, limits.get(measure.layer, measure.limit_ppm))
        known = worst.get(measure.layer)
        if known is None or _severity(verdict) > _severity(known):
            worst[measure.layer] = verdict
    if TOXICITY not in worst:
        raise SafetyUnavailableError(
            f"the {TOXICITY} layer gave no measure at the {stage} stage",
            hint="retry; see the plugins on the status page",
        )
    return Decision(stage=stage, verdicts=tuple(worst[layer] for layer in sorted(worst)))


def _held_against(measure: Measure, limit: Ppm | None) -> Verdict:
    if limit is None:
        passed = True
    elif measure.kind == "safety":
        passed = measure.ppm < limit
    else:
        passed = measure.ppm >= limit
    return Verdict(
        layer=measure.layer, kind=measure.kind, ppm=measure.ppm, limit_ppm=limit, passed=passed, note=measure.note
    )


def _severity(verdict: Verdict) -> tuple[bool, bool, int]:
    """Order of badness: failed before passed, safety before quality, then the measure itself."""
    worse = verdict.ppm if verdict.kind == "safety" else -verdict.ppm
    return (not verdict.passed, verdict.kind == "safety", worse)
