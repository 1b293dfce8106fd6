"""One tool call's JSON object, read as its text comes: the function's name, and the arguments in pieces."""

from __future__ import annotations

import json
import re
from typing import Final, Literal

NAME_KEYS: Final = frozenset({"name", "function"})
"""Llama 3.1 sometimes calls the name `function`."""
ARGUMENT_KEYS: Final = frozenset({"arguments", "parameters"})
OTHER_KEYS: Final = frozenset({"type", "id"})
SPACE: Final = " \t\r\n"
_NAME: Final = re.compile(r"[\w.-]{1,64}")


class CallReader:
    """Takes a call's text until its object closes (`done`) or it cannot be a call (`failed`).

    Args:
        names: functions that may be called; None: any, because marks around it say that it is a call.
        name: the call is this function's, and the object its arguments alone.
    """

    def __init__(self, names: frozenset[str] | None, name: str | None = None) -> None:
        self._names = names
        self.name = name
        self.done = False
        self.failed = False
        self._at: Literal["open", "key", "in key", "colon", "value", "in value", "comma"] = "open"
        self._key = ""
        self._text: list[str] = []
        """Characters of the key, or of the value that is not an argument in pieces."""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._pieces: list[str] = []
        self._arguments_seen = name is not None
        if name is not None:
            self._at, self._key = "value", "arguments"
        self._whole = name is not None
        self._streams = False
        """The value goes out in pieces."""
        self._begun = ""
        """First character of the value."""

    @property
    def certain(self) -> bool:
        """It is a call: the function is known, and it stands in tags or has arguments."""
        return self.name is not None and (self._names is None or self._arguments_seen or self.done)

    def take(self) -> str:
        """Text of the arguments since the last call of this."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def feed(self, text: str) -> int:
        """Read on; how many characters were taken, less than all only at the end or at a failure."""
        for index, char in enumerate(text):
            if self.done or self.failed or not self._step(char):
                return index
        return len(text)

    def _step(self, char: str) -> bool:
        """One character; False if it is not taken."""
        match self._at:
            case "in key" | "in value":
                return self._inside(char)
            case _ if char in SPACE:
                return True
            case "open" if char == "{":
                self._at = "key"
            case "key" if char == '"':
                self._at, self._text, self._quoted = "in key", [char], True
            case "colon" if char == ":":
                self._at = "value"
            case "value":
                return self._value(char)
            case "comma" if char == ",":
                self._at = "key"
            case "comma" | "key" if char == "}":
                return self._close()
            case _:
                return self._fail()
        return True

    def _close(self) -> bool:
        if self.name is None:
            return self._fail()
        if not self._arguments_seen:
            self._pieces.append("{}")
        self.done = True
        return True

    def _fail(self) -> bool:
        self.failed = True
        return False

    def _value(self, char: str) -> bool:
        if char in "}],:":
            return self._fail()
        self._at, self._text, self._depth = "in value", [], 0
        self._quoted = self._escaped = False
        if self._key in ARGUMENT_KEYS and not self._whole:
            self._arguments_seen = True
        self._streams = self._key in ARGUMENT_KEYS and char == "{"
        self._begun = char
        return self._inside(char)

    def _inside(self, char: str) -> bool:
        """A character of a string, an object, a list or a plain word."""
        if self._at == "in key":
            self._text.append(char)
            return self._end_of_string(char) or self._end_key()
        scalar = self._begun not in '"{['
        if scalar and (char in SPACE or char in ",}]"):
            return self._end_value() and self._step(char)
        (self._pieces if self._streams else self._text).append(char)
        if self._quoted:
            ended = not self._end_of_string(char)
        elif char == '"':
            self._quoted, ended = True, False
        else:
            self._depth += (char in "{[") - (char in "}]")
            ended = char in "}]"
        return self._end_value() if ended and self._depth == 0 else True

    def _end_of_string(self, char: str) -> bool:
        """Keeps track of a string; True while it goes on. Its first quote must have been seen."""
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._quoted = False
            return False
        return True

    def _end_key(self) -> bool:
        key = _string("".join(self._text))
        known = NAME_KEYS | ARGUMENT_KEYS | OTHER_KEYS
        if key is None or (self._names is not None and key not in known):
            return self._fail() or True
        self._key, self._at = key, "colon"
        return True

    def _end_value(self) -> bool:
        self._at = "comma"
        if self._whole:
            self.done = True
        elif self._key in NAME_KEYS:
            name = _string("".join(self._text))
            if name is None or not _NAME.fullmatch(name) or (self._names is not None and name not in self._names):
                return self._fail() or True
            self.name = name
        elif self._key in ARGUMENT_KEYS and not self._streams:
            raw = "".join(self._text)
            decoded = _string(raw)  # some models put the object's text into a string
            self._pieces.append("{}" if raw == "null" else raw if decoded is None else decoded)
        return True


def _string(text: str) -> str | None:
    """The string that JSON text spells; None if it spells none."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
