"""Tokenizer and chat template of a model folder, without transformers: `tokenizers` and jinja2's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Template
from tokenizers import Tokenizer

from nsllm.node.engine.backend import TemplateError, template_alarm
from nsllm.node.engine.conversation import (
    REFUSALS,
    cut_open,
    native_tools,
    native_turns,
    opened,
    plain_turns,
    takes_tools,
    template_environment,
    template_options,
    uses_tools,
)
from nsllm.node.engine.spelling import spelling_of
from nsllm.record import Message, Rendering, Tool

TEMPLATE_FILE: Final = "chat_template.jinja"
TEMPLATE_FOLDER: Final = "additional_chat_templates"


class ChatText:
    """Text to tokens and back, conversations to prompts.

    Raises:
        OSError, ValueError: a file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = _object(folder / "tokenizer_config.json")
        self._specials = {name: token for name, value in settings.items() if (token := _token(name, value)) is not None}
        self.template, self.tool_template = _templates(folder, settings)
        self._compiled: dict[str, Template] = {}
        card = _object(folder / "generation_config.json") or _object(folder / "config.json")
        ends = card.get("eos_token_id")
        self.end_token_ids = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        eos = self._tokenizer.token_to_id(self._specials.get("eos_token", ""))
        self.end_token_ids |= frozenset([] if eos is None else [eos])
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token_chars = max(len(token) for token in vocabulary)
        self.last_token_id = max(vocabulary.values())
        self.spelling = spelling_of(self._tokenizer, self.text)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_token_ids = frozenset(number for number, token in added.items() if token.special)

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

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ids: list[int] = self._tokenizer.encode(str(text), add_special_tokens=False).ids
        return ids

    def text_tokens(self, text: str) -> list[int]:
        """A prompt without a template, with the tokens that the tokenizer puts before a text."""
        ids: list[int] = self._tokenizer.encode(str(text), add_special_tokens=True).ids
        return ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        decoded: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return decoded

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], rendering: Rendering | None) -> str:
        source = self.tool_template if tools and self.tool_template is not None else self.template
        if source is None:
            raise TemplateError("there is none in the model's folder")
        native = uses_tools(messages, tools) and takes_tools(source)
        template = self._compiled.get(source)
        if template is None:
            template = self._compiled[source] = template_environment().from_string(source)
        turns = native_turns(messages) if native else plain_turns(messages, tools)
        continues = rendering is not None and rendering.continues
        prompt = template.render(
            messages=opened(turns) if continues else turns,
            tools=native_tools(tools) if native else None,
            documents=None,
            add_generation_prompt=not continues,
            **{**self._specials, **template_options(source, rendering)},
        )
        return cut_open(prompt, turns[-1]["content"]) if continues else prompt


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")  # noqa: TRY004 - what the file says, not who called
    return value


def _token(name: str, value: object) -> str | None:
    """A special token's text."""
    if not name.endswith("_token"):
        return None
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _templates(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The template, and the one for requests with tools if that is another."""
    if (folder / TEMPLATE_FILE).is_file():
        other = folder / TEMPLATE_FOLDER / "tool_use.jinja"
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8"), (
            other.read_text(encoding="utf-8") if other.is_file() else None
        )
    stored = settings.get("chat_template")
    named = (
        {row.get("name"): row.get("template") for row in stored} if isinstance(stored, list) else {"default": stored}
    )
    default, tool_use = named.get("default"), named.get("tool_use")
    return default if isinstance(default, str) else None, tool_use if isinstance(tool_use, str) else None
