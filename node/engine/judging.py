"""Models that judge with another text model than the one of the start: the rubric in force may name it."""

from __future__ import annotations

from collections.abc import Sequence

from nsllm.governance.ports import JUDGED_TOKENS, Claim, JudgeModels, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.record import Message


class Judging:
    """The models of `house`, but that likelihoods are those of `scorer`. Implements `JudgeModels`."""

    def __init__(self, house: JudgeModels, scorer: JudgeModels) -> None:
        self._house = house
        self._scorer = scorer

    def judging(self, scorer: Digest) -> JudgeModels | None:
        """As the house has it."""
        return self._house.judging(scorer)

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors of the house's encoder."""
        return await self._house.embed(texts)

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """Likelihoods under the scorer."""
        return await self._scorer.likelihoods(items, most_tokens=most_tokens)

    def holds(self, model: Digest) -> bool:
        """Whether the house holds it."""
        return self._house.holds(model)

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """Read again by the house's model that the claim names."""
        return await self._house.retrace(claim, beside=beside)
