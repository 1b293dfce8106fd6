"""The models themselves: transformers on torch, behind an interface that a batching backend can take over.

Imported in the worker process only.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import jinja2
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.record import Message

TEMPLATE_LIMIT_S: Final = 1.0
EMBED_BATCH_TOKENS: Final = 512
"""Tokens, padding included, that the encoder reads at once: about 150 ms on one thread."""

EMBED_CHARS: Final = 16_384
"""Characters of a text that the encoder's tokenizer looks at: 64 for each token that is read."""


class TemplateError(ValueError):
    """The model's chat template refuses the conversation, or takes too long."""


class Cache(Protocol):
    """Keys and values of one sequence; only its backend looks inside."""


class Backend(Protocol):
    """One text model and one encoder. Tensors are float32 on the CPU; token ids are plain integers."""

    context_tokens: int
    end_token_ids: frozenset[int]
    longest_token_chars: int
    """No token spells more characters: a lower bound on tokens before a long text is read."""

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Prompt for the assistant's next turn, in the model's chat template. Raises `TemplateError`."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ...

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        ...

    def open(self) -> Cache:
        """An empty sequence."""
        ...

    def prefill(self, cache: Cache, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        """Read tokens at the end of a sequence; logits (keep, vocabulary) after the last `keep` of them."""
        ...

    def decode_step(self, rows: Sequence[tuple[Cache, int]]) -> torch.Tensor:
        """One more token for each sequence; logits (rows, vocabulary)."""
        ...

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[list[int], torch.Tensor, int]]:
        """Batch by batch, longest texts last: which texts, their unit vectors (batch, dimensions), tokens read."""
        ...


class TransformersBackend:
    """Eager transformers, one sequence at a time: what a generation gives never depends on its neighbours."""

    def __init__(self, text: Path, encoder: Path) -> None:
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(text, **safe)
        self._model = AutoModelForCausalLM.from_pretrained(text, dtype="auto", use_safetensors=True, **safe).eval()
        self._encoder_tokenizer = AutoTokenizer.from_pretrained(encoder, **safe)
        self._encoder = AutoModel.from_pretrained(encoder, dtype="auto", use_safetensors=True, **safe).eval()
        config = self._model.config
        self.context_tokens: int = getattr(config, "max_position_embeddings", None) or config.n_positions
        self.end_token_ids = frozenset(_end_tokens(self._model.generation_config.eos_token_id))
        self.end_token_ids |= frozenset(_end_tokens(self._tokenizer.eos_token_id))
        self.longest_token_chars = max(len(token) for token in self._tokenizer.get_vocab())
        self._encoder_tokens = min(ENCODER_TOKENS, self._encoder.config.max_position_embeddings)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Prompt for the assistant's next turn; the template runs in jinja's sandbox, under an alarm."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with _alarm(TEMPLATE_LIMIT_S):
                prompt = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
        return self.tokens(prompt)

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        decoded: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def open(self) -> Cache:
        """An empty sequence."""
        cache: Cache = DynamicCache(config=self._model.config)
        return cache

    def prefill(self, cache: Cache, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        """Read tokens at the end of a sequence; logits (keep, vocabulary) after the last `keep` of them."""
        with torch.inference_mode():
            ids = torch.tensor([list(token_ids)])
            # 0 would keep all: one row is the least that there is.
            out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=max(1, keep))
            logits: torch.Tensor = out.logits[0, out.logits.shape[1] - keep :].float()
            return logits

    def decode_step(self, rows: Sequence[tuple[Cache, int]]) -> torch.Tensor:
        """One more token for each sequence; logits (rows, vocabulary)."""
        return torch.cat([self.prefill(cache, [token], 1) for cache, token in rows])

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[list[int], torch.Tensor, int]]:
        """Batches of texts of similar length: mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2)."""
        cut = [text[:EMBED_CHARS] for text in texts]
        read = self._encoder_tokenizer(cut, truncation=True, max_length=self._encoder_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: (len(read[i]), i))
        while order:
            batch = [order.pop(0)]
            while order and (len(batch) + 1) * len(read[order[0]]) <= EMBED_BATCH_TOKENS:
                batch.append(order.pop(0))
            padded = self._encoder_tokenizer.pad({"input_ids": [read[i] for i in batch]}, return_tensors="pt")
            with torch.inference_mode():
                hidden = self._encoder(**padded).last_hidden_state.float()  # (batch, tokens, dimensions)
                mask = padded["attention_mask"].unsqueeze(-1).float()
                means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
                yield batch, torch.nn.functional.normalize(means, dim=1), sum(len(read[i]) for i in batch)


def _end_tokens(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """Stop the block after `limit_s` seconds; main thread only, as signals are."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TemplateError(f"it took longer than {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
