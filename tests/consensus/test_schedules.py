"""Seeded adversarial schedules over the pure core: n=4, one Byzantine equivocator, loss, reordering, restarts.

Before GST anything may be lost, delayed or doubled, timers fire at random and honest validators restart from their log.
After GST everything arrives and timers fire only when nothing is under way. Checked: agreement (one value), validity
(a value that a proposer proposed and honest validators accept), no honest validator signs a slot twice, and progress.
A failing row names its seed; `pytest 'test_schedules.py::test_schedules[SEED]'` replays it.
"""

from __future__ import annotations

import random

import pytest

from nsllm.consensus import core
from nsllm.consensus.core import State, Step
from nsllm.consensus.effects import BuildValue, Decide, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.inputs import (
    CertificateReceived,
    ProposalReceived,
    Start,
    TimedOut,
    ValueBuilt,
    VoteReceived,
    encode_input,
)
from nsllm.consensus.message import PolkaCertificate, Request, RoundCertificate
from nsllm.consensus.replay import begin_entry, replay
from nsllm.consensus.resend import answer_to, last_words
from nsllm.consensus.vote import Proposal, Vote

BYZANTINE = 3


class Node:
    """An honest validator: the core, its log, its armed timers."""

    def __init__(self, world, index):
        self.world, self.index = world, index
        self.key = world.keys[index]
        self.log = [begin_entry(world.kit.NETWORK, self.key.address, 1)]
        self.state = self.fresh()
        self.timers = set()
        self.decided = None

    def fresh(self):
        return State(validators=self.world.validators, me=self.key.address, height=1)

    def feed(self, event):
        if self.decided is not None:
            return
        queue = [(event, False)]
        while queue:
            event, logged = queue.pop(0)
            state, effects = core.step(self.state, event)
            if not logged:
                if state is self.state and not effects:
                    continue
                self.log.append(encode_input(event))
            self.state = state
            for effect in effects:
                queue += self.perform(effect)

    def perform(self, effect):
        match effect:
            case SignVote(kind=kind, round=round_, value=value, lock=lock, valid_round=valid_round):
                self.world.signs(self.index, (kind, round_), value)
                body = self.world.kit.vote(self.key, kind, value, round_=round_, lock=lock, valid_round=valid_round)
                event = VoteReceived(vote=body)
            case SignProposal(round=round_, block=block, valid_round=valid_round, polka=polka):
                self.world.signs(self.index, ("proposal", round_), block.header.id())
                body = self.world.kit.proposal(self.key, block, round_=round_, valid_round=valid_round, polka=polka)
                event = ProposalReceived(proposal=body, valid=True)
            case BuildValue(round=round_):
                return [(ValueBuilt(round=round_, block=self.world.build(self.index)), False)]
            case Schedule(step=step, round=round_):
                self.timers.add((step, round_))
                return []
            case Relay(certificate=certificate):
                self.world.send(self.index, certificate)
                return []
            case Decide(decided=decided):
                self.decided = decided
                return []
            case _:
                return []
        self.log.append(encode_input(event))
        self.world.send(self.index, body)
        return [(event, True)]

    def restart(self):
        """Power off between two inputs, or between signing and sending: the log is what is left."""
        if self.decided is not None:
            return
        replayed = replay(self.log, self.fresh(), self.world.kit.NETWORK)
        assert replayed.state == self.state, "the log gives back the state"
        self.timers = set()
        queue = [more for effect in replayed.pending for more in self.perform(effect)]
        for event, logged in queue:
            if logged:
                self.state, effects = core.step(self.state, event)
                assert not [e for e in effects if isinstance(e, SignVote | SignProposal)]
            else:
                self.feed(event)

    def receive(self, sender, body):
        if self.decided is not None:
            if sender != BYZANTINE:
                self.world.tell(sender, self.decided)
            return
        match body:
            case Vote():
                self.feed(VoteReceived(vote=body))
            case PolkaCertificate(votes=votes):
                self.feed(CertificateReceived(votes=votes))
            case RoundCertificate(votes=votes):
                for vote in votes:
                    self.feed(VoteReceived(vote=vote))
            case Proposal():
                if body.polka:
                    self.feed(CertificateReceived(votes=body.polka))
                self.feed(ProposalReceived(proposal=body, valid=body.value not in self.world.refused))
            case Request():
                for answer in answer_to(self.state, body):
                    self.world.send(self.index, answer, to=[sender])


