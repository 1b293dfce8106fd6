"""How a conversation becomes a prompt, in fields as vLLM has them: template options, and a message to go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.record import (
    MAX_OPTION_CHARS,
    MAX_TEMPLATE_OPTIONS,
    TEMPLATE_WORDS,
    Message,
    Rendering,
    option_text,
)

MAX_NAME_CHARS: Final = 64
MOST_DIGITS: Final = 19


class Directing(Protocol):
    """The fields of a body."""

    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


def rendering(body: Directing, messages: Sequence[Message]) -> Rendering | None:
    """How the conversation is rendered; None: as the model's template does it by itself.

    Raises:
        ApiError: 400 that names the field.
    """
    continues = body.continue_final_message is True
    if continues:
        last = messages[-1]
        if body.add_generation_prompt:
            raise bad_request(
                "'continue_final_message' opens no other message: leave 'add_generation_prompt' out or send false",
                param="add_generation_prompt",
            )
        if last.role != "assistant" or last.tool_calls or not last.content.strip():
            raise bad_request(
                "'continue_final_message' needs a last message of the assistant's with text, and without tool calls",
                param="continue_final_message",
            )
    elif body.add_generation_prompt is False:
        raise unsupported(
            "add_generation_prompt", "'add_generation_prompt' is false only together with 'continue_final_message'"
        )
    options = _options(body.chat_template_kwargs or {})
    return Rendering(options=options, continues=continues) if options or continues else None


def _options(sent: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if len(sent) > MAX_TEMPLATE_OPTIONS:
        raise bad_request(
            f"{len(sent)} options, at most {MAX_TEMPLATE_OPTIONS} are allowed", param="chat_template_kwargs"
        )
    for name, value in sent.items():
        if not (name.isascii() and name.isidentifier() and len(name) <= MAX_NAME_CHARS) or name in TEMPLATE_WORDS:
            raise bad_request(f"{name[:32]!r} is no option of a chat template", param="chat_template_kwargs")
        if not isinstance(value, bool | int | str):
            raise bad_request(
                f"option {name!r} must be true, false, a whole number or text", param=f"chat_template_kwargs.{name}"
            )
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise bad_request(
                f"option {name!r} has more than {MOST_DIGITS} digits", param=f"chat_template_kwargs.{name}"
            )
        if len(option_text(value)) > MAX_OPTION_CHARS:
            raise bad_request(
                f"option {name!r} has {len(option_text(value))} characters, the limit is {MAX_OPTION_CHARS}",
                param=f"chat_template_kwargs.{name}",
            )
    return tuple((name, option_text(value)) for name, value in sorted(sent.items()))
