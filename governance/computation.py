"""Computation: could the claimed model have given this answer under the declared sampling? A trace to integer ppm.

A proof rather than a quality: whoever has the same model reads the published tokens again and finds how far its logits
would have to be bent to give them (`nsllm.node.engine.strain`). Other numbers (int8 for bfloat16, another kernel) bend
them a little, another model, temperature, seed or prompt bends them far.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.governance.coherence import Gate
from nsllm.governance.features import MICRO
from nsllm.governance.ports import Trace
from nsllm.ids import PPM_ONE, Digest, Ppm

DIMENSION: Final = "computation"
PASS_PPM: Final = 500_000
"""What the error rates are told for: an answer passes from here on."""


class Tolerance(Value, frozen=True, kw_only=True):
    """What is put down to numbers rather than to another making: gates that are half shut at their centres."""

    mean_strain: Gate
    """On the mean strain a token, logits."""
    worst_strain: Gate
    """On the strain of the token that strains most, logits."""


class ComputationRules(Value, frozen=True, kw_only=True):
    """Their digest is pinned in the rubric as rule set `computation`."""

    exact: Tolerance
    """Of an answer that is read again by the very kernels that it claims."""
    near: Tolerance
    """Of one that is read again in other numbers, or by kernels that do not give the same bits everywhere."""
    surprise: Gate
    """On the surprise a token that chance does not explain, nats."""
    sigmas: Annotated[int, Meta(ge=0, le=10)]
    """Standard deviations of the summed surprise that chance may explain."""

    def digest(self) -> Digest:
        """What the rubric pins."""
        return canonical.digest("computation-rules", b"", self)


RULES: Final = ComputationRules(
    exact=Tolerance(
        mean_strain=Gate(centre=10_000, scale=1_000),
        worst_strain=Gate(centre=94_000, scale=6_000),
    ),
    near=Tolerance(
        mean_strain=Gate(centre=130_000, scale=10_000),
        worst_strain=Gate(centre=3_000_000, scale=300_000),
    ),
    surprise=Gate(centre=500_000, scale=60_000),
    sigmas=4,
)
"""Fitted on answers of SmolLM2-135M (`benchmarks/computation_errors.py`).

Read again by the very kernels, 240 answers strained nothing. In other numbers the highest of 210 were: mean strain
0.083, worst strain 2, unexplained surprise 0.10; the lowest of models with 10 % noise on their weights 0.17 and 2.
"""


def computation_ppm(trace: Trace, rules: ComputationRules = RULES) -> Ppm:
    """How well an answer's tokens fit what its record says of their making; 0 for what cannot be."""
    if trace.fault is not None or trace.tokens < 1:
        return Ppm(0)
    tolerance = rules.exact if trace.exact else rules.near
    shut = (
        tolerance.mean_strain.open(_micro(trace.mean_strain)),
        tolerance.worst_strain.open(_micro(trace.worst_strain)),
        rules.surprise.open(_micro(unexplained(trace, rules))),
    )
    return Ppm(min(PPM_ONE, max(0, round(math.prod([1.0 - one for one in shut]) * PPM_ONE))))


def unexplained(trace: Trace, rules: ComputationRules = RULES) -> float:
    """Nats a token by which the answer is less likely, or likelier, than chance explains."""
    beyond = abs(trace.surprise) - rules.sigmas * math.sqrt(max(0.0, trace.variance))
    return beyond / max(1, trace.tokens) if not beyond <= 0 else 0.0  # NaN is explained by nothing


def _micro(value: float) -> int:
    if 0.0 <= value <= 30.0:
        return round(value * MICRO)
    return 0 if value < 0.0 else 30 * MICRO  # where it is no number, too
