"""What governance needs from the rooms around it: models to judge with. `node` implements them over the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from nsllm.ids import Digest
from nsllm.record import Message, Record, Request, Sampling

JUDGED_TOKENS: Final = 512
"""Tokens of an answer that likelihoods are taken over."""
HEAD_TOKENS: Final = 32
"""Tokens of an answer's beginning: what a question explains, it explains early."""

Fault = Literal["sampling", "prompt", "tokens", "text", "end", "guide"]
"""What cannot be, whatever the model says: the parameters are not those that the request sets; the prompt's tokens are
not the conversation's; the answer's are no tokens of the model, or too many; the text is not what they spell; the
answer ends where it could not; its guide does not allow it.
"""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text that it is made to read (teacher forcing)."""

    mean_logprob: float
    """Mean natural log-probability a token."""
    tokens: int
    """Tokens that were read, after truncation."""
    head_logprob: float
    """The mean over the first `HEAD_TOKENS` of them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a record says of how its answer came about."""

    request: Request
    sampling: Sampling
    """Effective parameters."""
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    """Of the answer, end token included."""
    text: str = field(repr=False)
    finish_reason: Literal["stop", "length"]

    def __hash__(self) -> int:
        """Of question and answer: hashing every token costs more than the few comparisons that it saves."""
        return hash((self.request, self.text))

    @classmethod
    def of(cls, record: Record) -> Claim:
        """The claim that a record makes."""
        return cls(
            request=record.request,
            sampling=record.sampling,
            prompt_token_ids=record.prompt_token_ids,
            token_ids=record.token_ids,
            text=record.text,
            finish_reason=record.finish_reason,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """What came of reading an answer's own tokens again under the model that it claims (teacher forcing)."""

    tokens: int
    """Tokens whose place in the declared distribution was looked at; 0 with a fault."""
    mean_strain: float = 0.0
    """Logits by which ours would have to be bent, a token: see `nsllm.node.engine.strain`."""
    worst_strain: float = 0.0
    """Of the token that strains most."""
    surprise: float = 0.0
    """Nats, summed: how much less likely the tokens are than the declared sampling's are on average."""
    variance: float = 0.0
    """Nats squared, summed: how far that sum varies by chance."""
    fault: Fault | None = None
    exact: bool = False
    """It was read in the very numbers that it claims, by kernels that give the same bits everywhere."""
    likelihood: Likelihood | None = None
    """Of the text, as `JudgeModels.likelihoods` has it for the conversation, if the same tokens were read for it."""
    beside: Likelihood | None = None
    """Of the text's first `HEAD_TOKENS`, as `JudgeModels.likelihoods` has it for the conversation that was given beside
    the claim, if the same tokens were read for it."""


class JudgeModels(Protocol):
    """A scorer model, an encoder, and whatever other text models are at hand."""

    def judging(self, scorer: Digest) -> JudgeModels | None:
        """These models, with the text model of exactly this digest as the scorer; None: it is not at hand (now)."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Unit vectors, 384 floats a text."""
        ...

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """For each (conversation, answer): likelihood of the answer as the assistant's next turn.

        Answers longer than the context, or than `most_tokens`, are truncated.
        """
        ...

    def holds(self, model: Digest) -> bool:
        """Whether the model that a record names so is at hand: the same files, in whatever numbers they run here."""
        ...

    async def retrace(self, claim: Claim, *, beside: tuple[Message, ...] = ()) -> Trace:
        """Read an answer again, every token of it, under the model that it claims.

        Args:
            claim: what its record says.
            beside: a conversation after which the head of the answer is read in the same passes; empty: none.

        Raises:
            NsllmError: it cannot be repeated here; the message is the reason.
        """
        ...
