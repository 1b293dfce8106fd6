"""Tools of chat bodies: the functions that the assistant may call, and whether it may, or must."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from nsllm.node.api.fields import json_text
from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.node.engine.tools import guide_for_tools, tool_schema
from nsllm.record import MAX_TEXT_CHARS, Guide, Tool

MAX_TOOLS: Final = 64
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SentFunction(Struct, forbid_unknown_fields=True):
    """A function as its caller describes it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Accepted: arguments follow the schema wherever `tool_choice` forces a call."""


class SentTool(Struct, forbid_unknown_fields=True):
    """An element of `tools`."""

    type: str
    function: SentFunction | None = None


class ChosenFunction(Struct, forbid_unknown_fields=True):
    """Name of the only function that may be called."""

    name: str


class ChosenTool(Struct, forbid_unknown_fields=True):
    """`tool_choice` as an object."""

    type: Literal["function"]
    function: ChosenFunction


@dataclass(frozen=True, slots=True)
class Tooling:
    """What a body says of tools."""

    tools: tuple[Tool, ...] = ()
    """Empty as well where none may be called."""
    guide: Guide | None = None
    """Where a call is a must."""


def tooling(tools: list[SentTool] | None, choice: object, *, parallel: bool | None) -> Tooling:
    """The tools and the guide of a body.

    Args:
        tools: as sent.
        choice: `tool_choice` as sent: none, auto, required, or an object that names one.
        parallel: `parallel_tool_calls` as sent.

    Raises:
        ApiError: 400 that names the field.
        InvalidRequestError: a schema that is none, or `tool_choice` names no tool.
    """
    found = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or []))
    if len(found) > MAX_TOOLS:
        raise bad_request(f"{len(found)} tools, at most {MAX_TOOLS} are allowed", param="tools")
    if len({tool.name for tool in found}) < len(found):
        raise bad_request("two tools have the same name", param="tools")
    if choice in (None, "auto", "none"):
        if not found and choice == "auto":
            raise bad_request("'tool_choice' needs 'tools'", param="tool_choice")
        return Tooling() if choice == "none" else Tooling(found)
    name = None if choice == "required" else _chosen(choice)
    if not found:
        raise bad_request("'tool_choice' needs 'tools'", param="tool_choice")
    return Tooling(found, guide_for_tools(found, name, parallel=parallel is not False))


def _chosen(choice: object) -> str:
    if isinstance(choice, str):
        raise bad_request(
            f"'tool_choice' is {choice[:32]!r}, use none, auto, required or an object", param="tool_choice"
        )
    try:
        return msgspec.convert(choice, ChosenTool).function.name
    except msgspec.ValidationError:
        raise bad_request(
            '\'tool_choice\' is no object such as {"type": "function", "function": {"name": "…"}}', param="tool_choice"
        ) from None


def _tool(tool: SentTool, at: str) -> Tool:
    if tool.type != "function":
        raise unsupported(f"{at}.type", f"tools of type {tool.type[:32]!r} are not supported; send type 'function'")
    function = tool.function
    if function is None:
        raise bad_request("missing field 'function'", param=f"{at}.function", code="missing_field")
    if not _NAME.fullmatch(function.name):
        raise bad_request("a name has 1 to 64 letters, digits, _ and -", param=f"{at}.function.name")
    description = function.description or ""
    parameters = json_text(function.parameters) if function.parameters else ""
    for name, text in (("description", description), ("parameters", parameters)):
        if len(text) > MAX_TEXT_CHARS:
            raise bad_request(
                f"{len(text)} characters, the limit is {MAX_TEXT_CHARS}", param=f"{at}.function.{name}"
            )  # fmt: skip
    found = Tool(name=function.name, description=description, parameters=parameters)
    tool_schema(found)
    return found
