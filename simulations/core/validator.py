"""An honest validator of a core-level schedule: the shipped core, replay and repair, without disk, clock and sockets.

It does what `nsllm.consensus.driver` does, in the same order: log before signing, sync before signing, remember the
signature before it leaves, log it, send it. Signatures themselves are left out (nobody here can forge one), and so is
encoding, except for the log that a restart reads.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Final

from nsllm import merkle
from nsllm.consensus import core
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.core import NEW, PROPOSE, State
from nsllm.consensus.effects import Accuse, BuildValue, Decide, Effect, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.header import Header
from nsllm.consensus.horizon import Horizon
from nsllm.consensus.inputs import (
    CertificateReceived,
    Input,
    ProposalReceived,
    Start,
    TimedOut,
    ValueBuilt,
    VoteReceived,
    encode_input,
)
from nsllm.consensus.message import Body as Message
from nsllm.consensus.message import HeightCertificate, PolkaCertificate, Request, RoundCertificate
from nsllm.consensus.replay import begin_entry, replay
from nsllm.consensus.resend import AnswerRate, answer_to, last_words
from nsllm.consensus.screen import check_link
from nsllm.consensus.signing import body_of
from nsllm.consensus.sync import at_hand
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.vote import Proposal, Vote, keeps_lock
from nsllm.errors import PeerFault
from nsllm.ids import ZERO_DIGEST, Address, Digest, Height, NetworkId, Signature, TimeMs
from nsllm.simulations.core.guard import MemoryGuard
from nsllm.simulations.core.marks import SALTS, SOUND, is_censored, is_refused
from nsllm.simulations.core.plan import HEIGHTS
from nsllm.simulations.core.surroundings import PowerCut, Surroundings

NETWORK: Final = NetworkId(bytes(range(32)))
UNSIGNED: Final = Signature(bytes(65))
TIMEOUTS: Final = Timeouts()
_EMPTY: Final = Body()
_EMPTY_DIGEST: Final = _EMPTY.digest(NETWORK)
MAX_AHEAD_MS: Final = 5_000
"""As `nsllm.governance.block_rules` has it: a block may be dated so far ahead of the validator's clock."""


