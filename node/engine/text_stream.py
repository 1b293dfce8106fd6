"""Text out of tokens as they come: complete characters only, and nothing that may still become a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

REPLACEMENT: Final = "\ufffd"
"""What a decoder shows for bytes that are no character, or not one yet."""


class TextStream:
    """Incremental detokenization with stop strings.

    Decodes a short window of recent tokens each time, beginning one emitted piece back, because decoders treat the
    first token of a text differently (SentencePiece drops its space).

    Args:
        decode: token ids to text, special tokens left out.
        stops: strings that end the text; the text ends before the first of them.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._start = 0
        """First token of the window."""
        self._fresh = 0
        """First token of the window whose text was not complete when the window last moved."""
        self._sent_chars = 0
        """Characters of the window's text that have left the decoder."""
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that this token completes; may be empty. Sets `stopped` at a stop string."""
        self._ids.append(token_id)
        window = self._decode(self._ids[self._start :])
        # Only the last character can still change: decoders show each broken sequence as one replacement.
        complete = len(window) - window.endswith(REPLACEMENT)
        text = window[self._sent_chars : complete]
        self._sent_chars = max(self._sent_chars, complete)
        if text and complete == len(window):
            self._start, self._fresh = self._fresh, len(self._ids)
            self._sent_chars = len(self._decode(self._ids[self._start : self._fresh]))
        return self._cut(text)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        rest = self._decode(self._ids[self._start :])[self._sent_chars :]
        self._sent_chars += len(rest)
        text = self._cut(rest) + self._held
        self._held = ""
        return text

    def _cut(self, text: str) -> str:
        """`text` after what was held, up to the first stop string or to what may become one."""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with.

    >>> _overlap("say STO", "STOP")
    3
    """
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
