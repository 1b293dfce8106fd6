"""Replay: a height's write-ahead log back into the state that it left, and into what was still to be done.

The core is deterministic and the log holds every input that changed it, so stepping through the log again gives the
state before the crash, locks included. Effects that the log shows as done (our own votes, blocks that were built,
timers that had fired) are not done twice; the rest is pending. A vote that was signed but not logged comes out of the
replay identical, and the signer guard signs the identical thing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus import core
from nsllm.consensus.core import State
from nsllm.consensus.effects import BuildValue, Effect, Relay, Schedule, SignProposal, SignVote
from nsllm.consensus.errors import WalError
from nsllm.consensus.inputs import Input, ProposalReceived, TimedOut, ValueBuilt, VoteReceived, decode_input
from nsllm.consensus.signing import body_of
from nsllm.errors import EncodingError
from nsllm.ids import Address, AddressField, Digest, Height, HeightField, NetworkId, NetworkIdField, hex0x


class Begin(Value, frozen=True, kw_only=True):
    """First entry of every log: whose it is, and which height's."""

    network: NetworkIdField
    validator: AddressField
    height: HeightField


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a log gave back."""

    state: State
    pending: tuple[Effect, ...]
    """Effects that were due and are not known to be done, in order."""
    signed: frozenset[Digest]
    """Digests of everything that we signed at this height, or will sign by doing what is pending."""


def begin_entry(network: NetworkId, validator: Address, height: Height) -> bytes:
    """The first entry of a height's log."""
    return canonical.encode(Begin(network=network, validator=validator, height=height))


def replay(entries: Sequence[bytes], fresh: State, network: NetworkId) -> Replayed | None:
    """Step `fresh` through the log; None if the log is empty or another height's, so that nothing in it counts.

    Raises:
        WalError: another validator's or network's log, or an entry that does not decode.
    """
    if not entries:
        return None
    try:
        begin = canonical.decode(entries[0], Begin, limit_bytes=1024)
        inputs = [decode_input(entry) for entry in entries[1:]] if begin.height == fresh.height else []
    except EncodingError as error:
        raise WalError(f"write-ahead log holds something else: {error}", hint="restore the data folder") from None
    if begin.network != network or begin.validator != fresh.me:
        raise WalError(
            f"write-ahead log of validator {hex0x(begin.validator)} in network {hex0x(begin.network)[:18]}",
            hint="this data folder was mixed with another peer's",
        )
    if begin.height != fresh.height:
        return None
    state = fresh
    pending: list[Effect] = []
    signed: set[Digest] = set()
    for event in inputs:
        state, effects = core.step(state, event)
        pending = [effect for effect in pending if not _done_by(effect, event, fresh.me)]
        pending.extend(effect for effect in effects if not isinstance(effect, Relay))
        signed |= _own_digest(event, fresh.me, network)
    pending = [effect for effect in pending if not _stale(effect, state)]
    for effect in pending:
        signed |= _digest_to_come(effect, state, network)
    return Replayed(state, tuple(pending), frozenset(signed))


def _done_by(effect: Effect, event: Input, me: Address) -> bool:
    """Whether the log's next input shows that `effect` was carried out."""
    match effect, event:
        case SignVote(kind=kind, round=round_), VoteReceived(vote=vote):
            return vote.validator == me and (vote.kind, vote.round) == (kind, round_)
        case SignProposal(round=round_), ProposalReceived(proposal=proposal):
            return proposal.proposer == me and proposal.round == round_
        case BuildValue(round=round_), ValueBuilt():
            return event.round == round_
        case Schedule(step=step, round=round_), TimedOut():
            return (event.step, event.round) == (step, round_)
        case _:
            return False


def _stale(effect: Effect, state: State) -> bool:
    return isinstance(effect, Schedule | BuildValue) and effect.round != state.round


def _own_digest(event: Input, me: Address, network: NetworkId) -> set[Digest]:
    match event:
        case VoteReceived(vote=vote) if vote.validator == me:
            return {vote.digest(network)}
        case ProposalReceived(proposal=proposal) if proposal.proposer == me:
            return {proposal.digest(network)}
        case _:
            return set()


def _digest_to_come(effect: Effect, state: State, network: NetworkId) -> set[Digest]:
    if not isinstance(effect, SignVote | SignProposal):
        return set()
    body = body_of(effect, epoch=state.validators.epoch, height=state.height, signer=state.me)
    return {body.digest(network)}
