"""The intake: what one message amounts to. Checks it, asks the application about blocks, knows nothing of sending.

A message of the height being decided becomes inputs of the core; one of a lower height shows that its sender is behind;
one of a higher height is noted in the horizon. Each is checked only as far as it can tell us something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from nsllm.clock import Clock
from nsllm.consensus import core
from nsllm.consensus.core import State
from nsllm.consensus.errors import BlockError
from nsllm.consensus.horizon import Horizon
from nsllm.consensus.inputs import CertificateReceived, Input, ProposalReceived, VoteReceived
from nsllm.consensus.message import Body, HeightCertificate, PolkaCertificate, Request, RoundCertificate
from nsllm.consensus.ports import Application
from nsllm.consensus.screen import check_link, check_proposal, check_vote, check_votes
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, Height, NetworkId


@dataclass(frozen=True, slots=True)
class Counted:
    """It is for this height: inputs, possibly none, and the fault of a proposer whose block is invalid."""

    inputs: tuple[Input, ...] = ()
    fault: PeerFault | None = None


@dataclass(frozen=True, slots=True)
class Behind:
    """Its sender is at a height that is decided."""

    height: Height


@dataclass(frozen=True, slots=True)
class Noted:
    """It speaks of later heights; the horizon has it, if it was news."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of this height."""

    request: Request


@dataclass(frozen=True, slots=True)
class Ahead:
    """It is of an epoch whose validators we do not know yet, so that nothing in it can be checked: a claim."""

    decided: Height
    """Height that its sender says is decided."""


Admitted = Counted | Behind | Noted | Asked | Ahead


class Intake:
    """Judges messages for one validator.

    Args:
        network: salt of every signature.
        validators: the epoch's set.
        application: its `validate` is the paper's valid(v).
        clock: wall time to judge a header's time by.
        horizon: takes what is of later heights.
    """

    def __init__(
        self,
        *,
        network: NetworkId,
        validators: ValidatorSet,
        application: Application,
        clock: Clock,
        horizon: Horizon,
    ) -> None:
        self._network = network
        self._validators = validators
        self._application = application
        self._clock = clock
        self._horizon = horizon

    async def admit(self, state: State, parent: Digest, sender: Address, body: Body, *, checked: bool) -> Admitted:
        """What `body` amounts to at `state`.

        Args:
            state: of the height being decided.
            parent: header id of the block below.
            sender: who handed it over; not necessarily who signed it.
            body: decoded message.
            checked: the horizon kept it, so its signatures were checked before.

        Raises:
            PeerFault: it breaks a rule.
            DivergenceError: see `Application.validate`.
        """
        if (claim := self._later_epoch(state, body)) is not None:
            return claim
        return await self._judge(state, parent, sender, body, checked=checked)

    async def _judge(self, state: State, parent: Digest, sender: Address, body: Body, *, checked: bool) -> Admitted:
        match body:
            case Request():
                return Asked(body) if body.height == state.height else self._elsewhen(state, body.height)
            case HeightCertificate(certificate=certificate):
                if certificate.header.height >= state.height and self._horizon.is_better(certificate):
                    certificate.check(self._network, self._validators)
                    self._horizon.prove(certificate)
                return Noted()
            case Proposal() | Vote():
                if body.height != state.height:
                    return self._of_other_height(state, sender, body, checked=checked)
                if isinstance(body, Proposal):
                    return await self._proposal(state, parent, body, checked=checked)
                if not checked:
                    check_vote(self._network, self._validators, body, state.tally.holds)
                return Counted((VoteReceived(vote=body),))
            case PolkaCertificate() | RoundCertificate():
                return self._certificate(state, sender, body)
            case _:
                assert_never(body)

    def _certificate(self, state: State, sender: Address, body: PolkaCertificate | RoundCertificate) -> Admitted:
        first = body.votes[0]
        if first.height != state.height:
            return self._of_other_height(state, sender, first, checked=False)
        known = state.tally.holds
        if isinstance(body, PolkaCertificate):
            check_votes(self._network, self._validators, body.votes, "prevote", known)
            return Counted((CertificateReceived(votes=body.votes),))
        check_votes(self._network, self._validators, body.votes, "precommit", known)
        return Counted(tuple(VoteReceived(vote=vote) for vote in body.votes))

    async def _proposal(self, state: State, parent: Digest, proposal: Proposal, *, checked: bool) -> Counted:
        """The proposal's polka, then the proposal with the application's verdict."""
        if not core.wants(state, proposal):
            return Counted()
        if not checked:
            check_proposal(self._network, self._validators, proposal, state.tally.holds)
        check_link(self._validators, proposal.block, state.height, parent)
        polka: tuple[Input, ...] = (CertificateReceived(votes=proposal.polka),) if proposal.polka else ()
        fault: PeerFault | None = None
        known = state.candidates.get(proposal.value)
        if known is None or not known.valid:
            try:
                await self._application.validate(proposal.block, self._clock.now_ms(), proposal.round)
            except BlockError as error:
                fault = error
        return Counted((*polka, ProposalReceived(proposal=proposal, valid=fault is None)), fault)

    def _later_epoch(self, state: State, body: Body) -> Ahead | None:
        """The claim that lies in a message of a later epoch and height."""
        match body:
            case HeightCertificate(certificate=certificate):
                epoch, height = certificate.header.epoch, Height(certificate.header.height + 1)
            case Proposal() | Vote():
                epoch, height = body.epoch, body.height
            case PolkaCertificate() | RoundCertificate():
                epoch, height = body.votes[0].epoch, body.votes[0].height
            case Request():
                return None
            case _:
                assert_never(body)
        later = epoch > self._validators.epoch and height > state.height
        return Ahead(Height(height - 1)) if later else None

    def _elsewhen(self, state: State, height: Height) -> Admitted:
        return Behind(height) if height < state.height else Noted()

    def _of_other_height(self, state: State, sender: Address, message: Vote | Proposal, *, checked: bool) -> Admitted:
        if message.height > state.height and not checked and self._horizon.is_news(message, state.height):
            if isinstance(message, Vote):
                check_vote(self._network, self._validators, message, _unknown)
            else:
                check_proposal(self._network, self._validators, message, _unknown)
            self._horizon.note(sender, message, state.height)
        return self._elsewhen(state, message.height)


def _unknown(_vote: Vote) -> bool:
    return False
