"""An honest validator of a core-level schedule: the shipped core, replay and repair, without disk, clock and sockets.

It does what `nsllm.consensus.driver` does, in the same order: log before signing, sync before signing, remember the
signature before it leaves, log it, send it. Signatures themselves are left out (nobody here can forge one), and so is
encoding, except for the log that a restart reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

from nsllm import merkle
from nsllm.consensus import core
from nsllm.consensus.block import Block, Body, DecidedBlock
from nsllm.consensus.core import State, Step
from nsllm.consensus.effects import Accuse, BuildValue, Decide, Effect, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.guard import SIGN_STEPS
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
from nsllm.consensus.resend import answer_to, last_words
from nsllm.consensus.screen import check_link
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.errors import PeerFault
from nsllm.ids import ZERO_DIGEST, Address, Digest, Height, NetworkId, Signature, TimeMs

NETWORK: Final = NetworkId(bytes(range(32)))
UNSIGNED: Final = Signature(bytes(65))
TIMEOUTS: Final = Timeouts()
_EMPTY: Final = Body()
_EMPTY_DIGEST: Final = _EMPTY.digest(NETWORK)


class PowerCut(Exception):  # noqa: N818 - not an error: it is planned
    """The validator lost power here."""


class Surroundings(Protocol):
    """What a validator acts on: `nsllm.simulations.core.world.World`."""

    validators: ValidatorSet
    now_s: float

    def send(self, sender: Validator, to: int, body: Message, delay_s: float = 0.0) -> None:
        """Put a message on the way."""
        ...

    def later(self, validator: Validator, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so long by the validator's clock, unless it restarts before."""
        ...

    def signs(self, validator: Validator, message: Vote | Proposal) -> None:
        """A signature leaves a validator."""
        ...

    def builds(self, validator: Validator, block: Block) -> None:
        """A block exists."""
        ...

    def commits(self, validator: Validator, decided: DecidedBlock) -> None:
        """A validator decided, or caught up."""
        ...

    def accuses(self, validator: Validator, effect: Accuse) -> None:
        """A validator reports two messages that contradict each other."""
        ...

    def accepts(self, block: Block) -> bool:
        """The application's verdict, everybody's the same."""
        ...

    def block_after(self, asker: Validator, height: Height) -> DecidedBlock | None:
        """A block from some peer that can be reached, if it has it."""
        ...

    def victim(self, height: int) -> int:
        """Whom the adversary treats apart at a height."""
        ...

    def secret_round(self, height: int) -> int:
        """The round in which the victim is to decide."""
        ...

    def wanted(self, height: int) -> bool:
        """Whether a block is wanted at a height."""
        ...

    def survives(self, synced: int, written: int) -> int:
        """How many entries of a log are left after a power cut."""
        ...


