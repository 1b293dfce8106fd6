"""Text of an answer as it comes: nothing that may still become a stop string, and nothing after one."""

from __future__ import annotations

from collections.abc import Sequence

from nsllm.node.engine.spelling import TextDecoder


class TextStream:
    """Incremental detokenization with stop strings.

    Args:
        decoder: of this sequence alone.
        stops: strings that end the text; the text ends before the first of them.
        free_tokens: so many tokens at the beginning end nothing, whatever they spell.
    """

    def __init__(self, decoder: TextDecoder, stops: Sequence[str], free_tokens: int = 0) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._free_tokens = free_tokens
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that this token completes; may be empty. Sets `stopped` at a stop string."""
        text = self._decoder.push(token_id)
        if not self._stops:
            return text
        if self._free_tokens:
            self._free_tokens -= 1
            return text
        return self._cut(text)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        text = self._cut(self._decoder.finish()) + self._held
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
