"""Log-probabilities as clients read them: OpenAI's chat shape, and the older one of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nsllm.node.chat import ChatDelta, ChatFinished
from nsllm.node.engine.port import PromptToken, TokenLogprob
from nsllm.node.engine.sampler import MOST_TOP

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

    def rest(self, finished: ChatFinished, *, ends: bool = False) -> list[TokenLogprob]:
        """Tokens to tell at the end; with `ends` those too that end the answer."""
        return [] if finished.finish_reason == "stop" and not ends else self._held


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


def echoed_logprobs(tokens: Sequence[PromptToken], top: int) -> dict[str, object]:
    """Of an echoed prompt, in the shape of `text_logprobs`; nothing is known of its first token.

    Args:
        tokens: of the whole prompt.
        top: alternatives that were asked for; there may be more.
    """
    return {
        "text_offset": [token.start for token in tokens],
        "token_logprobs": [None if token.logprob is None else max(token.logprob, LEAST) for token in tokens],
        "tokens": [_text(token.token) for token in tokens],
        "top_logprobs": [
            {_text(spelling): max(logprob, LEAST) for _, spelling, logprob in token.top[:top]} or None
            for token in tokens
        ],
    }


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, object]:
    """Two of `text_logprobs`, one behind the other."""
    return {name: [*one[name], *other[name]] for name in one}


def prompt_logprobs(tokens: Sequence[PromptToken], top: int = MOST_TOP) -> list[dict[str, object] | None] | None:
    """`prompt_logprobs` as vLLM tells them: of each token and of what is likely in its place, by token id.

    None where the prompt was not read; the first token has none.
    """
    return [None if token.logprob is None else _places(token, token.logprob, top) for token in tokens] or None


def _places(token: PromptToken, logprob: float, top: int) -> dict[str, object]:
    own = (token.token_id, token.token, logprob)
    rows = [(token.rank, own), *enumerate(token.top[:top], 1)]
    found: dict[str, object] = {}
    for rank, (token_id, spelling, value) in rows:
        if str(token_id) not in found:
            found[str(token_id)] = {"logprob": max(value, LEAST), "rank": rank, "decoded_token": _text(spelling)}
    return found


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
