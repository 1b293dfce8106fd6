"""Built-in plugin `toxicity`: the safety layer of both stages, and the dimension `safety`."""

from __future__ import annotations

from typing import Any

from nsllm import __version__
from nsllm.governance.toxicity import default_head
from nsllm.governance.validation import TOXICITY
from nsllm.ids import PPM_ONE
from nsllm.plugins.hookspecs import hookimpl


class ToxicityPlugin:
    """Holds the head that ships with this version; the policy has the limit."""

    def __init__(self) -> None:
        self._head = default_head()

    @hookimpl
    def nsllm_info(self) -> dict[str, str]:
        """Who this is."""
        return {
            "name": TOXICITY,
            "version": __version__,
            "description": "toxic wording and harmful meaning, by two linear heads",
        }

    @hookimpl
    def nsllm_validate(self, text: str, embedding: bytes) -> list[dict[str, Any]]:
        """One safety measure."""
        return [{"name": TOXICITY, "kind": "safety", "ppm": int(self._head.toxicity_ppm(text, embedding))}]

    @hookimpl
    def nsllm_score(self, answer: str, features: dict[str, Any]) -> dict[str, int]:
        """Safety is what toxicity leaves."""
        return {"safety": PPM_ONE - self._head.toxicity_ppm(answer, features["embedding"])}
