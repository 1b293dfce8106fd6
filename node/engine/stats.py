"""What an engine did, counted: the numbers behind the status page and the metrics, in vLLM's terms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nsllm.node.engine.devices import Way

if TYPE_CHECKING:
    from nsllm.node.engine.protocol import Load

# Upper bounds of buckets are those of vLLM 0.11 (`vllm/v1/metrics/loggers.py`), so that its dashboards fit; `FIRST_S`
# also serves the queue and the prefill, whose buckets there begin at 0.3 s.
FIRST_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
BETWEEN_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
WHOLE_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
TOKENS: Final = tuple(float(digit * 10**zeros) for zeros in range(5) for digit in (1, 2, 5))
ROWS: Final = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
Outcome = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values were seen, by size."""

    bounds: tuple[float, ...]
    """Upper bounds of the buckets, included in them; one more bucket holds what is above."""
    counts: tuple[int, ...]
    """Of each bucket alone."""
    total: float
    """Sum of all values."""


@dataclass(frozen=True, slots=True)
class Histograms:
    """Of generations and steps since the peer started."""

    first_token: Histogram
    """Seconds from the question to the first token."""
    between_tokens: Histogram
    """Seconds."""
    queue: Histogram
    """Seconds from the question until the worker began to read the prompt."""
    prefill: Histogram
    """Seconds from then to the first token."""
    decode: Histogram
    """Seconds from the first token to the last."""
    whole: Histogram
    """Seconds from the question to the end of the answer."""
    step_tokens: Histogram
    """Tokens that the text model read in a step."""
    prompt_length: Histogram
    """Tokens."""
    answer_length: Histogram
    """Tokens."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the peer started, over all workers that ran; what is in use as of the last step."""

    path: Way
    """Which implementation runs the text model."""
    threads: int
    batch_tokens: int
    """Tokens that the text model read in the last step."""
    step_s: float
    """Time that the last step took."""
    used_blocks: int
    """Of keys and values; 0 of 0 where nobody counts them."""
    blocks: int
    prompt_tokens: int
    """That were read, or known already."""
    generation_tokens: int
    queried_tokens: int
    """Of prompts that were looked for among those that are known."""
    found_tokens: int
    """Of those: whose keys and values were known."""
    outcomes: tuple[tuple[Outcome, int], ...]
    """How generations ended; `abort`: the caller left."""
    histograms: Histograms

    @property
    def cache_usage(self) -> float | None:
        """Share of the blocks for keys and values that are in use."""
        return self.used_blocks / self.blocks if self.blocks else None

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens that were known; None before the first."""
        return self.found_tokens / self.queried_tokens if self.queried_tokens else None


class Tally:
    """A histogram that grows."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def histogram(self) -> Histogram:
        """As it stands."""
        return Histogram(self._bounds, tuple(self._counts), self._total)


class Recorder:
    """Counts what happens in an engine."""

    def __init__(self) -> None:
        self.first_token, self.queue, self.prefill = Tally(FIRST_S), Tally(FIRST_S), Tally(FIRST_S)
        self.between_tokens = Tally(BETWEEN_S)
        self.decode, self.whole = Tally(WHOLE_S), Tally(WHOLE_S)
        self.step_tokens, self.prompt_length, self.answer_length = Tally(ROWS), Tally(TOKENS), Tally(TOKENS)
        self.prompt_tokens = self.generation_tokens = 0
        self._queried_tokens = self._found_tokens = 0
        self._outcomes: dict[Outcome, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._load: Load | None = None

    def step(self, load: Load) -> None:
        """The worker made a step."""
        self._load = load
        self._queried_tokens += load.queried_tokens
        self._found_tokens += load.found_tokens
        if load.rows:
            self.step_tokens.add(load.rows)

    def ended(self, outcome: Outcome) -> None:
        """A generation ended."""
        self._outcomes[outcome] += 1

    def lost(self) -> None:
        """The worker is gone, and with it what it held."""
        self._load = None

    def stats(self, path: Way, threads: int) -> EngineStats:
        """All of it, as it stands."""
        load = self._load
        return EngineStats(
            path=path,
            threads=threads,
            batch_tokens=load.rows if load else 0,
            step_s=load.step_s if load else 0.0,
            used_blocks=load.used_blocks if load else 0,
            blocks=load.blocks if load else 0,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            queried_tokens=self._queried_tokens,
            found_tokens=self._found_tokens,
            outcomes=tuple(self._outcomes.items()),
            histograms=Histograms(
                first_token=self.first_token.histogram(),
                between_tokens=self.between_tokens.histogram(),
                queue=self.queue.histogram(),
                prefill=self.prefill.histogram(),
                decode=self.decode.histogram(),
                whole=self.whole.histogram(),
                step_tokens=self.step_tokens.histogram(),
                prompt_length=self.prompt_length.histogram(),
                answer_length=self.answer_length.histogram(),
            ),
        )


class Timing:
    """One generation's times, told to a recorder as they come. Times in seconds of one clock.

    Args:
        recorder: that counts them.
        asked_s: when the question came.
    """

    __slots__ = ("_asked_s", "_first_s", "_last_s", "_outcome", "_recorder", "_started_s", "tokens")

    def __init__(self, recorder: Recorder, asked_s: float) -> None:
        self._recorder = recorder
        self._asked_s = asked_s
        self._started_s = self._first_s = self._last_s = asked_s
        self._outcome: Outcome = "abort"
        self.tokens = 0

    def started(self, now_s: float, prompt_tokens: int) -> None:
        """The worker begins to read the prompt."""
        self._started_s = now_s
        self._recorder.queue.add(now_s - self._asked_s)
        self._recorder.prompt_tokens += prompt_tokens
        self._recorder.prompt_length.add(prompt_tokens)

    def gained(self, now_s: float, tokens: int) -> None:
        """Tokens came."""
        if not self.tokens:
            self._first_s = now_s
            self._recorder.first_token.add(now_s - self._asked_s)
            self._recorder.prefill.add(now_s - self._started_s)
        else:
            self._recorder.between_tokens.add(now_s - self._last_s)
        self._last_s = now_s
        self.tokens += tokens
        self._recorder.generation_tokens += tokens

    def finished(self, reason: Literal["stop", "length"]) -> None:
        """The last token has come."""
        self._outcome = reason
        self._recorder.whole.add(self._last_s - self._asked_s)
        self._recorder.decode.add(self._last_s - self._first_s)
        self._recorder.answer_length.add(self.tokens)

    def failed(self) -> None:
        """There will be no more, by the worker's doing."""
        self._outcome = "error"

    def over(self) -> Outcome:
        """Nobody listens any more; how the generation ended."""
        self._recorder.ended(self._outcome)
        return self._outcome

    @property
    def decoding_s(self) -> float:
        """From the worker's beginning to the last token."""
        return self._last_s - self._started_s
