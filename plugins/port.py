"""The PluginPort: what the peer asks of its layers and scorers, whatever process they run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.policy import RuleSet
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.ids import Ppm


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, for the status page."""

    name: str
    version: str
    description: str
    origin: str
    """`built-in`, or the distribution that installed it."""
    state: Literal["starting", "ready", "restarting", "disabled"]
    reason: str = ""
    """Why it is disabled or restarting; never content."""
    restarts: int = 0


class PluginPort(Protocol):
    """The built-in plugins and those that the operator enabled by name.

    Implementations: `nsllm.plugins.host.PluginHost` (worker processes) and
    `nsllm.plugins.inline.InlinePluginHost` (built-in plugins only, same process, for simulations).
    Satisfies `nsllm.governance.validator.ValidationLayers` and `nsllm.governance.hybrid_score.AnswerScorers`.
    """

    async def validate(self, item: TextItem) -> tuple[Measure, ...]:
        """What every layer measures of a text, built-in layers first.

        Raises:
            SafetyUnavailableError: the built-in layers cannot answer.
        """
        ...

    async def score(self, item: AnswerItem) -> Mapping[str, Ppm]:
        """Every dimension that somebody measured of an answer; a plugin's carry its name in front.

        Raises:
            SafetyUnavailableError: the built-in scorers cannot answer.
        """
        ...

    def rule_sets(self) -> tuple[RuleSet, ...]:
        """Rules and weights of the built-in plugins, as a rubric pins them."""
        ...

    def info(self) -> tuple[PluginInfo, ...]:
        """Every plugin with its present state; cheap."""
        ...
