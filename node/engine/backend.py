"""What runs the models, as the scheduler sees it: sequences, tokens and logits.

Implementations, imported in the worker process only: `nsllm.node.engine.fast.backend` (compiled kernels for the Llama
family on CPUs), `nsllm.node.engine.batched.backend` (torch for the Llama family, on GPUs) and
`nsllm.node.engine.general` (any model that transformers knows).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from nsllm.node.engine.guide import GuideBook
from nsllm.node.engine.port import Readable
from nsllm.node.engine.sampler import Chooser
from nsllm.node.engine.spelling import Spelling
from nsllm.record import Message, Rendering, Tool

if TYPE_CHECKING:
    import torch

TEMPLATE_LIMIT_S: Final = 1.0


class TemplateError(ValueError):
    """The model's chat template refuses the conversation, or takes too long."""


class TokenError(ValueError):
    """A number that is no token of the model that is to read it."""

    def __init__(self, token: int, vocabulary: int) -> None:
        super().__init__(f"{token} is no token of this model, whose ids are 0 to {vocabulary - 1}")


class Cache(Protocol):
    """Keys and values of one sequence, beside what its backend keeps in it."""

    @property
    def read(self) -> int:
        """Tokens that are in it; more than 0 at the beginning if another sequence began alike."""
        ...


@dataclass(frozen=True, slots=True)
class Read:
    """The next tokens of a sequence."""

    cache: Cache
    token_ids: Sequence[int]
    """At least one."""
    keep: int
    """How many of the last tokens' logits are asked for."""


class Encoder(Protocol):
    """The sentence encoder."""

    def read(self, texts: Sequence[Readable], most_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text, at most as many as the encoder reads.

        Args:
            texts: or token ids, which stay as they are.
            most_tokens: of each, from the beginning, with those that the tokenizer adds; None: what the encoder reads.

        Raises:
            TokenError: an id is none of the encoder's tokens'.
        """
        ...

    def vectors(self, rows: list[list[int]]) -> torch.Tensor:
        """Unit vectors of texts' token ids, read at once: (rows, dimensions)."""
        ...


class Backend(Protocol):
    """One text model and one encoder. Tensors are float32 on the CPU; token ids are plain integers.

    What a sequence gives is a function of its tokens alone: neither of what else is read at once, nor of how its
    tokens are cut into pieces. On the batched path but for rounding.
    """

    context_tokens: int
    end_token_ids: frozenset[int]
    vocabulary: int
    """Length of a row of logits; every token id is below it."""
    longest_token_chars: int
    """No token spells more characters: a lower bound on tokens before a long text is read."""
    spelling: Spelling
    encoder: Encoder
    chooser: Chooser
    guides: GuideBook
    joins: bool
    """Whether sequences that are read at once give the very bits that each gives alone, and cost less."""

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), rendering: Rendering | None = None
    ) -> list[int]:
        """Prompt for the assistant's next turn, in the model's chat template. Raises `TemplateError`."""
        ...

    def text_tokens(self, text: str) -> list[int]:
        """A prompt without a template, with the tokens that the tokenizer puts before a text."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ...

    def open(self, token_ids: Sequence[int], most: int, *, side: bool) -> Cache | None:
        """A sequence that begins with `token_ids` and grows to `most` tokens; None if there is no room now.

        At least one of the tokens remains to be read. Side work (judging) has room of its own beside generations, for
        one sequence of the model's context at least. Every cache that was opened must be closed.
        """
        ...

    def catch_up(self, cache: Cache, token_ids: Sequence[int]) -> None:
        """Take over what other sequences have read meanwhile of `token_ids`, with which this one begins.

        At least one of the tokens remains to be read.
        """
        ...

    def close(self, cache: Cache) -> None:
        """Give the room back."""
        ...

    def room(self) -> tuple[int, int]:
        """(used, all) blocks of keys and values; zeros where nobody counts them."""
        ...

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """Read tokens at the end of each sequence; logits (keep, vocabulary) of each, until the next call.

        If it raises, nobody knows what the caches hold: they can only be closed.
        """
        ...

    def read(self, reads: Sequence[Read]) -> torch.Tensor:
        """The same as one tensor: (all that are kept, vocabulary)."""
        ...

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
        ...


@runtime_checkable
class Eyes(Protocol):
    """What a backend of a model that takes pictures has beside the rest."""

    def picture_tokens(
        self,
        messages: Sequence[Message],
        images: Sequence[bytes],
        *,
        tools: Sequence[Tool] = (),
        rendering: Rendering | None = None,
    ) -> list[int]:
        """As `chat_tokens`, with pictures (PNG files) in the places that the messages hold; for `open` as it is."""
        ...


@runtime_checkable
class Retelling(Protocol):
    """What a backend has beside the rest that can tell logits once more without reading, to the bit."""

    def states(self) -> torch.Tensor:
        """What the last layer left of the tokens that the last `read` kept, a row each and perhaps more: (rows, width).

        Until the next call.
        """
        ...

    def logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """The logits (rows, vocabulary) that were made of these rows of `states`, until the next call."""
        ...


def given_tokens(token_ids: Sequence[int], vocabulary: int) -> list[int]:
    """Tokens that a caller gave.

    Raises:
        TokenError: one of them is none of the model's; names the first.
    """
    wrong = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise TokenError(wrong, vocabulary)
    return list(token_ids)


@contextmanager
def template_alarm() -> Iterator[None]:
    """Stop the block after `TEMPLATE_LIMIT_S`; main thread only, as signals are."""
    limit_s = TEMPLATE_LIMIT_S

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TemplateError(f"it took longer than {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
