"""The links of a schedule: what they lose, double and hold back, by chance and by the adversary's aim."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import log
from typing import Final

from nsllm.consensus.message import Body as Message
from nsllm.consensus.message import PolkaCertificate, Request
from nsllm.consensus.vote import Proposal, Vote
from nsllm.simulations.core.plan import Guide, Plan

GOOD_DELAY_S: Final = 0.005
SECRET_S: Final = 20.0
"""How long they keep a secret decision from the others, the network permitting."""
HOLD_S: Final = 2.5
"""How long guided links keep a message: past the other validators' prevote and precommit timers."""


class Links:
    """Between all validators of a plan; after `heals_s` they are good."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._plan = plan
        self._random = rng.random
        self._loss = plan.loss
        self._duplication = plan.duplication
        self._delay_s = plan.delay_s
        self._cuts = plan.cuts
        self._aim = self._aims()[plan.guide]
        self._hidden = plan.guide == "secret decision"

    def delays_s(self, now_s: float, sender: int, to: int, body: Message) -> tuple[float, ...]:
        """One delay for each copy that arrives of a message sent before the network heals."""
        random = self._random
        if random() < self._loss:
            return ()
        for cut in self._cuts:
            if cut.begin_s <= now_s < cut.end_s and (sender, to) in cut.links:
                return ()
        aim = self._aim
        aimed_s = 0.0 if aim is None else aim(sender, to, body)
        first_s = aimed_s - log(1.0 - random()) * self._delay_s
        if random() < self._duplication:
            return (first_s, aimed_s - log(1.0 - random()) * self._delay_s)
        return (first_s,)

    def carries(self, now_s: float, sender: int, to: int, height: int) -> bool:
        """Whether `to`, which stands at `height`, can fetch a block from `sender`."""
        plan = self._plan
        if self._hidden and now_s < plan.heals_s and sender == plan.victim(height):
            return False
        return not any(c.begin_s <= now_s < c.end_s and (sender, to) in c.links for c in self._cuts)

    # Aims: extra delay of a message, chosen to make validators lock apart, or decide alone.

    def _aims(self) -> dict[Guide, Callable[[int, int, Message], float] | None]:
        return {
            "none": None,
            "lone lock": self._lone_lock,
            "short of a decision": self._short_of_a_decision,
            "split": self._split,
            "slow proposals": self._slow_proposals,
            "secret decision": self._secret_decision,
            "two worlds": self._two_worlds,
        }

    def _lone_lock(self, sender: int, to: int, body: Message) -> float:
        """Prevotes for a value reach one validator in time, the polka none."""
        del sender
        if isinstance(body, Vote):
            aimed = body.kind == "prevote" and body.value is not None
            return HOLD_S if aimed and to != (body.height + body.round) % self._plan.peers else 0.0
        return HOLD_S if isinstance(body, PolkaCertificate) else 0.0

    def _short_of_a_decision(self, sender: int, to: int, body: Message) -> float:
        """Precommits for a value reach one validator in time."""
        del sender
        if not isinstance(body, Vote) or body.kind != "precommit" or body.value is None:
            return 0.0
        return HOLD_S if to != (body.height * 3 + body.round) % self._plan.peers else 0.0

    def _split(self, sender: int, to: int, body: Message) -> float:
        """Votes go late from the even validators to the odd ones, and back."""
        return HOLD_S if isinstance(body, Vote) and sender % 2 != to % 2 else 0.0

    def _slow_proposals(self, sender: int, to: int, body: Message) -> float:
        """Proposals reach the odd validators when their timers are about to fire."""
        del sender
        if not isinstance(body, Proposal) or to % 2 == 0:
            return 0.0
        return (2.5 + self._random()) * (1 + 0.5 * body.round)

    def _secret_decision(self, sender: int, to: int, body: Message) -> float:
        """What would spoil the secret: polkas before the secret round, the victim's words from its decision on.

        Before the secret round every honest validator hears a quorum of prevotes, but one too few for a polka: only the
        schemers have that.
        """
        plan = self._plan
        if isinstance(body, Vote):
            height, round_ = body.height, body.round
            secret = plan.secret_round(height)
            if body.kind == "prevote" and round_ < secret:
                return SECRET_S if plan.is_deaf(to, sender) else 0.0
            if body.kind == "prevote" and round_ == secret and not plan.tolerated:
                return SECRET_S if plan.is_honest[to] and to not in plan.confidants(height) else 0.0
            decided = body.kind == "precommit"
        elif isinstance(body, Proposal):
            height, round_, decided = body.height, body.round, False
        else:
            return SECRET_S if plan.is_honest[to] and not isinstance(body, Request) else 0.0
        if sender != plan.victim(height):
            return 0.0
        secret = plan.secret_round(height)
        return SECRET_S if round_ > secret or (round_ == secret and decided) else 0.0

    def _two_worlds(self, sender: int, to: int, body: Message) -> float:
        """The honest validators stand in two groups that do not hear each other; the others hear and reach both."""
        del body
        plan = self._plan
        if not (plan.is_honest[sender] and plan.is_honest[to]):
            return 0.0
        return SECRET_S if plan.world_of(sender) != plan.world_of(to) else 0.0
