"""Log-probabilities as clients read them: OpenAI's chat shape, and the older one of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nsllm.node.engine.port import TokenLogprob
from nsllm.node.service import ChatDelta, ChatFinished

LEAST: Final = -9999.0
"""What stands for minus infinity, which JSON has no word for (vLLM's choice)."""


class Telling:
    """Which tokens of an answer are told: those whose text is a part of it, however late that text comes.

    So neither an end token nor a stop string is told where they end the answer, as in OpenAI's API.
    """

    def __init__(self) -> None:
        self._held: list[TokenLogprob] = []

    def take(self, event: ChatDelta) -> list[TokenLogprob]:
        """Tokens to tell now."""
        if not event.text:
            self._held.extend(event.logprobs)
            return []
        told, self._held = [*self._held, *event.logprobs], []
        return told

    def rest(self, finished: ChatFinished) -> list[TokenLogprob]:
        """Tokens to tell at the end."""
        return [] if finished.finish_reason == "stop" else self._held


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    """`choices[].logprobs` of a chat completion, or of one chunk of it."""
    return {"content": [_entry(token) for token in tokens], "refusal": None}


def _entry(token: TokenLogprob) -> dict[str, object]:
    return {
        **_spelled(token.token, token.logprob),
        "top_logprobs": [_spelled(spelling, logprob) for spelling, logprob in token.top],
    }


def _spelled(token: bytes, logprob: float) -> dict[str, object]:
    return {"token": _text(token), "logprob": max(logprob, LEAST), "bytes": list(token)}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
    """`choices[].logprobs` of a completion, or of one chunk of it.

    Args:
        tokens: of the answer, or of the chunk.
        offset: characters of the answer before the first of them.
    """
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_text(token.token))
    return {
        "text_offset": offsets,
        "token_logprobs": [max(token.logprob, LEAST) for token in tokens],
        "tokens": [_text(token.token) for token in tokens],
        "top_logprobs": [
            {_text(spelling): max(logprob, LEAST) for spelling, logprob in token.top} if token.top else None
            for token in tokens
        ],
    }


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
