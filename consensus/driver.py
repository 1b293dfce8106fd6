"""The driver: the one task that owns the core and does what it wants done.

    mesh -> receive -> inbox -> decode, screen, validate -> core.step -> log -> effects -> mesh, application

Rules that hold here:
* an input that changes the core is logged before its effects are done, and the log is synced before anything is signed;
* everything is signed by the guard, which remembers on disk, before it is sent;
* nothing is signed before the others have told what they heard of us (`nsllm.consensus.recollection`);
* a peer's fault is reported and costs its message; our own fault ends `run`; a divergence halts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import assert_never

import trio

from nsllm.clock import Clock
from nsllm.consensus import core
from nsllm.consensus.agenda import Agenda, Duty
from nsllm.consensus.blame import Blame
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.core import State, Step
from nsllm.consensus.effects import Accuse, BuildValue, Decide, Effect, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.errors import ConsensusError, DivergenceError
from nsllm.consensus.events import (
    BlockCommitted,
    ConsensusEvent,
    ConsensusStatus,
    Halted,
    OffenceSeen,
    RoundEntered,
    status_of,
)
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.hearsay import Hearsay
from nsllm.consensus.hindsight import Hindsight
from nsllm.consensus.horizon import Horizon
from nsllm.consensus.inbox import Inbox
from nsllm.consensus.inputs import Input, Start, TimedOut, ValueBuilt, encode_input
from nsllm.consensus.intake import Ahead, Asked, Behind, Counted, Intake, Noted
from nsllm.consensus.message import (
    Body,
    HeightCertificate,
    PolkaCertificate,
    Recalled,
    Request,
    RoundCertificate,
    decode_message,
)
from nsllm.consensus.ports import Application, BlockSource, Mesh, SnapshotSource
from nsllm.consensus.recollection import recall
from nsllm.consensus.replay import begin_entry, replay
from nsllm.consensus.resend import AnswerRate, answer_to, last_words
from nsllm.consensus.sync import Tip, at_hand, check_decided, fetch_batch, load_tip, tip_of
from nsllm.consensus.timeouts import Timeouts
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.voice import Voice
from nsllm.consensus.vote import Proposal
from nsllm.consensus.wal import WriteAheadLog
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, Height, NetworkId, TimeMs, hex0x

LOGGER = logging.getLogger(__name__)


class Driver:
    """One validator. Make one, `run` it once, cancel it to stop; a restart makes a new one from the same files.

    Args:
        network: salt of every signature.
        guard: holds the validator's key.
        application: proposes, validates and commits blocks; this task is its only committer. It says who the validators
            of each height are; the guard's address is among them.
        mesh: takes messages for other validators; its authenticated incoming messages go to `receive`.
        source: decided blocks, for catching up.
        clock: wall time for headers.
        wal: this height's log, freshly opened; its owner closes it.
        timeouts: see there.
        observer: told what happens, at once, in this task; it must not block or raise.
        checkpoint: fault-injection point, called with `vote_written`, `vote_sent`, `committing` and `committed` as
            those moments pass.
        snapshots: how to come far without every block; None: block by block only.

    Raises:
        ConsensusError: the guard's key is not a validator's.
    """

    def __init__(
        self,
        *,
        network: NetworkId,
        guard: SignerGuard,
        application: Application,
        mesh: Mesh,
        source: BlockSource,
        clock: Clock,
        wal: WriteAheadLog,
        timeouts: Timeouts,
        observer: Callable[[ConsensusEvent], None],
        checkpoint: Callable[[str], None] = lambda _moment: None,
        snapshots: SnapshotSource | None = None,
    ) -> None:
        self._snapshots = snapshots
        validators = application.validators
        if guard.address not in validators:
            raise ConsensusError(f"{hex0x(guard.address)} is not a validator of epoch {validators.epoch}")
        self._network = network
        self._guard = guard
        self._application = application
        self._source = source
        self._clock = clock
        self._wal = wal
        self._timeouts = timeouts
        self._observer = observer
        self._checkpoint = checkpoint
        self._inbox = Inbox(())
        self._enter(validators)
        self._hearsay = Hearsay()
        self._hindsight = Hindsight()
        self._wake = trio.Event()
        self._tip = Tip(Height(0), Digest(network), None)
        self._state = State(validators=validators, me=guard.address, height=Height(1))
        self._halted: str | None = None
        self._held: deque[tuple[Address, Body, bool]] = deque()
        """Messages to be handled at this height, and whether they are checked already."""
        self._answers = AnswerRate(timeouts.resend_s / 2)
        self._recalls = AnswerRate(timeouts.resend_s / 2)
        self._agenda = Agenda(timeouts)
        self._blames = Blame(observer)
        self._voice = Voice(
            guard=guard, mesh=mesh, wal=wal, started_ms=clock.now_ms(), observer=observer, checkpoint=checkpoint
        )

    def receive(self, sender: Address, message: bytes) -> None:
        """Take a message that the mesh authenticated as `sender`'s. Never blocks; bounded for each sender."""
        if self._inbox.put(sender, message):
            self._wake.set()

    def poke(self) -> None:
        """The application may have become due: ask it again."""
        self._agenda.ask()
        self._wake.set()

    def accuse(self, evidence: Evidence) -> None:
        """The application has found evidence by itself: the others shall have it, and a block is due."""
        LOGGER.warning("event=offence height=%d kind=%s", self._state.height, type(evidence).__name__)
        self._observer(OffenceSeen(evidence))
        self._voice.say(self._others, evidence)
        self.poke()

    def announce(self, height: Height) -> None:
        """Somebody says that `height` is decided. Unproved, so we look a little later, unless we are there by then."""
        if self._hearsay.claim(height, self._tip.height):
            self._agenda.fetch_by(trio.current_time())
            self._wake.set()

    def status(self) -> ConsensusStatus:
        """How it stands."""
        tip, known, abstaining = self._tip.height, self._horizon.decided, self._voice.abstaining
        waiting = len(self._inbox) + len(self._held)
        return status_of(self._state, tip, known, pending=waiting, abstaining=abstaining, halted=self._halted)

    async def run(self) -> None:
        """Take part until cancelled, or until an epoch begins in which we do not validate.

        Raises:
            DivergenceError: our state differs from a quorum's; the validator has halted.
            OwnFault: log or guard cannot be written; nothing was sent on their account.
            WalError: the log is another validator's.
        """
        try:
            await self._recover()
            while self._guard.address in self._application.validators:
                await self._turn()
        except DivergenceError as error:
            self._halted = str(error)
            LOGGER.critical("event=halted height=%d reason=%s", self._state.height, error)
            self._observer(Halted(self._state.height, str(error)))
            raise

    async def _recover(self) -> None:
        self._tip = await load_tip(self._network, self._application)
        fresh = State(validators=self._validators, me=self._guard.address, height=self._tip.next())
        replayed = replay(self._wal.recovered, fresh, self._network)
        if replayed is None:
            self._begin()
            self._voice.ask(self._state, self._others)
            return
        LOGGER.info("event=wal_replayed height=%d entries=%d", fresh.height, len(self._wal.recovered))
        self._state = replayed.state
        self._agenda.resume(trio.current_time())
        self._voice.begin(fresh, replayed.signed)
        await self._drain(deque(), replayed.pending)

    def _begin(self) -> None:
        """Stand at the height above the tip, with an empty log."""
        height = self._tip.next()
        self._state = State(validators=self._validators, me=self._guard.address, height=height)
        self._wal.reset()
        self._wal.append(begin_entry(self._network, self._guard.address, height))
        self._voice.begin(self._state, frozenset())
        self._agenda.begin(trio.current_time(), ahead=self._horizon.decided > height)
        if not self._is_sure():
            self._agenda.resend(trio.current_time())
        self._held.extend((sender, body, True) for sender, body in self._horizon.release(height))
        self._held.extend((sender, body, False) for sender, body in self._hearsay.release())

    def _enter(self, validators: ValidatorSet) -> None:
        """Hear and judge by an epoch's validators; what was known of later heights was judged by those before."""
        self._validators = validators
        self._others = tuple(member for member in validators.members if member != self._guard.address)
        self._inbox.admit_only(self._others)
        self._horizon = Horizon(validators, self._guard.address)
        self._intake = Intake(
            network=self._network,
            validators=validators,
            application=self._application,
            clock=self._clock,
            horizon=self._horizon,
        )

    async def _turn(self) -> None:
        """One thing that is due, or one message, or a sleep until there is one."""
        await trio.lowlevel.checkpoint()
        due = self._agenda.take(trio.current_time(), ahead=self._is_behind())
        match due:
            case TimedOut() as timer:
                await self._apply(timer)
            case Duty.FETCH:
                await self._catch_up()
            case Duty.ASK:
                await self._ask_application()
            case Duty.RESEND:
                self._resend()
            case PolkaCertificate() | RoundCertificate() as certificate:
                self._voice.say(self._others, certificate)
            case None:
                await self._listen()
            case _:
                assert_never(due)

    async def _listen(self) -> None:
        """One message, or a sleep until there is one or something is due."""
        if self._held:
            sender, body, checked = self._held.popleft()
            await self._handle(sender, body, checked=checked)
        elif (raw := self._inbox.take()) is not None:
            await self._open(*raw)
        else:
            await self._sleep()

    async def _sleep(self) -> None:
        self._wake = trio.Event()
        with trio.move_on_at(self._agenda.next_at(ahead=self._is_behind())):
            await self._wake.wait()

    async def _ask_application(self) -> None:
        if self._state.step is not Step.NEW:
            return
        due_s = await self._application.due_in()
        if due_s is None:
            return
        if due_s <= 0:
            await self._apply(Start())
        else:
            self._agenda.ask_again(due_s, trio.current_time())

    async def _open(self, sender: Address, data: bytes) -> None:
        try:
            body = decode_message(data)
        except PeerFault as error:
            self._blame(sender, error)
            return
        if isinstance(body, Evidence):
            self._accuse(sender, body)
        elif isinstance(body, Recalled):
            await self._hear_back(sender, body)
        else:
            if isinstance(body, Request) and body.asked_ms is not None:
                self._recall(sender, body, body.asked_ms)
            await self._handle(sender, body, checked=False)

    async def _handle(self, sender: Address, body: Body, *, checked: bool) -> None:
        known = (self._horizon.decided, self._horizon.certificate)
        try:
            admitted = await self._intake.admit(self._state, self._tip.header_id, sender, body, checked=checked)
        except PeerFault as error:
            self._blame(sender, error)
            return
        match admitted:
            case Counted(inputs=inputs, fault=fault):
                if fault is not None:
                    self._blame(body.proposer if isinstance(body, Proposal) else sender, fault)
                await self._count(inputs)
            case Ahead(decided=decided):
                self._hear_of(decided, sender, body)
            case Behind(height=lower):
                self._look_back(sender, lower, body)
            case Asked(request=request):
                self._answer(sender, request)
            case Noted():
                if (self._horizon.decided, self._horizon.certificate) != known:
                    self._plan_fetch(proved=self._horizon.certificate is not known[1])
            case _:
                assert_never(admitted)

    def _hear_of(self, decided: Height, sender: Address, body: Body) -> None:
        """A message of a later epoch: a claim that we are behind; at the next height, one that we keep for then."""
        self.announce(decided)
        if decided == self._state.height:
            self._hearsay.keep(sender, body)

    def _answer(self, sender: Address, request: Request) -> None:
        if self._answers.take(sender, trio.current_time()):
            for answer in answer_to(self._state, request):
                self._voice.say((sender,), answer)

    def _recall(self, sender: Address, request: Request, asked_ms: TimeMs) -> None:
        """Tell a validator that starts where we stand, and what we heard of it."""
        if not self._recalls.take(sender, trio.current_time()):
            return
        if request.height <= self._tip.height and self._tip.certificate is not None:
            self._voice.say((sender,), HeightCertificate(certificate=self._tip.certificate))
        kept = self._horizon.kept_of(sender)
        self._voice.say((sender,), recall(sender, asked_ms, self._state, self._hindsight.past, kept))

    async def _hear_back(self, sender: Address, answer: Recalled) -> None:
        """Take in what a validator heard of us; once enough of them have told, say what was not said."""
        try:
            self._voice.hear(sender, answer, self._state)
        except PeerFault as error:
            self._blame(sender, error)
        else:
            if self._is_sure():
                await self._drain(deque(), self._voice.unsaid())

    def _is_sure(self) -> bool:
        return self._voice.is_sure(self._state, self._horizon.decided)

    async def _count(self, inputs: Iterable[Input]) -> None:
        """Feed the core; begin the height if the others have."""
        height = self._state.height
        for event in inputs:
            if self._state.height == height:
                await self._apply(event)
        if self._state.height == height and self._state.step is Step.NEW and core.is_begun(self._state):
            await self._apply(Start())

    def _others_decided(self) -> Height:
        """Highest height that others have decided, or so somebody says."""
        return max(self._horizon.decided, self._hearsay.claimed)

    def _is_behind(self) -> bool:
        return self._others_decided() > self._tip.height

    def _plan_fetch(self, *, proved: bool) -> None:
        """Others are ahead. By votes alone and one height only, what decides ours is probably under way: wait a bit."""
        patient = not proved and self._horizon.decided <= self._state.height
        self._agenda.fetch(trio.current_time(), patient=patient)

    def _accuse(self, sender: Address | None, evidence: Evidence) -> None:
        """The next block shall hold it; if it is news, the others shall have it, who may know one half only."""
        try:
            news = self._application.add_evidence(evidence)
        except PeerFault as error:
            self._blame(sender, error)
            return
        if news:
            self.accuse(evidence)

    def _blame(self, sender: Address | None, error: PeerFault) -> None:
        self._blames.tell(sender, error, trio.current_time())

    # What the core wants done

    async def _apply(self, event: Input) -> None:
        """Step the core, log, do the effects; then the same for what they answer."""
        await self._drain(deque([(event, False)]))

    async def _drain(self, events: deque[tuple[Input, bool]], effects: Iterable[Effect] = ()) -> None:
        """Do `effects`, then step the core with each event (and whether it is logged already) and do what follows."""
        height = self._state.height
        while True:
            for effect in effects:
                answer = await self._perform(effect)
                if self._state.height != height:
                    return
                if answer is not None:
                    events.append(answer)
            if not events:
                return
            event, logged = events.popleft()
            before = self._state
            state, effects = core.step(before, event)
            if not logged:
                if state is before and not effects:
                    continue
                self._wal.append(encode_input(event))
            self._state = state
            if state.round != before.round or before.step is Step.NEW < state.step:
                LOGGER.debug("event=round height=%d round=%d", height, state.round)
                self._agenda.resend(trio.current_time())
                self._observer(RoundEntered(height, state.round))

    async def _perform(self, effect: Effect) -> tuple[Input, bool] | None:
        """Do one effect; what it answers, and whether that is logged already."""
        state = self._state
        match effect:
            case BuildValue(round=round_):
                if round_ != state.round or state.step is not Step.PROPOSE:
                    return None
                block = await self._application.propose(state.height, self._clock.now_ms(), state.me)
                return ValueBuilt(round=round_, block=block), False
            case SignProposal() | SignVote():
                event = self._voice.sign(effect, state, self._others, self._horizon.decided)
                return None if event is None else (event, True)
            case Schedule(step=step, round=round_):
                self._agenda.arm(step, round_, trio.current_time())
            case Relay(certificate=certificate):
                self._agenda.relay(certificate, trio.current_time())
            case Accuse(evidence=evidence):
                self._accuse(None, evidence)
            case Decide(decided=decided):
                await self._commit(decided, synced=False)
            case _:
                assert_never(effect)
        return None

    async def _commit(self, decided: DecidedBlock, *, synced: bool) -> None:
        self._checkpoint("committing")
        await self._application.commit(decided)
        self._checkpoint("committed")
        tip = tip_of(decided)
        self._agenda.decided(trio.current_time())
        LOGGER.info("event=committed height=%d round=%d", tip.height, decided.certificate.round)
        self._observer(BlockCommitted(decided, synced=synced))
        for other, note in self._hindsight.keep(self._state, decided.certificate.round):
            self._voice.say((other,), note)
        self._stand_on(tip)

    def _stand_on(self, tip: Tip) -> None:
        """Go on above `tip`, among the validators of its next height; where we are none of them, `run` ends."""
        self._tip = tip
        validators = self._application.validators
        if validators != self._validators:
            LOGGER.info("event=epoch epoch=%d validators=%d", validators.epoch, validators.size)
            if self._guard.address not in validators:
                return
            self._enter(validators)
        self._begin()

    async def _catch_up(self) -> None:
        """Commit what others are known to have decided: the block at hand if there is one, else from the source."""
        block = at_hand(self._state, self._horizon.certificate)
        if block is not None:
            await self._commit(block, synced=True)
            return
        if self._snapshots is not None and await self._snapshots.leap(self._tip.height, self._others_decided()):
            self._stand_on(await load_tip(self._network, self._application))
            return
        before, others_left = self._tip.height, False
        for decided in await fetch_batch(self._source, self._tip, self._timeouts.fetch_s):
            try:
                check_decided(self._network, self._validators, self._tip, decided)
            except PeerFault as error:
                self._blame(None, error)
                others_left = self._source.refuse()
                break
            await self._commit(decided, synced=True)
            if self._guard.address not in self._application.validators:
                return
        self._hearsay.fetched(self._tip.height, news=self._tip.height > before)
        if self._tip.height == before and not others_left:
            self._agenda.fetch_later(trio.current_time())

    def _resend(self) -> None:
        """Say again what was said last; while nothing is wanted, ask where the others stand."""
        sure = self._is_sure()
        self._agenda.resend(trio.current_time(), idle=sure and self._state.step is Step.NEW)
        if not sure:
            self._voice.ask(self._state, self._others)
        for body, to in last_words(self._state, self._others):
            self._voice.say(to, body)

    def _look_back(self, sender: Address, height: Height, body: Body) -> None:
        """Prove to a validator that the height it is at is decided. Not at once: its vote may have been under way."""
        for evidence in self._hindsight.contradictions(body):
            self._accuse(sender, evidence)
        now = trio.current_time()
        if self._tip.certificate is None or (height == self._tip.height and self._agenda.is_fresh(now)):
            return
        if self._answers.take(sender, now):
            self._voice.say((sender,), HeightCertificate(certificate=self._tip.certificate))
