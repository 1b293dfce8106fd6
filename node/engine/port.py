"""The Engine port: what the peer asks of whatever runs its models.

Implementations: `nsllm.node.engine.supervisor` (torch in a worker process) and
`nsllm.simulations.standin` (declares itself a stand-in). The engine sees conversations and parameters, never peers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from nsllm.governance.ports import JudgeModels
from nsllm.ids import Digest
from nsllm.record import Message, Sampling


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is loaded."""

    name: str
    digest: Digest
    """Over configuration, tokenizer, weights and dtype."""
    dtype: str
    context_tokens: int
    defaults: Sampling
    """The model card's sampling parameters."""
    stand_in: bool = False
    """True for a stand-in of a simulation: shown wherever the model is named."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine runs, for requests and the status page."""

    text: ModelInfo
    encoder: ModelInfo
    state: Literal["starting", "ready", "restarting", "failed"]
    restarts: int
    active: int
    """Generations that run now."""
    queued: int
    tokens_per_second: float | None
    """Over the last finished generations; None before the first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens as they come; `text` is complete UTF-8 and may be empty while a character is unfinished."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a generation."""

    finish_reason: Literal["stop", "length"]
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    """Effective parameters: every field set; the seed that was drawn if none was given."""


class Engine(JudgeModels, Protocol):
    """Runs the text model and the encoder. Embedding and judging never wait for a generation to end."""

    def info(self) -> EngineInfo:
        """Present state; cheap."""
        ...

    def generate(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece | Done]]:
        """Stream one answer; leaving the context cancels it in the worker within one step.

        Raises (on entering or while iterating):
            ContextOverflowError: the prompt plus one token does not fit the model's context; says both numbers.
            OverloadedError: the queue is full.
            EngineError: the worker died; it is being restarted.
        """
        ...

    async def embed_counted(self, texts: Sequence[str]) -> tuple[list[tuple[float, ...]], int]:
        """Unit vectors and how many tokens were read, for `/v1/embeddings`."""
        ...
