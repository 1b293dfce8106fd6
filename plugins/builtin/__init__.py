"""The built-in plugins: the toxicity layer and the coherence layer, through the same hooks as everybody's."""

from __future__ import annotations

from nsllm.plugins.builtin import coherence, toxicity
from nsllm.plugins.loaded import LoadedPlugin


def load_built_in() -> tuple[LoadedPlugin, ...]:
    """Both, ready to be called."""
    return (
        LoadedPlugin(coherence.CoherencePlugin(), name="coherence", built_in=True),
        LoadedPlugin(toxicity.ToxicityPlugin(), name="toxicity", built_in=True),
    )
