"""Conversations with tools, as chat templates take them.

A template that knows tools gets them in the format of Hugging Face's templates. For any other template the tools are
told in the system message, as Hermes and Qwen were trained to read them, and calls and results become plain turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nsllm.node.engine.tools import tool_schema
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Message, OptionValue, Rendering, Tool

Turn = dict[str, Any]
REFUSALS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    InvalidRequestError,
)
"""What a template raises over conversations that it does not take, its own mistakes included."""
OPEN_END: Final = "CONTINUE_FINAL_MESSAGE_TAG "
"""Transformers' mark: a template that trims messages leaves out the space, and so what a message ends with."""
TOLD: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The section of Qwen 2.5's chat template, which is that of Hermes 2 Pro in other words."""


class GenerationBlock(Extension):
    """Transformers' `{% generation %}`, which marks what a model is trained on: here its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja's way

    def parse(self, parser: Parser) -> list[Node]:
        """The content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_environment() -> ImmutableSandboxedEnvironment:
    """Where templates run: as transformers compiles them, in jinja's sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def takes_tools(template: str) -> bool:
    """The template looks at the request's tools. Raises `jinja2.TemplateError` if it is broken."""
    return "tools" in meta.find_undeclared_variables(template_environment().parse(template))


def template_options(template: str, rendering: Rendering | None) -> dict[str, OptionValue]:
    """Those of a request's options that the template looks at; the others change nothing."""
    if rendering is None or not rendering.options:
        return {}
    known = meta.find_undeclared_variables(template_environment().parse(template))
    return {name: value for name, value in rendering.values().items() if name in known}


def opened(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of which the last is to be gone on with: its text ends with a mark. See `cut_open`."""
    return [*turns[:-1], {**turns[-1], "content": turns[-1]["content"] + OPEN_END}]


def cut_open(prompt: str, last: str) -> str:
    """A prompt of `opened` turns up to the mark, as transformers cuts it.

    Args:
        prompt: rendered without an opening of another turn.
        last: the last message's text, without the mark.

    Raises:
        ValueError: the template leaves out the message's end.
    """
    mark = OPEN_END.strip()
    if mark not in prompt or last.strip() not in prompt:
        raise ValueError("it does not show the last message as it is, so that nothing can go on with it")
    before, after = prompt[: (at := prompt.rindex(mark))], prompt[at:]
    return before if after.startswith(OPEN_END) else before.rstrip()


def uses_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """There is anything that needs a template that knows tools."""
    return bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)


def native_turns(messages: Sequence[Message]) -> list[Turn]:
    """For a template that knows tools."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    turns: list[Turn] = []
    for message in messages:
        turn: Turn = {"role": str(message.role), "content": str(message.content)}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            turn |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id, "")}
        turns.append(turn)
    return turns


def native_tools(tools: Sequence[Tool]) -> list[Turn] | None:
    """For a template that knows tools; None if there are none."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": str(tool.description), "parameters": tool_schema(tool)},
        }
        for tool in tools
    ] or None


def plain_turns(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """For a template that knows no tools: they are told in the system message, results come from the user."""
    turns: list[Turn] = []
    for message in messages:
        content, role = str(message.content), str(message.role)
        if message.role == "tool":
            content, role = f"<tool_response>\n{content}\n</tool_response>", "user"
            if turns and turns[-1]["content"].endswith("</tool_response>"):
                turns[-1]["content"] += f"\n{content}"
                continue
        for call in message.tool_calls:
            written = _to_json({"name": call.name, "arguments": _arguments(call.arguments)})
            content += "\n" if content else ""
            content += f"<tool_call>\n{written}\n</tool_call>"
        turns.append({"role": role, "content": content})
    if tools:
        told = TOLD.format(tools="\n".join(_to_json(one) for one in native_tools(tools) or ()))
        if turns and turns[0]["role"] == "system":
            turns[0]["content"] = f"{turns[0]['content']}\n\n{told}".strip()
        else:
            turns.insert(0, {"role": "system", "content": told})
    return turns


def _arguments(written: str) -> object:
    """Templates write them as JSON themselves; what is none stays text."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return str(written)
    return value if isinstance(value, Mapping) else str(written)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes JSON in templates."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
