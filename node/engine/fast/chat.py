"""Tokenizer and chat template of a model folder, without transformers: `tokenizers` and jinja2's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from nsllm.node.engine.backend import TemplateError, template_alarm
from nsllm.node.engine.spelling import spelling_of
from nsllm.record import Message

TEMPLATE_FILE: Final = "chat_template.jinja"


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
        self.template = _template(folder, settings)
        card = _object(folder / "generation_config.json") or _object(folder / "config.json")
        ends = card.get("eos_token_id")
        self.end_token_ids = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        eos = self._tokenizer.token_to_id(self._specials.get("eos_token", ""))
        self.end_token_ids |= frozenset([] if eos is None else [eos])
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token_chars = max(len(token) for token in vocabulary)
        self.last_token_id = max(vocabulary.values())
        self.spelling = spelling_of(self._tokenizer, self.text)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Prompt for the assistant's next turn; the template runs in jinja's sandbox, under an alarm."""
        turns = [{"role": str(message.role), "content": str(message.content)} for message in messages]
        try:
            with template_alarm():
                prompt = self._render(turns)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
        return self.tokens(prompt)

    def tokens(self, text: str) -> list[int]:
        """Plain text as tokens, none added."""
        ids: list[int] = self._tokenizer.encode(str(text), add_special_tokens=False).ids
        return ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        decoded: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return decoded

    def _render(self, turns: list[dict[str, str]]) -> str:
        if self.template is None:
            raise TemplateError("there is none in the model's folder")
        # As transformers compiles templates.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(self.template)
        return template.render(messages=turns, add_generation_prompt=True, **self._specials)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


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


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    stored = settings.get("chat_template")
    if isinstance(stored, list):  # named templates
        stored = {row.get("name"): row.get("template") for row in stored}.get("default")
    return stored if isinstance(stored, str) else None
