"""One answer that the worker is writing: its sequence, what it reads next, what a chosen token does to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nsllm.node.engine.backend import Cache, Read
from nsllm.node.engine.port import TokenLogprob
from nsllm.node.engine.prompt_teller import PromptTeller
from nsllm.node.engine.protocol import Gain
from nsllm.node.engine.sampler import Choice, Sampler
from nsllm.node.engine.spelling import Spelling
from nsllm.node.engine.text_stream import TextStream

if TYPE_CHECKING:
    import torch


@dataclass(slots=True, eq=False)
class Generation:
    """An answer in the making."""

    job: int
    client: str
    prompt: list[int]
    max_tokens: int
    end_token_ids: frozenset[int]
    """The model's and the request's own."""
    sampler: Sampler
    stream: TextStream
    teller: PromptTeller | None = None
    """Tells the prompt's tokens as they are read; None: nobody asks."""
    cache: Cache | None = None
    """None while there is no room for it."""
    tokens: list[int] = field(default_factory=list)
    """Of the answer, end token included."""
    states: list[torch.Tensor] = field(default_factory=list)
    """What each of `tokens` was chosen from, before the vocabulary: (width,) each; empty where nobody keeps it."""
    started: bool = False
    """The peer knows that it has begun."""
    suspect: bool = False
    """A pass failed that it took part in: the next one is its alone."""

    @property
    def tells(self) -> bool:
        """Tokens of the prompt are left to be told: the model has to read all of them."""
        return self.teller is not None and self.teller.left

    @property
    def most(self) -> int:
        """Tokens that the sequence grows to."""
        return len(self.prompt) + self.max_tokens

    @property
    def unread(self) -> int:
        """Tokens that the model has not read; 1 from the first token of the answer on, unless it reads all again."""
        assert self.cache is not None
        return len(self.prompt) + len(self.tokens) - self.cache.read

    def next_read(self, most: int) -> Read:
        """The next tokens for the model, up to `most`; logits are asked for if these are the last, or all are told."""
        assert self.cache is not None
        if self.tokens and self.unread == 1:
            return Read(self.cache, self.tokens[-1:], 1)
        start = self.cache.read
        sequence = self.prompt + self.tokens if self.tokens else self.prompt
        chunk = sequence[start : start + most]
        return Read(self.cache, chunk, len(chunk) if self.tells else int(start + len(chunk) == len(sequence)))

    def accept(self, choice: Choice, spelling: Spelling) -> Gain:
        """Add the chosen token; the gain says so if that ends the answer."""
        token = choice.token
        self.tokens.append(token)
        reason: Literal["stop", "length"] | None = None
        if token in self.end_token_ids:
            text, reason = self.stream.finish(), "stop"
        else:
            text = self.stream.push(token)
            if self.stream.stopped:
                reason = "stop"
            elif len(self.tokens) >= self.max_tokens:
                text, reason = text + self.stream.finish(), "length"
        if choice.logprob is None:
            return Gain(self.job, (token,), text, reason)
        return Gain(self.job, (token,), text, reason, (_told(choice, choice.logprob, spelling),))


def _told(choice: Choice, logprob: float, spelling: Spelling) -> TokenLogprob:
    top = tuple((spelling.token_bytes(token), value) for token, value in choice.top)
    return TokenLogprob(spelling.token_bytes(choice.token), logprob, top)
