"""An answer of `/v1/completions` on its way to the client: the older shape, which may begin with the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from nsllm.node.api.answers import Answer, Frame, about, shown_ids
from nsllm.node.api.logprobs import Telling, echoed_logprobs, joined, prompt_logprobs, text_logprobs
from nsllm.node.chat import ChatCommand, ChatDelta, ChatFinished, ChatStarted
from nsllm.node.engine.port import PromptToken, TokenLogprob

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Wanted:
    """What each choice tells, beside its text."""

    echo: bool = False
    """The text begins with the prompt."""
    logprobs: int | None = None
    """Alternatives to each token; with `echo` to the prompt's, too."""
    prompt_logprobs: int | None = None
    """The same in vLLM's shape, of the prompt alone."""
    answer: bool = True
    """False: the prompt is all that is told."""


class TextAnswer:
    """A choice of `/v1/completions`."""

    def __init__(self, index: int, command: ChatCommand, *, wanted: Wanted) -> None:
        self.index = index
        self.started: ChatStarted | None = None
        self.finished: ChatFinished | None = None
        self._wanted = wanted
        self._tells_ids = command.return_token_ids
        self._texts: list[str] = []
        self._telling = Telling()
        self._logprobs: list[TokenLogprob] = []
        self._prompt: list[PromptToken] = []
        self._owes_echo = False
        """The chunk that echoes the prompt waits for its probabilities."""
        self._sum, self._count = 0.0, 0
        self._offset = 0
        self._frame: Frame | None = None
        self._before = self._after = b""

    @property
    def mean_logprob(self) -> float:
        """Of all tokens, those that end the answer too; minus infinity of none, and of an answer that is withheld."""
        withheld = self.finished is not None and self.finished.finish_reason == "content_filter"
        return self._sum / self._count if self._count and not withheld else -math.inf

    def begin(self, frame: Frame) -> bytes:
        """See `Answer`; this shape has no chunk before the text, but for the prompt if it is echoed."""
        self._frame = frame
        self._before, self._after = frame.around(self._choice("", None, None), b'""')
        self._owes_echo = self._wanted.echo
        return b"" if self._tells else self._echo()

    def delta(self, event: ChatDelta) -> bytes:
        """See `Answer`."""
        self._prompt.extend(event.prompt)
        if not self._wanted.answer:
            return b""
        self._sum += math.fsum(token.logprob for token in event.logprobs)
        self._count += len(event.logprobs)
        told = self._telling.take(event)
        if self._frame is None:
            self._texts.append(event.text)
            self._logprobs.extend(told)
            return b""
        echo = self._echo() if event.text or event.logprobs else b""
        if told and self._tells:
            return echo + self._frame.choice(self._choice(event.text, self._tell(told), None))
        return echo + self._before + _encode(event.text) + self._after if event.text else echo

    def end(self, *, several: bool, first: bool) -> bytes:
        """See `Answer`."""
        assert self.finished is not None
        rest = self._telling.rest(self.finished, ends=self._wanted.echo)
        if self._frame is None:
            self._logprobs.extend(rest)
            return b""
        own = about(self)
        echo = self._echo()
        told = self._tell(rest) if rest and self._tells else None
        last = self._choice("", told, self.finished.finish_reason) | self._token_ids()
        if several:
            last["nsllm"] = own
        return echo + (self._frame.choice(last, nsllm=own) if first else self._frame.choice(last))

    def choice(self, *, several: bool) -> dict[str, object]:
        """See `Answer`."""
        own = about(self)
        assert self.finished is not None
        text = self._echoed() + "".join(self._texts)
        whole = self._choice(text, self._told(), self.finished.finish_reason) | self._token_ids()
        if self._wanted.prompt_logprobs is not None:
            whole["prompt_logprobs"] = prompt_logprobs(self._prompt, self._wanted.prompt_logprobs)
        return {**whole, "nsllm": own} if several else whole

    def beside(self) -> dict[str, object]:
        """See `Answer`; in this shape the choice says it all."""
        return {}

    @property
    def _tells(self) -> bool:
        return self._wanted.logprobs is not None

    def _echo(self) -> bytes:
        """The chunk that echoes the prompt, once."""
        if not self._owes_echo or self._frame is None:
            return b""
        self._owes_echo = False
        text = self._echoed()
        self._offset = len(text)
        return self._frame.choice(self._choice(text, self._of_prompt(), None)) if text or self._prompt else b""

    def _echoed(self) -> str:
        return self.started.prompt if self._wanted.echo and self.started is not None else ""

    def _of_prompt(self) -> dict[str, object] | None:
        most = self._wanted.logprobs
        return None if most is None else echoed_logprobs(self._prompt, most)

    def _told(self) -> dict[str, object] | None:
        """Probabilities of the whole text."""
        if not self._tells:
            return None
        told, before = text_logprobs(self._logprobs, len(self._echoed())), self._of_prompt()
        return joined(before, told) if self._wanted.echo and before is not None else told

    def _token_ids(self) -> dict[str, object]:
        if not self._tells_ids or self.finished is None:
            return {}
        return {
            "token_ids": shown_ids(self.finished.token_ids) if self._wanted.answer else [],
            "prompt_token_ids": shown_ids(self.finished.prompt_token_ids),
        }

    def _tell(self, tokens: list[TokenLogprob]) -> dict[str, object]:
        told = text_logprobs(tokens, self._offset)
        self._offset += sum(len(token.token.decode("utf-8", "replace")) for token in tokens)
        return told

    def _choice(self, text: str, told: dict[str, object] | None, reason: str | None) -> dict[str, object]:
        return {"index": self.index, "text": text, "logprobs": told, "finish_reason": reason}


def likeliest(answers: Sequence[Answer], *, count: int, of: int) -> list[Answer]:
    """The `count` answers to each prompt whose tokens are likeliest on average, likeliest first.

    Args:
        answers: of all prompts, `of` for each, whole ones.
        count: of each that are kept.
        of: answers of a prompt.
    """
    found: list[Answer] = []
    for at in range(0, len(answers), of):
        group = cast("Sequence[TextAnswer]", answers[at : at + of])
        found += sorted(group, key=lambda one: -one.mean_logprob)[:count]
    return found
