"""The agenda: what the driver does when. Moments in trio's seconds; no clock of its own: whoever asks says `now`."""

from __future__ import annotations

import enum
import math
from collections import deque

from nsllm.consensus.inputs import TimedOut, TimerStep
from nsllm.consensus.message import PolkaCertificate, RoundCertificate
from nsllm.consensus.timeouts import Timeouts
from nsllm.ids import Round

Relayed = PolkaCertificate | RoundCertificate


class Duty(enum.Enum):
    """What comes due beside the core's timers and relays."""

    FETCH = "fetch"
    """Catch up with the others, while they are ahead."""
    ASK = "ask"
    """Ask the application whether it wants a block; due once for each time that it is put down."""
    RESEND = "resend"
    """Say again what was said last."""


class Agenda:
    """Moments of one height; `begin` it anew for the next."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._timers: dict[tuple[TimerStep, Round], float] = {}
        self._relays: deque[tuple[float, Relayed]] = deque()
        self._ask_at = math.inf
        self._resend_at = math.inf
        self._fetch_at = math.inf
        self._decided_at = -math.inf

    def begin(self, now: float, *, ahead: bool) -> None:
        """A height begins. Timers and relays of the one before are void; `ahead`: others are known to be above it."""
        self._timers.clear()
        self._relays.clear()
        self._ask_at = now
        self._resend_at = now + self._timeouts.idle_s
        self._fetch_at = now if ahead else now + self._timeouts.grace_s

    def resume(self, now: float) -> None:
        """A height goes on after a restart: what we said may be lost."""
        self._ask_at = self._resend_at = now

    def decided(self, now: float) -> None:
        """We decided a height."""
        self._decided_at = now

    def is_fresh(self, now: float) -> bool:
        """Is the last decision so new that messages of its height are probably still under way?"""
        return now - self._decided_at < self._timeouts.resend_s / 2

    def arm(self, step: TimerStep, round_: Round, now: float) -> None:
        """Let a timer of the core fire after its timeout."""
        self._timers[step, round_] = now + self._timeouts.of(step, round_)

    def relay(self, certificate: Relayed, now: float) -> None:
        """Send a certificate to the others, unless the height is over by then."""
        self._relays.append((now + self._timeouts.relay_s, certificate))

    def ask(self) -> None:
        """Ask the application at once."""
        self._ask_at = -math.inf

    def ask_again(self, due_s: float, now: float) -> None:
        """The application is not due for a while."""
        self._ask_at = min(self._ask_at, now + due_s)

    def resend(self, now: float, *, idle: bool = False) -> None:
        """Say it again after a while, a longer one while no block is wanted."""
        self._resend_at = now + (self._timeouts.idle_s if idle else self._timeouts.resend_s)

    def fetch(self, now: float, *, patient: bool) -> None:
        """Fetch at once, or, if what is missing is probably under way, a moment later."""
        self._fetch_at = now + (self._timeouts.grace_s if patient else 0.0)

    def fetch_later(self, now: float) -> None:
        """The last fetch brought nothing: try again after a while."""
        self._fetch_at = now + self._timeouts.resend_s

    def fetch_by(self, now: float) -> None:
        """Fetch after a while, unless that was due before."""
        self._fetch_at = min(self._fetch_at, now + self._timeouts.resend_s)

    @property
    def timers(self) -> int:
        """Timers that have not fired."""
        return len(self._timers)

    def take(self, now: float, *, ahead: bool) -> TimedOut | Duty | Relayed | None:
        """The most urgent thing that is due; None while nothing is.

        What the agenda gives it forgets, but for `FETCH` and `RESEND`, which stay due until they are put down anew.

        Args:
            now: the moment.
            ahead: whether others are known to be ahead of us.
        """
        timer = min(((at, key) for key, at in self._timers.items() if at <= now), default=None)
        if timer is not None:
            step, round_ = timer[1]
            del self._timers[timer[1]]
            return TimedOut(step=step, round=round_)
        if ahead and now >= self._fetch_at:
            return Duty.FETCH
        if now >= self._ask_at:
            self._ask_at = math.inf
            return Duty.ASK
        if now >= self._resend_at:
            return Duty.RESEND
        if self._relays and now >= self._relays[0][0]:
            return self._relays.popleft()[1]
        return None

    def next_at(self, *, ahead: bool) -> float:
        """When something comes due, if nothing happens before."""
        fetch_at = self._fetch_at if ahead else math.inf
        relay_at = self._relays[0][0] if self._relays else math.inf
        return min(self._ask_at, self._resend_at, fetch_at, relay_at, *self._timers.values())
