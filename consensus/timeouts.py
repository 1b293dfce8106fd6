"""How long the driver waits for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from nsllm.consensus.inputs import TimerStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. The defaults fit four peers that share two loaded cores."""

    propose_s: float = 3.0
    prevote_s: float = 1.0
    precommit_s: float = 1.0
    growth: float = 0.5
    """Each round waits this share of the first round's timeout longer than the one before."""
    longest_s: float = 60.0
    """No step waits longer, whatever the round."""
    resend_s: float = 1.0
    """While a height is undecided, what was said last is said again after this."""
    relay_s: float = 0.1
    """The proof of a step is relayed after this, unless the height is over by then: it rarely is needed."""
    idle_s: float = 10.0
    """While no block is wanted, the others are asked for their height after this."""
    fetch_s: float = 10.0
    """Longest wait for one batch of blocks."""
    grace_s: float = 0.25
    """Others one height ahead: our own messages are probably on their way; fetch after this."""

    def of(self, step: TimerStep, round_: int) -> float:
        """The paper's timeoutPropose(round), timeoutPrevote(round), timeoutPrecommit(round)."""
        match step:
            case "propose":
                first = self.propose_s
            case "prevote":
                first = self.prevote_s
            case "precommit":
                first = self.precommit_s
            case _:
                assert_never(step)
        return min(self.longest_s, first * (1 + self.growth * round_))