class Validator:
    """One validator."""

    honest = True

    def __init__(self, world: Surroundings, index: int) -> None:
        self.world = world
        self.index = index
        self.me: Address = world.validators.members[index]
        self.others: tuple[int, ...] = tuple(i for i in range(world.validators.size) if i != index)
        self.addresses: tuple[Address, ...] = tuple(a for a in world.validators.members if a != self.me)
        self.running = True
        self.life = 0
        """Counts restarts: timers of an earlier life mean nothing."""
        self.doom = ""
        """Where power is lost: `signed` (before the log has it), `written` (before it is sent)."""
        self.chain: list[DecidedBlock] = []
        self.tip = Digest(NETWORK)
        """Header id of the last decided block."""
        self.served = False
        """One of the decided blocks, from the last that must be decided on, holds what all honest ones want in."""
        self.decided_s = -math.inf
        self.guard = MemoryGuard()
        self.log: list[Input] = []
        self.synced = 0
        self.log_height = 0
        self.built = 0
        self.horizon = Horizon(world.validators, self.me)
        self.answers = AnswerRate(TIMEOUTS.resend_s / 2)
        self.fetching = False
        self.abstaining = False
        """Following without a vote: the log does not hold what the guard says was signed."""
        self._begin()
        world.later(self, TIMEOUTS.resend_s, self._resend)

    @property
    def height(self) -> int:
        """Decided blocks."""
        return len(self.chain)

    # what happens to it

    def receive(self, sender: int, body: Message) -> None:
        """A message arrives; its signatures are genuine, whoever passes it on."""
        if isinstance(body, Vote):  # most are
            if body.height != self.state.height:
                self._elsewhen(sender, body)
            elif _keeps(body):
                self.hear_vote(body)
        elif isinstance(body, HeightCertificate):
            self._hear_height(body)
        elif isinstance(body, Request):
            self._hear_request(sender, body)
        else:
            first = body if isinstance(body, Proposal) else body.votes[0]
            if first.height != self.state.height:
                self._elsewhen(sender, first)
            else:
                self._hear_now(body)

    def hear_vote(self, vote: Vote) -> None:
        """A vote of the height that is being decided."""
        self._count((VoteReceived(vote=vote),))

    def hear_certificate(self, body: PolkaCertificate | RoundCertificate) -> None:
        """Votes that belong together, of the height that is being decided."""
        if isinstance(body, PolkaCertificate):
            self._count((CertificateReceived(votes=body.votes),))
        else:
            self._count([VoteReceived(vote=vote) for vote in body.votes])

    def hear_proposal(self, proposal: Proposal) -> None:
        """A proposal of the height that is being decided: its polka, then itself with the application's verdict."""
        state = self.state
        if not core.wants(state, proposal):
            return
        try:
            check_link(self.world.validators, proposal.block, state.height, self.tip)
        except PeerFault:
            return
        known = state.candidates.get(proposal.value)
        valid = (known is not None and known.valid) or self.judge(proposal.block)
        received = ProposalReceived(proposal=proposal, valid=valid)
        self._count((CertificateReceived(votes=proposal.polka), received) if proposal.polka else (received,))

    def lose_power(self) -> None:
        """Stop here; the disk keeps what was synced, and perhaps some of the rest."""
        self.running, self.doom = False, ""
        self.life += 1
        del self.log[self.world.survives(self.synced, len(self.log)) :]
        self.synced = len(self.log)

    def restart(self) -> None:
        """Start from the disk: replay the log, do what it left undone."""
        self.running = True
        height = Height(self.height + 1)
        entries = [begin_entry(NETWORK, self.me, Height(self.log_height)), *map(encode_input, self.log)]
        fresh = State(validators=self.world.validators, me=self.me, height=height)
        replayed = replay(entries, fresh, NETWORK)
        self.horizon = Horizon(self.world.validators, self.me)
        self.fetching = False
        self.world.later(self, TIMEOUTS.resend_s, self._resend)
        if replayed is None:
            self._begin()
            return
        self.state = replayed.state
        last = self.guard.last
        self.abstaining = last is not None and (
            last.height > height or (last.height == height and last.digest(NETWORK) not in replayed.signed)
        )
        self._arm()
        self._drain(deque(), replayed.pending)

    # what it does

    def say(self, to: Iterable[int], body: Message) -> None:
        """Send to some validators."""
        self.world.send(self, to, body)

    def broadcast(self, body: Message) -> None:
        """Send to all others."""
        self.say(self.others, body)

    def build(self, height: Height, *, mark: int = SOUND) -> Block:
        """A new block on our tip."""
        earliest_ms = self.chain[-1].block.header.time_ms + 1 if self.chain else 0
        self.built += 1
        header = Header(
            epoch=self.world.validators.epoch,
            height=height,
            time_ms=TimeMs(max(self.world.wall_ms(self), earliest_ms)),
            parent=self.tip,
            proposer=self.me,
            body_digest=_EMPTY_DIGEST,
            scores_root=merkle.EMPTY_ROOT,
            log_size=self.built * SALTS + mark,
            log_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            validators_hash=self.world.validators.digest(),
            policy_digest=ZERO_DIGEST,
            registry_hash=ZERO_DIGEST,
        )
        block = Block(header=header, body=_EMPTY)
        self.world.builds(block)
        return block

    def apply(self, event: Input) -> None:
        """Step the core, log, do the effects; then the same for what they answer."""
        before = self.state
        state, effects = core.step(before, event)
        if state is not before or effects:
            self.log.append(event)
            self.state = state
            if effects:
                self._drain(deque(), effects)

    def sign(self, effect: SignProposal | SignVote) -> Vote | Proposal | None:
        """What the signer guard does; None if it refuses."""
        message = self.unguarded(effect)
        if self.guard.takes(message):
            return message
        self.world.refuses(self, message)
        return None

    def unguarded(self, effect: SignProposal | SignVote) -> Vote | Proposal:
        """The message, whatever was signed before."""
        epoch, height = self.world.validators.epoch, self.state.height
        if isinstance(effect, SignVote):
            return body_of(effect, epoch=epoch, height=height, signer=self.me).signed(UNSIGNED)
        body = body_of(effect, epoch=epoch, height=height, signer=self.me)
        return body.signed(effect.block, effect.polka, UNSIGNED)

    def judge(self, block: Block) -> bool:
        """The application's verdict: nothing is wrong with the block, and it is not of the future."""
        time_ms = block.header.time_ms
        if self.chain and time_ms <= self.chain[-1].block.header.time_ms:
            return False
        return not is_refused(block) and time_ms <= self.world.wall_ms(self) + MAX_AHEAD_MS

    # inside

    def _begin(self) -> None:
        height = Height(self.height + 1)
        self.state = State(validators=self.world.validators, me=self.me, height=height)
        if self.honest:
            self.world.keeps(self.log)
        self.log = []
        self.synced, self.log_height = 0, height
        self.abstaining = self.guard.last is not None and self.guard.last.height >= height
        self._arm()
        members = self.world.validators.members
        for sender, message in self.horizon.release(height):
            self.world.later(self, 0.0, partial(self.receive, members.index(sender), message))

    def _arm(self) -> None:
        if self.world.wanted(self):
            self.world.later(self, 0.01, partial(self._start, self.state.height))

    def _count(self, inputs: Iterable[Input]) -> None:
        height = self.state.height
        for event in inputs:
            if self.state.height == height:
                self.apply(event)
        if self.state.height == height and self.state.step is NEW and core.is_begun(self.state):
            self.apply(Start())

    def _hear_now(self, body: Proposal | PolkaCertificate | RoundCertificate) -> None:
        """What the screen lets in of a message of this height: no vote against the lock that it states."""
        if isinstance(body, Proposal):
            if all(map(_keeps, body.polka)):
                self.hear_proposal(body)
        elif all(map(_keeps, body.votes)):
            self.hear_certificate(body)

    def _hear_height(self, body: HeightCertificate) -> None:
        certificate = body.certificate
        if certificate.header.height >= self.state.height and self.horizon.is_better(certificate):
            self.horizon.prove(certificate)
            self._plan_fetch(0.0)

    def _hear_request(self, sender: int, body: Request) -> None:
        height = self.state.height
        if body.height < height:
            self._help(sender, body.height)
        elif body.height == height and self.answers.take(self.world.validators.members[sender], self.world.now_s):
            for answer in answer_to(self.state, body):
                self.say((sender,), answer)

    def _elsewhen(self, sender: int, message: Vote | Proposal) -> None:
        height = self.state.height
        if message.height < height:
            self._help(sender, message.height)
        elif self.horizon.is_news(message, height):
            self.horizon.note(self.world.validators.members[sender], message, height)
            if self.horizon.decided >= height:
                self._plan_fetch(TIMEOUTS.grace_s)

    def _help(self, sender: int, height: int) -> None:
        """Prove that a height is over; not at once, since what decides it may be under way."""
        now_s = self.world.now_s
        if height == self.height and now_s - self.decided_s < TIMEOUTS.resend_s / 2:
            return
        if self.chain and self.answers.take(self.world.validators.members[sender], now_s):
            self.say((sender,), HeightCertificate(certificate=self.chain[-1].certificate))

    def _plan_fetch(self, seconds: float) -> None:
        if not self.fetching:
            self.fetching = True
            self.world.later(self, seconds, self._fetch)

    def _start(self, height: Height) -> None:
        if height == self.state.height and self.state.step is NEW:
            self.apply(Start())

    def _time_out(self, height: Height, event: TimedOut) -> None:
        if height == self.state.height:
            self.apply(event)

    def _relay(self, height: Height, proof: PolkaCertificate | RoundCertificate) -> None:
        if height == self.state.height:
            self.broadcast(proof)

    def _resend(self) -> None:
        self.world.later(self, TIMEOUTS.resend_s, self._resend)
        if self.world.wanted(self):
            members = self.world.validators.members
            for body, to in last_words(self.state, self.addresses):
                self.say(self.others if to is self.addresses else [members.index(address) for address in to], body)

    def _fetch(self) -> None:
        """Catch up by one block: what we have, else what a peer gives; checked either way."""
        self.fetching = False
        if self.horizon.decided < self.state.height:
            return
        decided = at_hand(self.state, self.horizon.certificate) or self.world.block_after(self, self.state.height)
        proved = decided is not None and self._proved(decided)
        if decided is not None and proved:
            self._commit(decided)
        if self.horizon.decided >= self.state.height:
            self._plan_fetch(0.0 if proved else TIMEOUTS.resend_s)

    def _proved(self, decided: DecidedBlock) -> bool:
        """A certificate of this very block, of our height and parent, by a quorum. Signatures are genuine here."""
        certificate, block = decided.certificate, decided.block
        signers = {vote.validator for vote in certificate.precommits}
        try:
            check_link(self.world.validators, block, self.state.height, self.tip)
        except PeerFault:
            return False
        return certificate.header == block.header and len(signers) >= self.world.validators.quorum

    def _drain(self, events: deque[tuple[Input, bool]], effects: Iterable[Effect] = ()) -> None:
        height = self.state.height
        while True:
            for effect in effects:
                answer = self._perform(effect)
                if self.state.height != height:
                    return
                if answer is not None:
                    events.append(answer)
            if not events:
                return
            event, logged = events.popleft()
            before = self.state
            state, effects = core.step(before, event)
            if not logged:
                if state is before and not effects:
                    continue
                self.log.append(event)
            self.state = state

    def _perform(self, effect: Effect) -> tuple[Input, bool] | None:
        state = self.state
        match effect:
            case SignVote() | SignProposal():
                return self._sign_and_send(effect)
            case Schedule(step=step, round=round_):
                fired = partial(self._time_out, state.height, TimedOut(step=step, round=round_))
                self.world.later(self, TIMEOUTS.of(step, round_), fired)
            case Relay(certificate=certificate):
                self.world.later(self, TIMEOUTS.relay_s, partial(self._relay, state.height, certificate))
            case BuildValue(round=round_):
                if round_ == state.round and state.step is PROPOSE:
                    return ValueBuilt(round=round_, block=self.build(state.height)), False
            case Accuse():
                self.world.accuses(self, effect)
            case Decide(decided=decided):
                self._commit(decided)
        return None

    def _sign_and_send(self, effect: SignProposal | SignVote) -> tuple[Input, bool] | None:
        if self.abstaining:
            return None
        self.synced = len(self.log)
        message = self.sign(effect)
        if message is None:
            return None
        self.world.signs(self, message)
        if self.doom == "signed":
            raise PowerCut
        event: Input = (
            VoteReceived(vote=message) if isinstance(message, Vote) else ProposalReceived(proposal=message, valid=True)
        )
        self.log.append(event)
        if self.doom == "written":
            raise PowerCut
        self.broadcast(message)
        return event, True

    def _commit(self, decided: DecidedBlock) -> None:
        self.world.commits(self, decided)
        self.chain.append(decided)
        self.tip = decided.block.header.id()
        self.decided_s = self.world.now_s
        self.served = self.served or (self.height >= HEIGHTS and not is_censored(decided.block))
        self._begin()


def _keeps(vote: Vote) -> bool:
    """Whether the screen lets a genuine vote in: it is not against the lock that it states."""
    return vote.lock is None or keeps_lock(vote.value, vote.lock, vote.valid_round)
