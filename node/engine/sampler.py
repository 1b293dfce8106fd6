"""Choosing the next token: one generation's parameters, what it has seen, and its random numbers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from nsllm.node.engine import distribution
from nsllm.node.engine.bad_words import BadWords, Spelled
from nsllm.node.engine.distribution import MICRO, Adjustments, Floats, Ints, Limits, Mask
from nsllm.node.engine.strain import Strain, strain_of
from nsllm.record import Sampling

if TYPE_CHECKING:
    import torch

MOST_TOP: Final = 20
"""Alternatives that are told with a token, as in OpenAI's API."""


class NoChoiceError(Exception):
    """A generation that cannot go on: no token may be chosen, or its guide gave up. Others can."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a generation."""

    token: int
    logprob: float | None = None
    """Natural log-probability before any parameter; None if it is not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and theirs, most likely first, the lower token first among equals."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a token that is there already stands among all that could be in its place."""

    logprob: float
    """Natural log-probability before any parameter."""
    rank: int
    """1 and one more for each token that is likelier."""
    top: tuple[tuple[int, float], ...]
    """As of a `Choice`."""


class TokenGuide(Protocol):
    """What an answer must match, token by token: see `nsllm.node.engine.guide`."""

    def mask(self) -> Mask:
        """Tokens that may come next, one bit each, 32 in a word, lowest first. Raises `NoChoiceError`."""
        ...

    def accept(self, token: int) -> None:
        """This token came. Raises `NoChoiceError`."""
        ...


class Sampler:
    """One generation's choices: a function of parameters, seed and logits, whoever else is generating.

    What is drawn is defined in `nsllm.node.engine.distribution`. A choice takes one number of Mersenne Twister seeded
    with the 64-bit seed (`random.Random`, whose `random()` is the same on every platform and Python version).

    Args:
        sampling: every field set but `max_tokens`, stops and bad words, which are not used here; None elsewhere is off.
        prompt_token_ids: the repetition penalty counts them, the other two do not.
        end_token_ids: ruled out until `min_tokens` are there.
        bad_words: tokens of `sampling.bad_words`, see `nsllm.node.engine.bad_words`.
        guide: what the answer must match.
        top_logprobs: alternatives to tell with each token, at most `MOST_TOP`; None: no probabilities at all.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_token_ids: Sequence[int],
        *,
        end_token_ids: Collection[int] = (),
        bad_words: Sequence[Spelled] = (),
        guide: TokenGuide | None = None,
        top_logprobs: int | None = None,
    ) -> None:
        self.guide = guide
        self.top_logprobs = None if top_logprobs is None else min(top_logprobs, MOST_TOP)
        top_p = sampling.top_p_micro
        self.limits = Limits(
            scale=distribution.scale_of(sampling.temperature_micro or 0),
            top_k=sampling.top_k or 0,
            top_p_micro=MICRO if top_p is None else min(top_p, MICRO),
            min_p_micro=sampling.min_p_micro or 0,
        )
        self._random = random.Random((sampling.seed or 0) % 2**64)  # noqa: S311 - sampling is no secret
        self._min_tokens = sampling.min_tokens or 0
        self._ends = np.array(sorted(end_token_ids) if self._min_tokens else [], dtype=np.int32)
        self._bad_words = BadWords(bad_words) if bad_words else None
        bias = dict(sampling.logit_bias)
        self._biased = np.array(list(bias), dtype=np.int32)
        self._bias = np.array([value / MICRO for value in bias.values()], dtype=np.float32)
        self._repetition = np.float32((sampling.repetition_penalty_micro or MICRO) / MICRO)
        self._frequency = np.float32((sampling.frequency_penalty_micro or 0) / MICRO)
        self._presence = np.float32((sampling.presence_penalty_micro or 0) / MICRO)
        self._penalizes = bool(self._repetition != 1 or self._frequency or self._presence)
        self._seen = _Seen(prompt_token_ids if self._penalizes and self._repetition != 1 else ())
        self._chosen = 0

    @property
    def change(self) -> Adjustments | None:
        """What is done to the next logits; None if nothing is. Its arrays hold until the next token is accepted."""
        banned = self._ends if self._chosen < self._min_tokens else self._ends[:0]
        bad = [] if self._bad_words is None else self._bad_words.next_tokens()
        if bad:
            banned = np.concatenate((np.array(bad, dtype=np.int32), banned))
        if not (self._penalizes or len(banned) or len(self._biased)):
            return None
        return Adjustments(
            banned=banned,
            always_banned=len(bad),
            biased=self._biased,
            bias=self._bias,
            seen=self._seen.tokens,
            counts=self._seen.counts,
            repetition=self._repetition,
            frequency=self._frequency,
            presence=self._presence,
        )

    def trace(self, logits: torch.Tensor, token: int) -> Strain:
        """How well a token that was published fits here, by the definition itself; it is accepted as the next one.

        Raises:
            NoChoiceError: the guide does not allow it.
        """
        raw: Floats = logits.numpy()
        mask = None if self.guide is None else self.guide.mask()
        change, draw = self.change, self.draw()
        scores = raw if change is None and mask is None else distribution.adjusted(raw, change, mask)
        if change is not None and len(change.banned) and distribution.highest_of(scores) == -np.inf:
            scores = distribution.adjusted(raw, without_bans(change), mask)
        strain = strain_of(scores, self.limits, token, draw)
        self.accept(token)
        return strain

    def draw(self) -> int:
        """The next random number: 53 bits."""
        return int(self._random.random() * 2**distribution.DRAW_BITS)

    def accept(self, token: int) -> None:
        """This token was chosen.

        Raises:
            NoChoiceError: the guide gave up.
        """
        self._chosen += 1
        if self._penalizes:
            self._seen.add(token)
        if self._bad_words is not None:
            self._bad_words.accept(token)
        if self.guide is not None:
            self.guide.accept(token)

    def choose(self, logits: torch.Tensor) -> Choice:
        """The next token, by the definition itself; `logits`: (vocabulary,) float32 on the CPU, left as they are.

        Raises:
            NoChoiceError: see there.
        """
        raw: Floats = logits.numpy()
        mask = None if self.guide is None else self.guide.mask()
        change, draw = self.change, self.draw()
        token = _choose(raw, change, mask, self.limits, draw)
        if token is None and change is not None and len(change.banned):  # the guide leaves nothing but an end token
            token = _choose(raw, without_bans(change), mask, self.limits, draw)
        if token is None:
            raise NoChoiceError("no token may be chosen")
        self.accept(token)
        return Choice(token) if self.top_logprobs is None else _told(raw, token, self.top_logprobs)


class Chooser(Protocol):
    """Chooses for a whole step."""

    def choose_all(
        self, samplers: Sequence[Sampler], rows: Sequence[torch.Tensor] | torch.Tensor
    ) -> list[Choice | NoChoiceError]:
        """The next token of each generation, which its sampler has accepted, or why there is none.

        Args:
            samplers: of generations that differ.
            rows: (vocabulary,) each, float32 on the CPU: the logits of each, left as they are.
        """
        ...

    def trace(self, sampler: Sampler, row: torch.Tensor, token: int) -> Strain:
        """As `Sampler.trace`."""
        ...

    def standings(self, rows: torch.Tensor, token_ids: Sequence[int], top: int) -> list[Standing]:
        """How tokens stand under their rows of logits (tokens, vocabulary); `top` alternatives, `MOST_TOP` at most."""
        ...


class PlainChooser:
    """Chooses by the definition itself, one generation after another."""

    def trace(self, sampler: Sampler, row: torch.Tensor, token: int) -> Strain:
        """See `Chooser`."""
        return sampler.trace(row, token)

    def standings(self, rows: torch.Tensor, token_ids: Sequence[int], top: int) -> list[Standing]:
        """See `Chooser`."""
        return ranked(
            rows, [_told(row.numpy(), token, min(top, MOST_TOP)) for row, token in zip(rows, token_ids, strict=True)]
        )

    def choose_all(
        self, samplers: Sequence[Sampler], rows: Sequence[torch.Tensor] | torch.Tensor
    ) -> list[Choice | NoChoiceError]:
        """See `Chooser`."""
        choices: list[Choice | NoChoiceError] = []
        for sampler, row in zip(samplers, rows, strict=True):
            try:
                choices.append(sampler.choose(row))
            except NoChoiceError as error:
                choices.append(error)
        return choices


class _Seen:
    """Tokens that penalties look at, and how often each stands in the answer, as arrays that grow in place."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._index = {token: at for at, token in enumerate(dict.fromkeys(prompt))}
        size = len(self._index)
        self._tokens = np.zeros(size + 64, dtype=np.int32)
        self._tokens[:size] = list(self._index)
        self._counts = np.zeros(size + 64, dtype=np.int32)

    @property
    def tokens(self) -> Ints:
        return self._tokens[: len(self._index)]

    @property
    def counts(self) -> Ints:
        return self._counts[: len(self._index)]

    def add(self, token: int) -> None:
        at = self._index.setdefault(token, len(self._index))
        if at == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._tokens[at] = token
        self._counts[at] += 1


