"""The vision-language path: whatever `AutoModelForImageTextToText` loads, eager, one sequence at a time.

Pictures come as PNG files that this peer made itself (`nsllm.node.attachments.images`); each stands in the conversation
where a message holds a `PLACE`. Imported in the worker process only.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import structs
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from nsllm.node.attachments.attached import PLACE
from nsllm.node.engine.backend import Cache, Read, TemplateError, template_alarm
from nsllm.node.engine.conversation import (
    REFUSALS,
    native_tools,
    native_turns,
    plain_turns,
    takes_tools,
    template_options,
    uses_tools,
)
from nsllm.node.engine.devices import HERE, Devices
from nsllm.node.engine.general import SAFE, GeneralCache, OneByOne, TransformersBackend, end_tokens
from nsllm.node.errors import ConfigError
from nsllm.record import Message, Rendering, Tool

TEXT_INPUTS: Final = frozenset({"input_ids", "attention_mask"})
"""What a processor gives beside the inputs that show the pictures."""
GONE: Final = "[picture]"


class Sight(list[int]):
    """A prompt's tokens, and the pictures that its placeholder tokens stand for, as the model takes them."""

    def __init__(self, token_ids: Iterable[int], inputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__(token_ids)
        self.inputs = inputs


@dataclass(slots=True)
class VisionCache(GeneralCache):
    """A sequence; its prompt is read at once, however it is cut, for the pictures belong to all of it."""

    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Pictures that the model has not looked at yet."""
    waiting: list[int] = field(default_factory=list)
    """Tokens of the prompt before its last piece has come."""
    rope_deltas: torch.Tensor | None = None
    """What models of Qwen's kind remember of a sequence's positions in an attribute of their own."""


class VisionModel(OneByOne):
    """A vision-language model in this process, on one device.

    Raises:
        ConfigError: it is to be spread over several devices.
    """

    def __init__(self, folder: Path, devices: Devices = HERE) -> None:
        if devices.parallel != "none":
            raise ConfigError(
                f"{folder.name} sees pictures: such a model runs on one device", hint='set engine.parallel to "none"'
            )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", use_safetensors=True, **SAFE)
        self._model = model.to(devices.local(0)).eval()
        self.config = self._model.config.get_text_config()
        self.end_token_ids = frozenset(end_tokens(self._model.generation_config.eos_token_id))
        self._numbers = itertools.count(1)

    def open(self) -> VisionCache:
        """An empty sequence; there is always room."""
        return VisionCache(next(self._numbers), DynamicCache(config=self.config))

    def _forward_one(self, read: Read) -> torch.Tensor:
        cache = read.cache
        assert isinstance(cache, VisionCache)
        cache.read += len(read.token_ids)
        if cache.inputs and not read.keep:
            cache.waiting += read.token_ids
            return torch.empty((0, self.config.vocab_size))
        token_ids = [*cache.waiting, *read.token_ids]
        inputs, cache.inputs, cache.waiting = cache.inputs, {}, []
        inner = self._model.model
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = cache.rope_deltas
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([token_ids], device=self._model.device),
                past_key_values=cache.keys_values,
                use_cache=True,
                logits_to_keep=max(1, read.keep),
                **{name: self._placed(value) for name, value in inputs.items()},
            )
        cache.rope_deltas = getattr(inner, "rope_deltas", None)
        logits: torch.Tensor = out.logits[0, out.logits.shape[1] - read.keep :].float().cpu()
        return logits

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        """On the model's device; pixels in its dtype."""
        value = value.to(self._model.device)
        return value.to(self._model.dtype) if value.is_floating_point() else value


class VisionBackend(TransformersBackend):
    """Eager transformers with eyes.

    Args:
        text: folder of the vision-language model and its processor.
        encoder: folder of the sentence encoder.
        model: the vision-language model, if it is loaded already.

    Raises:
        ConfigError: the model's processor cannot be loaded; says why.
    """

    def __init__(self, text: Path, encoder: Path, model: VisionModel | None = None) -> None:
        super().__init__(text, encoder, model or VisionModel(text))
        try:
            self._processor = AutoProcessor.from_pretrained(text, **SAFE)
        except (ImportError, OSError, ValueError) as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"the processor of {text.name} cannot be loaded: {said.strip()[:200]}",
                hint="install what it names; pip install 'nsllm[images]' brings Pillow",
            ) from None

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), rendering: Rendering | None = None
    ) -> list[int]:
        """Prompt for the assistant's next turn; where a picture stood, a word says so: who judges has no pictures."""
        told = [structs.replace(message, content=message.content.replace(PLACE, GONE)) for message in messages]
        return list(self.picture_tokens(told, (), tools=tools, rendering=rendering))

    def picture_tokens(
        self,
        messages: Sequence[Message],
        images: Sequence[bytes],
        *,
        tools: Sequence[Tool] = (),
        rendering: Rendering | None = None,
    ) -> Sight:
        """Prompt for the assistant's next turn, with pictures.

        Raises:
            TemplateError: the places are not as many as the pictures, or the template refuses the conversation.
        """
        if sum(message.content.count(PLACE) for message in messages) != len(images):
            raise TemplateError(f"the conversation has not the {len(images)} places that its pictures need")
        mark = str(getattr(self._processor, "image_token", PLACE))
        if any(mark in message.content.replace(PLACE, "") for message in messages):
            raise TemplateError(f"the text holds {mark}, which stands for a picture with this model; leave it out")
        from PIL import Image

        pictures = iter([Image.open(io.BytesIO(image), formats=["PNG"]).convert("RGB") for image in images])
        try:
            with template_alarm():
                template = str(self._processor.chat_template)
                native = uses_tools(messages, tools) and takes_tools(template)
                turns = native_turns(messages) if native else plain_turns(messages, tools)
                turns = [{**turn, "content": _parts(turn["content"], pictures)} for turn in turns]
                continues = rendering is not None and rendering.continues
                options: dict[str, Any] = {
                    **({"tools": native_tools(tools)} if native else {}),
                    "add_generation_prompt": not continues,
                    "continue_final_message": continues,
                    **template_options(template, rendering),
                }
                self._processor.apply_chat_template(turns, tokenize=False, **options)
            given = self._processor.apply_chat_template(
                turns,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **options,
            )
        except REFUSALS as error:
            raise TemplateError(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
        token_ids: list[int] = given["input_ids"][0].tolist()
        inputs = {name: value for name, value in given.items() if name not in TEXT_INPUTS}
        return Sight(token_ids, inputs)

    def open(self, token_ids: Sequence[int], most: int, *, side: bool) -> GeneralCache:
        """An empty sequence, with the pictures of a `Sight`; there is always room."""
        cache = super().open(token_ids, most, side=side)
        assert isinstance(cache, VisionCache)
        if isinstance(token_ids, Sight):
            cache.inputs = token_ids.inputs
        return cache

    def close(self, cache: Cache) -> None:
        """Nobody reads on in it."""
        assert isinstance(cache, VisionCache)
        cache.inputs = {}
        super().close(cache)


def _parts(content: str, pictures: Iterable[object]) -> list[dict[str, object]]:
    """A message's content as templates take it: text and pictures in order."""
    left = iter(pictures)
    first, *others = content.split(PLACE)
    parts: list[dict[str, object]] = [{"type": "text", "text": first}] if first else []
    for text in others:
        parts.append({"type": "image", "image": next(left)})
        if text:
            parts.append({"type": "text", "text": text})
    return parts
