"""Tool calls out of an answer as its text comes, and the guide that makes an answer a tool call.

Models write calls in few ways, and a text shows which one it is, so that answers of other peers and cached ones are
read as well: `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen, and what `tool_prompt` asks for),
a bare `{"name": …, "parameters": …}` (Llama 3), `[TOOL_CALLS] [{"name": …, "arguments": …}]` and
`[TOOL_CALLS]name[ARGS]{…}` (Mistral). Special tokens are no part of an answer's text: Mistral's and Llama's calls come
without their marks, so a bare call counts only at the beginning, and only if it names one of the request's tools.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nsllm.node.engine.call_reader import CallReader
from nsllm.node.errors import InvalidRequestError
from nsllm.record import MAX_TEXT_CHARS, Guide, Tool, ToolCall

ID_CHARS: Final = 9
"""Length of a call's id: Mistral's template takes no other."""
PARALLEL_CALLS: Final = 8
"""Calls that one forced answer holds at most."""
OPEN_WORDS: Final = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref")
)
"""Words of a schema that may speak of properties beyond `properties`."""
MARKS: Final = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
CLOSERS: Final = ("</tool_call>", "]", ",", ";")
SCHEMA_SPACE: Final = r" |\n[ \t]{0,20}"
"""White space that guided JSON may hold between its parts: a model that hesitates must not write it for ever."""


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Text of the answer that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call whose function is known."""

    index: int
    """From 0, in the order of the answer."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, which are JSON text as the model wrote it."""

    index: int
    text: str


ToolEvent = ContentDelta | CallStarted | CallArguments


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A whole answer."""

    content: str
    calls: tuple[ToolCall, ...]


class ToolCallStream:
    """Tells calls from text as an answer comes.

    Text goes out as soon as it cannot be part of a call; white space beside calls is left out. What looks like a call
    and is none goes out as text. An answer that is cut off in mid-call leaves that call with unfinished arguments.

    Args:
        names: of the request's tools.
        rng: for the ids of calls.
    """

    def __init__(self, names: Collection[str], rng: random.Random) -> None:
        self._names = frozenset(names)
        self._rng = rng
        self._rest = ""
        """Text that is not understood yet."""
        self._at: Literal["start", "text", "opening", "call", "between"] = "start"
        self._raw = ""
        """What goes out as text if the call turns out to be none."""
        self._bare = False
        """The call stands in no tags."""
        self._reader = CallReader(self._names)
        self._calls: list[ToolCall] = []
        self._events: list[ToolEvent] = []
        self._open = False
        """The last of the calls is being read."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Those that have begun."""
        return tuple(self._calls)

    def push(self, text: str) -> list[ToolEvent]:
        """What the next piece of the answer adds; may be nothing yet."""
        self._rest += text
        return self._advance(last=False)

    def finish(self) -> list[ToolEvent]:
        """What was held back, once no text follows."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> list[ToolEvent]:
        steps = {
            "start": self._start,
            "text": self._text,
            "opening": self._opening,
            "call": self._call,
            "between": self._between,
        }
        while steps[self._at](last):
            pass
        events, self._events = self._events, []
        return events

    def _start(self, last: bool) -> bool:
        """Nothing but white space so far."""
        seen = self._rest.lstrip()
        if not seen and not last:
            return False
        self._raw = ""
        if seen.startswith(("{", "[")) or any(seen.startswith(name) for name in self._names):
            self._bare = True
            self._at = "opening"
        elif last or not any(name.startswith(seen) for name in self._names):
            self._at = "text"
        else:
            return False
        return True

    def _text(self, last: bool) -> bool:
        """Text, up to the next mark."""
        found = min(((at, mark) for mark in MARKS if (at := self._rest.find(mark)) >= 0), default=None)
        if found is not None:
            at, mark = found
            before = self._rest[:at].rstrip()
            self._say(before)
            self._raw, self._rest = self._rest[len(before) : at + len(mark)], self._rest[at + len(mark) :]
            self._bare = mark != MARKS[0]
            self._at = "opening"
            return True
        held = 0 if last else max(_overlap(self._rest, mark) for mark in MARKS)
        sure = self._rest[: len(self._rest) - held]
        if not last:
            sure = sure.rstrip()
        self._say(sure)
        self._rest = self._rest[len(sure) :]
        return False

    def _opening(self, last: bool) -> bool:
        """After a mark, or at the beginning of an answer that looks like a call: where does it open?"""
        seen = self._rest.lstrip()
        inner = seen[1:].lstrip() if self._bare and seen.startswith("[") else seen
        if inner.startswith("{") or (seen and not self._bare):
            self._begin(inner, CallReader(self._names if self._bare else None))
            return True
        name = next((name for name in sorted(self._names, key=len, reverse=True) if seen.startswith(name)), None)
        after = "" if name is None else seen[len(name) :].removeprefix("[ARGS]").lstrip()
        if name is not None and after.startswith("{"):
            self._begin(after, CallReader(self._names, name))
            return True
        begins = ("[TOOL_CALLS]", *(f"{one}[ARGS]" for one in self._names))
        if not last and (not inner or any(word.startswith(seen) for word in begins) or (name and not after)):
            return False
        self._say(self._raw)
        self._raw, self._at = "", "text"
        return True

    def _begin(self, call: str, reader: CallReader) -> None:
        """`call` is the end of the text that is not understood yet, from the call's brace on."""
        skipped = len(self._rest) - len(call)
        self._raw, self._rest = self._raw + self._rest[:skipped], call
        self._reader = reader
        self._at = "call"

    def _call(self, last: bool) -> bool:
        """Inside a call's JSON."""
        reader = self._reader
        used = reader.feed(self._rest)
        self._raw, self._rest = self._raw + self._rest[:used], self._rest[used:]
        if reader.certain and not self._open:
            assert reader.name is not None
            self._calls.append(ToolCall(id=new_call_id(self._rng), name=reader.name, arguments=""))
            self._open = True
            self._raw = ""
            self._events.append(CallStarted(len(self._calls) - 1, self._calls[-1].id, reader.name))
        if self._open and (piece := reader.take()):
            call = self._calls[-1]
            self._calls[-1] = ToolCall(id=call.id, name=call.name, arguments=call.arguments + piece)
            self._events.append(CallArguments(len(self._calls) - 1, piece))
        if reader.done or (reader.failed and self._open):
            self._open, self._raw, self._at = False, "", "between"
            return True
        if reader.failed or (last and not self._open and self._raw):
            self._say(self._raw)
            self._raw, self._at = "", "text"
            return True
        return False

    def _between(self, last: bool) -> bool:
        """After a call: the end of its tag, another call, or text."""
        self._rest = self._rest.lstrip()
        closers = CLOSERS[1:] if self._bare else CLOSERS[:1]
        for closer in closers:
            if self._rest.startswith(closer):
                self._rest = self._rest[len(closer) :]
                return True
        if self._bare and self._rest.startswith("{"):
            self._at = "opening"
            return True
        waits = not self._rest or any(word.startswith(self._rest) for word in (*closers, *MARKS))
        if waits and not last:
            return False
        self._at = "text"
        return True

    def _say(self, text: str) -> None:
        if text:
            self._events.append(ContentDelta(text))


