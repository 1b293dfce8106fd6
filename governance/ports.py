"""What governance needs from the rooms around it: models to judge with. `node` implements them over the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nsllm.record import Message


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text that it is made to read (teacher forcing)."""

    mean_logprob: float
    """Mean natural log-probability a token."""
    tokens: int
    """Tokens that were read, after truncation."""


class JudgeModels(Protocol):
    """The rubric's scorer model and encoder."""

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors, 384 floats a text."""
        ...

    async def likelihoods(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Likelihood]:
        """For each (conversation, answer): likelihood of the answer as the assistant's next turn.

        Answers longer than the context, or than 512 tokens, are truncated.
        """
        ...
