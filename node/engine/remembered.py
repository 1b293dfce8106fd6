"""What models said of an answer, remembered for the next one that asks in this peer.

A peer that publishes an answer judges it first, and once more as a validator, beside the others: the same models, the
same tokens. What they say is a function of what is asked, so it is not computed again while it is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Final, TypeVar

from nsllm.governance.ports import JUDGED_TOKENS, Claim, JudgeModels, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.record import Message

TEXTS: Final = 256
"""Texts whose vectors are remembered, 12 kB each."""
CLAIMS: Final = 64
"""Answers whose traces are: those between their publication and their score."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered:
    """Judge with `models`, remembering vectors and traces. Implements `JudgeModels`."""

    def __init__(self, models: JudgeModels) -> None:
        self._models = models
        self._vectors: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        self._traces: OrderedDict[tuple[Claim, tuple[Message, ...]], Trace] = OrderedDict()

    def judging(self, scorer: Digest) -> JudgeModels | None:
        """These models, if they judge with this one; what judges with others of them remembers nothing."""
        found = self._models.judging(scorer)
        return self if found is self._models else found

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors; of texts that are not remembered in one call."""
        found = [_recall(self._vectors, text) for text in texts]
        known = [vector for vector in found if vector is not None]
        if len(known) == len(found):
            return known
        unknown = list(dict.fromkeys([text for text, vector in zip(texts, found, strict=True) if vector is None]))
        new = dict(zip(unknown, await self._models.embed(unknown), strict=True))
        for text, vector in new.items():
            _keep(self._vectors, text, vector, TEXTS)
        return [new[text] if vector is None else vector for text, vector in zip(texts, found, strict=True)]

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """As the models say, each time."""
        return await self._models.likelihoods(items, most_tokens=most_tokens)

    def holds(self, model: Digest) -> bool:
        """Whether the models hold it now."""
        return self._models.holds(model)

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """What came of reading the answer, once for each claim."""
        asked = (claim, beside)
        trace = _recall(self._traces, asked)
        if trace is None:
            trace = await self._models.retrace(claim, beside=beside)
            _keep(self._traces, asked, trace, CLAIMS)
        return trace


def _recall(kept: OrderedDict[K, V], key: K) -> V | None:
    found = kept.get(key)
    if found is not None:
        kept.move_to_end(key)
    return found


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
