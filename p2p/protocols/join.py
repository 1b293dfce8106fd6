"""`/nsllm/join/1`: a newcomer with an invite's token asks a member to admit it, and gets the genesis too.

Strangers may ask, slowly: tokens are long, and whoever guesses is cut off after a few tries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.registry import Admission, Member
from nsllm.crypto import MemberKey
from nsllm.errors import SignatureError
from nsllm.governance.genesis import MAX_GENESIS_BYTES, Genesis
from nsllm.ids import Digest, NetworkId, PeerId, SignatureField
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.rates import Rate, RateLimiter

JOIN: Final = "/nsllm/join/1"
MAX_JOIN_BYTES: Final = MAX_GENESIS_BYTES + 16 * 1024
STRANGERS: Final = Rate(per_peer=5, total=30)

Admit = Callable[[str, Member], Awaitable[Admission | str]]
"""Judges (token, newcomer): the admission, or why not. The newcomer's peer id and address are proved already."""


class JoinRequest(Value, frozen=True, kw_only=True):
    """Who wants in, with which token."""

    token: Annotated[str, Meta(min_length=1, max_length=256)]
    member: Member
    signature: SignatureField
    """By the key of `member.address`: nobody is admitted under another's address."""

    @staticmethod
    def digest(network: NetworkId, member: Member) -> Digest:
        """What the newcomer signs."""
        return canonical.digest("join", network, member)


class Welcome(Value, frozen=True, kw_only=True, tag="welcome"):
    """The admission, and the genesis whose digest stands in the invite."""

    admission: Admission
    genesis: Genesis


class JoinAnswer(Value, frozen=True, kw_only=True):
    """In, or not."""

    answer: Welcome | Refused


def serve_join(genesis: Genesis, admit: Admit) -> StreamHandler:
    """Handler for members that give out invites."""
    limiter = RateLimiter(STRANGERS)
    network = genesis.network_id()

    def unproved(request: JoinRequest, peer: PeerId) -> str | None:
        """Which identity the newcomer did not prove to be its own; None: both are."""
        if request.member.peer_id != peer:
            return f"asked to admit {request.member.peer_id} over the connection of {peer}"
        try:
            crypto.verify(JoinRequest.digest(network, request.member), request.signature, request.member.address)
        except SignatureError as error:
            return str(error)
        return None

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_JOIN_BYTES) as framed:
            request = await framed.receive(JoinRequest)
            if not limiter.take(stream.peer):
                await framed.send(JoinAnswer(answer=refusal(TOO_MUCH)))
                return
            reason = unproved(request, stream.peer)
            verdict = await admit(request.token, request.member) if reason is None else reason
            answer = refusal(verdict) if isinstance(verdict, str) else Welcome(admission=verdict, genesis=genesis)
            await framed.send(JoinAnswer(answer=answer))

    return handler


async def join(
    network: Network,
    peer: PeerId,
    invited_to: NetworkId,
    token: str,
    member: Member,
    *,
    key: MemberKey,
    deadline_s: float = 15.0,
) -> Welcome:
    """Ask a connected member to admit `member` (ourselves, with our member key).

    Raises:
        RefusedError: with the reason, such as a token that was used already.
        MisbehaviourError: the genesis is not the invite's, or the admission is another's.
        NetworkError: no answer.
    """
    async with dialogue(network, peer, JOIN, limit_bytes=MAX_JOIN_BYTES, deadline_s=deadline_s) as framed:
        signature = key.sign(JoinRequest.digest(invited_to, member))
        await framed.send(JoinRequest(token=token, member=member, signature=signature))
        answer = (await framed.receive(JoinAnswer)).answer
    if isinstance(answer, Refused):
        raise refused_by(peer, JOIN, answer)
    if answer.genesis.network_id() != invited_to:
        raise MisbehaviourError(f"{peer} sent the genesis of {answer.genesis.network_id().hex()[:16]}")
    if answer.admission.member != member:
        raise MisbehaviourError(f"{peer} admitted another member")
    answer.genesis.registry().admit(answer.admission)
    return answer
