"""The general path: whatever `AutoModelForCausalLM` loads, eager, one sequence at a time, on one device or several.

Imported in the worker process only.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.distributed import DistributedConfig

from nsllm.node.engine.backend import Cache, Encoder, Read, TemplateError, given_tokens, template_alarm
from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.node.engine.conversation import (
    REFUSALS,
    native_tools,
    native_turns,
    plain_turns,
    takes_tools,
    template_options,
    uses_tools,
)
from nsllm.node.engine.devices import CPU, HERE, Devices
from nsllm.node.engine.guide import GuideBook
from nsllm.node.engine.port import Readable
from nsllm.node.engine.sampler import Chooser, PlainChooser
from nsllm.node.engine.spelling import Spelling, WindowSpelling, spelling_of
from nsllm.node.errors import ConfigError
from nsllm.record import Message, Rendering, Tool

EMBED_CHARS: Final = 16_384
"""Characters of a text that the encoder's tokenizer looks at: 64 for each token that is read."""

SAFE: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(slots=True)
class GeneralCache:
    """transformers' own cache of one sequence."""

    number: int
    """Of all sequences that its model ever opened."""
    keys_values: DynamicCache
    read: int = 0


class Model(Protocol):
    """A causal language model: its sequences and its forward pass."""

    @property
    def config(self) -> Any:
        """Its configuration, as transformers reads it."""
        ...

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, as its generation configuration says."""
        ...

    def open(self) -> GeneralCache:
        """An empty sequence."""
        ...

    def close(self, cache: GeneralCache) -> None:
        """Nobody reads on in it."""
        ...

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """Read tokens at the end of each sequence; logits (keep, vocabulary) of each, float32 on the CPU."""
        ...


class OneByOne(ABC):
    """A `Model` that reads one sequence after another."""

    def close(self, cache: GeneralCache) -> None:  # noqa: B027 - nothing to do is what most do
        """Nothing: the cache goes with its last user."""

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """See `Model`."""
        return [self._forward_one(read) for read in reads]

    @abstractmethod
    def _forward_one(self, read: Read) -> torch.Tensor: ...


class CausalModel(OneByOne):
    """A model in this process: the whole of it, or its share of one that several ranks run.

    Args:
        folder: of the model.
        devices: where it runs; with `tensor` this process has met the other ranks already.
        device_map: modules to devices, for `pipeline`; None: accelerate fills the devices evenly.
        options: more of them for `from_pretrained`.

    Raises:
        ConfigError: the model cannot be cut, or does not fit the devices.
    """

    def __init__(
        self, folder: Path, devices: Devices = HERE, device_map: dict[str, str] | None = None, **options: Any
    ) -> None:
        if devices.parallel == "tensor":
            if not AutoConfig.from_pretrained(folder, **SAFE).base_model_tp_plan:
                raise ConfigError(
                    f"transformers has no plan for cutting {folder.name} into ranks",
                    hint='set engine.parallel to "pipeline"',
                )
            options["distributed_config"] = DistributedConfig(tp_size=devices.ranks)
        elif devices.parallel == "pipeline":
            options["device_map"] = device_map or ("balanced" if devices.cuda else CPU)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **options, **SAFE)
        self._model = (model.to(devices.local(0)) if devices.parallel == "none" else model).eval()
        if devices.parallel == "pipeline" and devices.cuda:
            elsewhere = {str(place) for place in self._model.hf_device_map.values()} & {CPU, "disk"}
            if elsewhere:
                raise ConfigError(
                    f"{folder.name} does not fit into {', '.join(devices.names)}: parts of it went to the"
                    f" {' and '.join(sorted(elsewhere))}",
                    hint="name more GPUs in engine.devices",
                )
        self.config = self._model.config
        self.end_token_ids = frozenset(end_tokens(self._model.generation_config.eos_token_id))
        self._numbers = itertools.count(1)

    def open(self) -> GeneralCache:
        """An empty sequence; there is always room."""
        return GeneralCache(next(self._numbers), DynamicCache(config=self.config))

    def _forward_one(self, read: Read) -> torch.Tensor:
        assert isinstance(read.cache, GeneralCache)
        read.cache.read += len(read.token_ids)
        with torch.inference_mode():
            # 0 would keep all: one row is the least that there is.
            out = self._model(
                input_ids=torch.tensor([list(read.token_ids)], device=self._model.device),
                past_key_values=read.cache.keys_values,
                use_cache=True,
                logits_to_keep=max(1, read.keep),
            )
            logits: torch.Tensor = out.logits[0, out.logits.shape[1] - read.keep :].float().cpu()
            return logits


class TransformersEncoder:
    """Any sentence encoder with mean pooling."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
        self._model = AutoModel.from_pretrained(folder, dtype="auto", use_safetensors=True, **SAFE).eval()
        self._most_tokens = min(ENCODER_TOKENS, self._model.config.max_position_embeddings)

    def read(self, texts: Sequence[Readable], most_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text."""
        most = min(self._most_tokens, most_tokens or self._most_tokens)
        return [
            self._tokenizer(text[:EMBED_CHARS], truncation=True, max_length=most)["input_ids"]
            if isinstance(text, str)
            else given_tokens(text, self._model.config.vocab_size)[:most]
            for text in texts
        ]

    def vectors(self, rows: list[list[int]]) -> torch.Tensor:
        """Mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2)."""
        padded = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**padded).last_hidden_state.float()  # (batch, tokens, dimensions)
            mask = padded["attention_mask"].unsqueeze(-1).float()
            means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(means, dim=1)


class TransformersBackend:
    """Eager transformers, one sequence at a time: what a generation gives never depends on its neighbours.

    Args:
        text: folder of the text model's tokenizer, and of the model if `model` is None.
        encoder: folder of the encoder, which runs on the CPU.
        model: the text model, where it is spread over devices.
    """

    def __init__(self, text: Path, encoder: Path, model: Model | None = None) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(text, **SAFE)
        self._model = model or CausalModel(text)
        self.encoder: Encoder = TransformersEncoder(encoder)
        self.chooser: Chooser = PlainChooser()
        self.joins = False
        config = self._model.config
        self.context_tokens: int = getattr(config, "max_position_embeddings", None) or config.n_positions
        self.end_token_ids = self._model.end_token_ids | frozenset(end_tokens(self._tokenizer.eos_token_id))
        self.vocabulary: int = config.vocab_size
        self.longest_token_chars = max(len(token) for token in self._tokenizer.get_vocab())
        self.spelling = _spelling(self._tokenizer, self.text)
        self.guides = GuideBook(
            token_bytes=self.spelling.token_bytes,
            encode=self.tokens,
            vocabulary=config.vocab_size,
            special_token_ids=_special_tokens(self._tokenizer),
            end_token_ids=self.end_token_ids,
        )

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), rendering: Rendering | None = None
    ) -> list[int]:
        """Prompt for the assistant's next turn; the template runs in jinja's sandbox, under an alarm."""
        try:
            with template_alarm():
                prompt = self._render(messages, tools, rendering)
        except REFUSALS as error:
            raise TemplateError(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
        return self.tokens(prompt)

    def text_tokens(self, text: str) -> list[int]:
        """A prompt without a template, with the tokens that the tokenizer puts before a text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=True)["input_ids"]
        return ids

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], rendering: Rendering | None) -> str:
        told = native_tools(tools)
        template: str = self._tokenizer.get_chat_template(tools=told)
        native = uses_tools(messages, tools) and takes_tools(template)
        continues = rendering is not None and rendering.continues
        rendered: str = self._tokenizer.apply_chat_template(
            native_turns(messages) if native else plain_turns(messages, tools),
            tools=told if native else None,
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **template_options(template, rendering),
        )
        return rendered

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        decoded: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def open(self, token_ids: Sequence[int], most: int, *, side: bool) -> GeneralCache:
        """An empty sequence; there is always room."""
        del token_ids, most, side
        return self._model.open()

    def catch_up(self, cache: Cache, token_ids: Sequence[int]) -> None:
        """Nothing: sequences share nothing here."""

    def room(self) -> tuple[int, int]:
        """Nobody counts."""
        return 0, 0

    def close(self, cache: Cache) -> None:
        """Nobody reads on in it."""
        assert isinstance(cache, GeneralCache)
        self._model.close(cache)

    def forward(self, reads: Sequence[Read]) -> list[torch.Tensor]:
        """Read tokens at the end of each sequence; logits (keep, vocabulary) of each."""
        return self._model.forward(reads)

    def read(self, reads: Sequence[Read]) -> torch.Tensor:
        """The same as one tensor."""
        return torch.cat(self.forward(reads))

    def log_probabilities(self, logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
        """Natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
        wanted = torch.tensor(token_ids, dtype=torch.long).unsqueeze(1)
        values: list[float] = (logits.gather(1, wanted).squeeze(1) - logits.logsumexp(1)).tolist()
        return values


def _spelling(tokenizer: Any, text: Callable[[Sequence[int]], str]) -> Spelling:
    if tokenizer.is_fast:
        return spelling_of(tokenizer.backend_tokenizer, text)
    return WindowSpelling(text, tokenizer.convert_ids_to_tokens)


def _special_tokens(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def end_tokens(value: int | list[int] | None) -> list[int]:
    """As configurations write them: one, several or none."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