class World:
    def __init__(self, kit, seed):
        self.kit = kit
        self.random = random.Random(seed)
        self.keys = kit.keys(4)
        self.validators = kit.validators(self.keys)
        self.pool: list[tuple[int, int, object]] = []
        self.signed: dict[tuple, object] = {}
        self.salt = 0
        self.blocks = {}
        self.refused = set()
        self.nodes = [Node(self, i) for i in range(3)]

    def build(self, index):
        self.salt += 1
        block = self.kit.block(self.validators, proposer=self.keys[index].address, salt=self.salt)
        self.blocks[block.header.id()] = block
        return block

    def signs(self, index, slot, value):
        assert self.signed.setdefault((index, *slot), value) == value, f"validator {index} signed {slot} twice"

    def send(self, sender, body, to=None):
        for other in range(4) if to is None else to:
            if other not in {sender, BYZANTINE}:
                self.pool.append((sender, other, body))

    def tell(self, index, decided):
        """A height certificate: what is certified is decided for whoever verifies it."""
        decided.certificate.check(self.kit.NETWORK, self.validators)
        if self.nodes[index].decided is None:
            self.nodes[index].decided = decided

    def mischief(self):
        """The Byzantine validator signs whatever may hurt, different things for different receivers."""
        key = self.keys[BYZANTINE]
        round_ = max(0, self.random.choice([n.state.round for n in self.nodes]) + self.random.randint(-1, 2))
        values = [None, *self.blocks]
        mine = self.validators.proposer(1, round_) == key.address
        for target in self.random.sample(range(3), self.random.randint(1, 3)):
            what = self.random.random()
            if mine and what < 0.5:
                fresh = self.random.random() < 0.5 or not self.blocks
                block = self.build(BYZANTINE) if fresh else self.random.choice(list(self.blocks.values()))
                if fresh and self.random.random() < 0.3:
                    self.refused.add(block.header.id())
                valid_round = None if round_ == 0 or self.random.random() < 0.5 else self.random.randrange(round_)
                body = self.kit.proposal(key, block, round_=round_, valid_round=valid_round)
            else:
                kind = self.random.choice(["prevote", "precommit"])
                body = self.kit.vote(key, kind, self.random.choice(values), round_=round_)
            self.pool.append((BYZANTINE, target, body))

    def deliver(self, number):
        sender, to, body = self.pool.pop(number)
        self.nodes[to].receive(sender, body)

    def chaos(self, steps):
        for _ in range(steps):
            what = self.random.random()
            node = self.random.choice(self.nodes)
            if what < 0.62 and self.pool:
                number = self.random.randrange(len(self.pool))
                if self.random.random() < 0.25:
                    self.pool.pop(number)
                elif self.random.random() < 0.1:
                    self.pool.append(self.pool[number])
                else:
                    self.deliver(number)
            elif what < 0.74:
                self.mischief()
            elif what < 0.82:
                node.restart()
            elif what < 0.94 and node.timers:
                timer = self.random.choice(sorted(node.timers))
                node.timers.discard(timer)
                node.feed(TimedOut(step=timer[0], round=timer[1]))
            else:
                node.feed(Start())
            self.check()

    def calm(self):
        """After GST: everything arrives; then what is said last is said again; then the earliest timers fire.

        The Byzantine validator goes on with its mischief.
        """
        for node in self.nodes:
            node.feed(Start())
        for _ in range(60):
            for _ in range(2):
                while self.pool:
                    self.deliver(0)
                    self.check()
                if all(node.decided for node in self.nodes):
                    return
                for node in self.nodes:
                    if node.decided is None:
                        for body, _ in last_words(node.state, ()):
                            self.send(node.index, body)
            while self.pool:
                self.deliver(0)
            if all(node.decided for node in self.nodes):
                return
            for _ in range(3):
                self.mischief()
            lowest = min(node.state.round for node in self.nodes if node.decided is None)
            for node in self.nodes:
                due = sorted(t for t in node.timers if t[1] == node.state.round == lowest)
                for step, round_ in due:
                    node.timers.discard((step, round_))
                    node.feed(TimedOut(step=step, round=round_))
            self.check()
        raise AssertionError(f"no decision after GST: {[(n.state.round, n.state.step) for n in self.nodes]}")

    def check(self):
        decided = {n.decided.block.header.id() for n in self.nodes if n.decided is not None}
        assert len(decided) <= 1, "agreement"
        assert not decided & self.refused, "validity"
        assert decided <= set(self.blocks), "validity"


@pytest.mark.parametrize("seed", range(60))
def test_schedules(kit, seed):
    world = World(kit, seed)
    world.chaos(150 + 10 * (seed % 20))
    world.calm()
    for node in world.nodes:
        node.decided.certificate.check(kit.NETWORK, world.validators)


def test_schedules_reach_interesting_places(kit):
    """The schedules are worth something only if they lock, change rounds, equivocate and restart."""
    locked = later = skipped = accused = 0
    for seed in range(25):
        world = World(kit, 1000 + seed)
        world.chaos(300)
        locked += any(node.state.locked is not None for node in world.nodes)
        later += any(node.state.round > 0 for node in world.nodes)
        skipped += len({node.state.round for node in world.nodes}) > 1
        accused += any(node.state.tally.accused for node in world.nodes)
        world.calm()
        assert all(node.state.step is Step.DECIDED or node.decided for node in world.nodes)
    assert min(locked, later, skipped, accused) >= 5, (locked, later, skipped, accused)