def without_bans(change: Adjustments) -> Adjustments:
    """The same with end tokens allowed."""
    return dataclasses.replace(change, banned=change.banned[: change.always_banned])


def told(token: int, logit: float, highest: float, total: int, likely: Sequence[tuple[int, float]]) -> Choice:
    """A choice with its probabilities.

    Args:
        token: that was chosen.
        logit: its own.
        highest: of all logits.
        total: sum of the weights of all logits at temperature 1.
        likely: tokens and logits to tell beside it.
    """
    return Choice(
        token,
        distribution.log_probability(logit, highest, total),
        tuple((one, distribution.log_probability(value, highest, total)) for one, value in likely),
    )


def ranked(rows: torch.Tensor, tokens: Sequence[Choice]) -> list[Standing]:
    """Tokens with their ranks in their rows of logits (tokens, vocabulary)."""
    found: list[Standing] = []
    for row, one in zip(rows, tokens, strict=True):
        assert one.logprob is not None
        found.append(Standing(one.logprob, int((row > row[one.token]).sum()) + 1, one.top))
    return found


def _choose(raw: Floats, change: Adjustments | None, mask: Mask | None, limits: Limits, draw: int) -> int | None:
    if change is not None or mask is not None:
        raw = distribution.adjusted(raw, change, mask)
    return distribution.choose(raw, limits, draw)


def _told(raw: Floats, token: int, top: int) -> Choice:
    highest = distribution.highest_of(raw)
    total = int(distribution.weights(raw, distribution.scale_of(MICRO)).sum())
    likely = [(int(one), float(raw[one])) for one in _likely(raw, top) if raw[one] > -np.inf]
    return told(token, float(raw[token]), float(highest), total, likely)


def _likely(raw: Floats, top: int) -> Ints:
    """The `top` most likely tokens, the lower one first among equals: found without sorting all."""
    if not 0 < top < len(raw):
        return np.argsort(-raw, kind="stable")[:top].astype(np.int32)
    falling = -raw
    # Not a number comes last, and is no bound.
    candidates = np.flatnonzero(~(falling > np.partition(falling, top - 1)[top - 1])).astype(np.int32)
    return candidates[np.argsort(falling[candidates], kind="stable")][:top]
