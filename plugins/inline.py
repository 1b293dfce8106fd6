"""InlinePluginHost: the built-in plugins in the caller's own process and turn. Simulations and tests use it.

It loads nothing from entry points, so third-party code stays out of the process here as well.
"""

from __future__ import annotations

import trio

from nsllm.governance.defaults import built_in_rule_sets
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.policy import RuleSet
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.ids import Ppm
from nsllm.plugins.builtin import load_built_in
from nsllm.plugins.port import PluginInfo


class InlinePluginHost:
    """Same hooks, same results, no processes; deterministic."""

    def __init__(self) -> None:
        self._plugins = load_built_in()

    async def validate(self, item: TextItem) -> tuple[Measure, ...]:
        """What the built-in layers measure."""
        await trio.lowlevel.checkpoint()
        return tuple(measure for plugin in self._plugins for measure in plugin.validate(item))

    async def score(self, item: AnswerItem) -> dict[str, Ppm]:
        """What the built-in scorers measure."""
        await trio.lowlevel.checkpoint()
        return {name: ppm for plugin in self._plugins for name, ppm in plugin.score(item).items()}

    def rule_sets(self) -> tuple[RuleSet, ...]:
        """Rules and weights of the built-in plugins."""
        return built_in_rule_sets()

    def info(self) -> tuple[PluginInfo, ...]:
        """Both plugins, always ready."""
        return tuple(
            PluginInfo(
                name=plugin.identity.name,
                version=plugin.identity.version,
                description=plugin.identity.description,
                origin="built-in",
                state="ready",
            )
            for plugin in self._plugins
        )