class Validator:
    """One validator."""

    honest = True

    def __init__(self, world: Surroundings, index: int) -> None:
        self.world = world
        self.index = index
        self.me: Address = world.validators.members[index]
        self.others: tuple[Address, ...] = tuple(a for a in world.validators.members if a != self.me)
        self.running = True
        self.life = 0
        """Counts restarts: timers of an earlier life mean nothing."""
        self.doom = ""
        """Where power is lost: `signed` (before the log has it), `written` (before it is sent)."""
        self.chain: list[DecidedBlock] = []
        self.tip = Digest(NETWORK)
        """Header id of the last decided block."""
        self.last: Vote | Proposal | None = None
        """What the signer guard remembers, on disk."""
        self.log: list[Input] = []
        self.synced = 0
        self.log_height = 0
        self.built = 0
        self.horizon = Horizon(world.validators, self.me)
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
        match body:
            case HeightCertificate(certificate=certificate):
                if certificate.header.height >= self.state.height and self.horizon.is_better(certificate):
                    self.horizon.prove(certificate)
                    self._plan_fetch(0.0)
            case Request(height=height):
                if height < self.state.height:
                    self._help(sender)
                elif height == self.state.height:
                    for answer in answer_to(self.state, body):
                        self.say((sender,), answer)
            case PolkaCertificate() | RoundCertificate() if body.votes[0].height != self.state.height:
                self._elsewhen(sender, body.votes[0])
            case Vote() | Proposal() if body.height != self.state.height:
                self._elsewhen(sender, body)
            case _:
                self.hear(body)

    def hear(self, body: Vote | Proposal | PolkaCertificate | RoundCertificate) -> None:
        """A message of the height that is being decided."""
        match body:
            case Vote():
                self._count((VoteReceived(vote=body),))
            case PolkaCertificate(votes=votes):
                self._count((CertificateReceived(votes=votes),))
            case RoundCertificate(votes=votes):
                self._count(tuple(VoteReceived(vote=vote) for vote in votes))
            case Proposal():
                self._proposal(body)

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
        last = self.last
        self.abstaining = last is not None and (
            last.height > height or (last.height == height and last.digest(NETWORK) not in replayed.signed)
        )
        self._arm()
        self._drain(deque(), replayed.pending)

    # what it does

    def say(self, to: Iterable[int], body: Message) -> None:
        """Send to some validators."""
        for index in to:
            self.world.send(self, index, body)

    def broadcast(self, body: Message) -> None:
        """Send to all others."""
        self.say([index for index in range(self.world.validators.size) if index != self.index], body)

    def build(self, height: Height, *, salt: int = 0) -> Block:
        """A new block on our tip."""
        self.built += 1
        header = Header(
            epoch=self.world.validators.epoch,
            height=height,
            time_ms=TimeMs(int(self.world.now_s * 1000)),
            parent=self.tip,
            proposer=self.me,
            body_digest=_EMPTY_DIGEST,
            scores_root=merkle.EMPTY_ROOT,
            log_size=self.built * 1000 + salt,
            log_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            validators_hash=self.world.validators.digest(),
            policy_digest=ZERO_DIGEST,
            registry_hash=ZERO_DIGEST,
        )
        block = Block(header=header, body=_EMPTY)
        self.world.builds(self, block)
        return block

    def apply(self, event: Input) -> None:
        """Step the core, log, do the effects; then the same for what they answer."""
        self._drain(deque([(event, False)]))

    def sign(self, effect: SignProposal | SignVote) -> Vote | Proposal | None:
        """What the signer guard does; None if it refuses."""
        message = self.unguarded(effect)
        last = self.last
        if last is not None and message != last and _place(message) <= _place(last):
            return None
        self.last = message
        return message

    def unguarded(self, effect: SignProposal | SignVote) -> Vote | Proposal:
        """The message, whatever was signed before."""
        epoch, height = self.world.validators.epoch, self.state.height
        if isinstance(effect, SignVote):
            return Vote(
                kind=effect.kind,
                epoch=epoch,
                height=height,
                round=effect.round,
                value=effect.value,
                validator=self.me,
                signature=UNSIGNED,
                lock=effect.lock,
                valid_round=effect.valid_round,
            )
        return Proposal(
            block=effect.block,
            epoch=epoch,
            height=height,
            round=effect.round,
            valid_round=effect.valid_round,
            polka=effect.polka,
            proposer=self.me,
            signature=UNSIGNED,
        )

    def judge(self, block: Block) -> bool:
        """The application's verdict."""
        return self.world.accepts(block)

    # inside

    def _begin(self) -> None:
        height = Height(self.height + 1)
        self.state = State(validators=self.world.validators, me=self.me, height=height)
        self.log.clear()
        self.synced, self.log_height = 0, height
        self.abstaining = self.last is not None and self.last.height >= height
        self._arm()
        for sender, message in self.horizon.release(height):
            self.world.later(self, 0.0, partial(self.receive, self.world.validators.members.index(sender), message))

    def _arm(self) -> None:
        if self.world.wanted(self.state.height):
            self.world.later(self, 0.01, partial(self._start, self.state.height))

    def _count(self, inputs: Sequence[Input]) -> None:
        height = self.state.height
        for event in inputs:
            if self.state.height == height:
                self.apply(event)
        state = self.state
        if state.height == height and state.step is Step.NEW:
            reached = state.tally.reached
            if state.validators.proposer(height, 0) in reached or len(reached) > state.validators.faults:
                self.apply(Start())

    def _proposal(self, proposal: Proposal) -> None:
        if not core.wants(self.state, proposal):
            return
        try:
            check_link(self.world.validators, proposal.block, self.state.height, self.tip)
        except PeerFault:
            return
        polka: tuple[Input, ...] = (CertificateReceived(votes=proposal.polka),) if proposal.polka else ()
        self._count((*polka, ProposalReceived(proposal=proposal, valid=self.judge(proposal.block))))

    def _elsewhen(self, sender: int, message: Vote | Proposal) -> None:
        if message.height < self.state.height:
            self._help(sender)
        elif self.horizon.is_news(message, self.state.height):
            self.horizon.note(self.world.validators.members[sender], message, self.state.height)
            if self.horizon.decided >= self.state.height:
                self._plan_fetch(TIMEOUTS.grace_s)

    def _help(self, sender: int) -> None:
        if self.chain:
            self.say((sender,), HeightCertificate(certificate=self.chain[-1].certificate))

    def _plan_fetch(self, seconds: float) -> None:
        if not self.fetching:
            self.fetching = True
            self.world.later(self, seconds, self._fetch)

    def _start(self, height: Height) -> None:
        if height == self.state.height and self.state.step is Step.NEW:
            self.apply(Start())

    def _time_out(self, height: Height, event: TimedOut) -> None:
        if height == self.state.height:
            self.apply(event)

    def _relay(self, height: Height, proof: PolkaCertificate | RoundCertificate) -> None:
        if height == self.state.height:
            self.broadcast(proof)

    def _resend(self) -> None:
        self.world.later(self, TIMEOUTS.resend_s, self._resend)
        if self.world.wanted(self.state.height):
            for body, to in last_words(self.state, self.others):
                self.say([self.world.validators.members.index(address) for address in to], body)

    def _fetch(self) -> None:
        """Catch up by one block: what we have, else what a peer gives; checked either way."""
        self.fetching = False
        if self.horizon.decided < self.state.height:
            return
        certificate = self.horizon.certificate
        decided: DecidedBlock | None = None
        if certificate is not None and certificate.header.height == self.state.height:
            candidate = self.state.candidates.get(certificate.header.id())
            if candidate is not None:
                decided = DecidedBlock(block=candidate.proposal.block, certificate=certificate)
        decided = decided or self.world.block_after(self, self.state.height)
        if decided is not None and self._proved(decided):
            self._commit(decided)
        if self.horizon.decided >= self.state.height:
            self._plan_fetch(TIMEOUTS.grace_s)

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
                if round_ == state.round and state.step is Step.PROPOSE:
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
        self._begin()


def _place(message: Vote | Proposal) -> tuple[int, int, int]:
    step = message.kind if isinstance(message, Vote) else "proposal"
    return (message.height, message.round, SIGN_STEPS[step])
