"""Built-in plugin `coherence`: keeps noise from publication, and measures `coherence`, `relevance` and `support`."""

from __future__ import annotations

from typing import Any

import msgspec

from nsllm import __version__
from nsllm.governance import coherence as rules
from nsllm.governance.features import AnswerFeatures
from nsllm.governance.validation import COHERENCE
from nsllm.plugins.hookspecs import hookimpl


class CoherencePlugin:
    """Gates over the features that the peer measured; the policy has the limit."""

    @hookimpl
    def nsllm_info(self) -> dict[str, str]:
        """Who this is."""
        return {
            "name": COHERENCE,
            "version": __version__,
            "description": "fluency, repetition, relevance and support of answers, from the scorer model's likelihoods",
        }

    @hookimpl
    def nsllm_validate(self, stage: str, text: str, features: dict[str, Any] | None) -> list[dict[str, Any]]:
        """One quality measure of an answer that may be published; nothing else has likelihoods."""
        if stage != "output" or features is None:
            return []
        return [{"name": COHERENCE, "kind": "quality", "ppm": int(rules.coherence_ppm(text, _typed(features)))}]

    @hookimpl
    def nsllm_score(self, answer: str, features: dict[str, Any]) -> dict[str, int]:
        """Coherence and relevance; support where the answer cites evidence."""
        measured = _typed(features)
        scores = {
            "coherence": int(rules.coherence_ppm(answer, measured)),
            "relevance": int(rules.relevance_ppm(measured)),
        }
        support = rules.support_ppm(measured)
        return scores if support is None else {**scores, "support": int(support)}


def _typed(features: dict[str, Any]) -> AnswerFeatures:
    return msgspec.convert(features, AnswerFeatures, builtin_types=(bytes,))
