"""What a contestant can be asked to do, and the loop that asks it: JSON lines in, JSON lines out."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np

CONTEXT_TOKENS = 65
"""Tokens that each stream has before decoding is timed: two blocks of the fast path's cache and the last token, so
that beginning again costs it one step."""


class Contestant(Protocol):
    """An engine, step by step. Token ids are the model's; `settings` is one of what `settings_of` lists."""

    def about(self) -> dict[str, object]:
        """Versions, and what else belongs to the record."""
        ...

    def settings_of(self, task: str, *, thorough: bool) -> list[str]:
        """Ways of doing `task` that are worth a try, or all of them; the quickest is the one that counts."""
        ...

    def decode(self, texts: Sequence[Sequence[int]], settings: str) -> Callable[[], None]:
        """Have each stream's text read; then a step of the returned function writes one token in each stream."""
        ...

    def prefill(self, text: Sequence[int], settings: str) -> Callable[[], None]:
        """A function that reads `text`, which is not known yet, up to the logits after its last token."""
        ...

    def losses(self, windows: Sequence[Sequence[int]], read_at_once: int, settings: str) -> np.ndarray:
        """Negative log-probabilities (windows, tokens - 1) of all tokens but the first.

        The first `read_at_once` tokens of each window are read as a prompt, the others one by one, all windows in a
        batch: through the kernels that write answers.
        """
        ...


class Writer(Contestant, Protocol):
    """A contestant that is compared over whole answers, too."""

    def generate(self, texts: Sequence[Sequence[int]], tokens: int, settings: str) -> None:
        """Read the texts and continue each by that many tokens, the likeliest ones."""
        ...


def losses_of(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Negative natural log-probability of each token under its row of `logits` (tokens, vocabulary)."""
    rows = logits.astype(np.float32, copy=False)
    most = rows.max(axis=1, keepdims=True)
    total = np.log(np.exp(rows - most).sum(axis=1, dtype=np.float64))
    values: np.ndarray = total + most[:, 0] - rows[np.arange(len(rows)), np.asarray(tokens)]
    return values


class Stage:
    """One contestant, and the texts that it is given."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._texts: list[list[int]] = []
        self._prompts = itertools.count()

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do one task; its method is named after it."""
        details = dict(task)
        found: dict[str, Any] = getattr(self, f"do_{details.pop('do')}")(**details)
        return found

    def do_texts(self, texts: list[list[int]]) -> dict[str, Any]:
        """Take what all tasks read: windows of token ids."""
        self._texts = texts
        return {"about": self._contestant.about()}

    def do_settings(self, of: str, *, thorough: bool) -> dict[str, Any]:
        """Ways of doing a task."""
        return {"settings": self._contestant.settings_of(of, thorough=thorough)}

    def do_decode(self, streams: int, steps: int, settings: str) -> dict[str, Any]:
        """Time steps that write one token in each stream."""
        step = self._contestant.decode([text[:CONTEXT_TOKENS] for text in self._texts[:streams]], settings)
        step()  # warm-up
        return timed(lambda: [step() for _ in range(steps)], steps * streams)

    def do_prefill(self, tokens: int, settings: str) -> dict[str, Any]:
        """Time reading a prompt that begins like no other."""
        number = next(self._prompts)
        text = self._texts[number % len(self._texts)]
        turned = 1 + number // len(self._texts)
        return timed(self._contestant.prefill([*text[turned:], *text[:turned]][:tokens], settings), tokens)

    def do_generate(self, streams: int, prompt_tokens: int, tokens: int, settings: str) -> dict[str, Any]:
        """Time whole greedy answers, prompts included."""
        prompts = [text[:prompt_tokens] for text in self._texts[:streams]]
        return timed(lambda: cast("Writer", self._contestant).generate(prompts, tokens, settings), tokens * streams)

    def do_perplexity(self, windows: int, read_at_once: int, settings: str) -> dict[str, Any]:
        """Sum of negative log-probabilities, and of how many tokens."""
        values = self._contestant.losses(self._texts[:windows], read_at_once, settings)
        return {"loss": math.fsum(values.ravel()), "count": values.size}


def timed(run: Callable[[], object], tokens: int) -> dict[str, Any]:
    """Wall and CPU seconds of one call, those of all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "tokens": tokens}


def serve(contestant: Contestant) -> None:
    """Do what standard input says until it ends. What libraries print goes to standard error."""
    stage = Stage(contestant)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(stage.answer(json.loads(line))) + "\n")
            answers.flush()