def parse_answer(text: str, names: Collection[str], rng: random.Random) -> ParsedAnswer:
    """A whole answer, read as `ToolCallStream` reads it.

    >>> parse_answer('So: <tool_call>{"name": "now", "arguments": {}}</tool_call>', ["now"], random.Random(1)).content
    'So:'
    """
    stream = ToolCallStream(names, rng)
    events = [*stream.push(text), *stream.finish()]
    return ParsedAnswer("".join(event.text for event in events if isinstance(event, ContentDelta)), stream.calls)


def new_call_id(rng: random.Random) -> str:
    """A call's id, 53 bits of chance."""
    return "".join(rng.choices(string.ascii_letters + string.digits, k=ID_CHARS))


def guide_for_tools(tools: Sequence[Tool], choice: str | None = None, *, parallel: bool = True) -> Guide:
    """The guide under which an answer is a call, or several, and nothing else.

    Args:
        tools: of the request; at least one.
        choice: name of the only tool that may be called; None: any of them (`tool_choice: "required"`).
        parallel: several calls may stand in one answer, if any tool may be called.

    Raises:
        InvalidRequestError: no such tool (parameter `tool_choice`), or schemas beyond any guide's size (`tools`).
    """
    wanted = [tool for tool in tools if choice is None or tool.name == choice]
    if not wanted:
        raise InvalidRequestError("tool_choice names none of the tools", param="tool_choice")
    several = f' ("\\n" call){{0,{PARALLEL_CALLS - 1}}}' if parallel and choice is None else ""
    lines = [
        f"start: call{several}",
        'call: "<tool_call>\\n" body "\\n</tool_call>"',
        "body: " + " | ".join(f"body_{index}" for index in range(len(wanted))),
    ]
    for index, tool in enumerate(wanted):
        opening = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
        schema = {**_closed(tool_schema(tool)), "x-guidance": {"whitespace_pattern": SCHEMA_SPACE}}
        lines += [
            f'body_{index}: {lark_text(opening)} args_{index} "}}"',
            f"args_{index}: %json {json.dumps(schema, ensure_ascii=False)}",
        ]
    text = "\n".join(lines)
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequestError(
            f"the tools' schemas make a guide of {len(text)} characters, the limit is {MAX_TEXT_CHARS}", param="tools"
        )
    return Guide(kind="grammar", text=text)


def forced_choice(guide: Guide | None, tools: Sequence[Tool]) -> tuple[str | None, bool] | None:
    """What `guide_for_tools` made this guide of: (choice, parallel); None if it is not one of its guides.

    >>> forced_choice(guide_for_tools([Tool(name="a"), Tool(name="b")], "b"), [Tool(name="a"), Tool(name="b")])
    ('b', True)
    """
    if guide is None or guide.kind != "grammar":
        return None
    asked = [(None, True), (None, False), *((tool.name, True) for tool in tools)] if tools else []
    return next((one for one in asked if guide_for_tools(tools, one[0], parallel=one[1]) == guide), None)


def tool_schema(tool: Tool) -> dict[str, object]:
    """JSON schema of a tool's arguments; a tool that takes none has an object without properties.

    Raises:
        InvalidRequestError: not a JSON object.
    """
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    try:
        schema = json.loads(tool.parameters)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequestError("a tool's parameters are not a JSON object that is a schema", param="tools")
    return schema


def _closed(schema: dict[str, object]) -> dict[str, object]:
    """The schema without arguments that the tool does not declare, unless it speaks of others itself.

    A function is called with its own parameters; a small model likes to repeat the schema's words as further ones.
    """
    return (
        schema if OPEN_WORDS & schema.keys() or "properties" not in schema else schema | {"additionalProperties": False}
    )


def lark_text(text: str) -> str:
    """A literal of a Lark grammar that stands for `text`."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() or char > "\uffff" else f"\\u{ord(char):04x}" for char in written)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` begins with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
