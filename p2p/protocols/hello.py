"""`/nsllm/hello/1`: two peers exchange their cards, and the members' cards that they know.

Strangers may say hello; the cards that they pass on are not taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta

from nsllm.canonical import Value
from nsllm.errors import PeerFault
from nsllm.ids import PeerId
from nsllm.p2p.card import SignedCard
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.errors import CardError
from nsllm.p2p.network import Network, Stream, StreamHandler
from nsllm.p2p.protocols.dialogue import TOO_MUCH, Refused, answering, dialogue, refusal, refused_by
from nsllm.p2p.rates import Rate, RateLimiter

log = logging.getLogger(__name__)

HELLO: Final = "/nsllm/hello/1"
MAX_CARDS: Final = 64
MAX_HELLO_BYTES: Final = 512 * 1024
STRANGERS: Final = Rate(per_peer=12, total=240)

OwnCard = Callable[[], SignedCard]
"""Our present card; called for each hello."""


class Greeting(Value, frozen=True, kw_only=True, tag="greeting"):
    """Own card, and cards of members that the sender knows."""

    card: SignedCard
    known: Annotated[tuple[SignedCard, ...], Meta(max_length=MAX_CARDS)] = ()


class Hello(Value, frozen=True, kw_only=True):
    """The only message, in both directions."""

    answer: Greeting | Refused


def serve_hello(directory: PeerDirectory, own_card: OwnCard, on_card: Callable[[SignedCard], None]) -> StreamHandler:
    """Handler that takes the peer's card and answers with ours. `on_card` hears of each card that was news."""
    strangers = RateLimiter(STRANGERS)

    async def handler(stream: Stream) -> None:
        async with answering(stream, MAX_HELLO_BYTES) as framed:
            hello = await framed.receive(Hello)
            if directory.member_of(framed.peer) is None and not strangers.take(framed.peer):
                await framed.send(Hello(answer=refusal(TOO_MUCH)))
                return
            _take(directory, framed.peer, hello, on_card)
            await framed.send(_greeting(directory, own_card, framed.peer))

    return handler


async def say_hello(
    network: Network,
    directory: PeerDirectory,
    peer: PeerId,
    own_card: OwnCard,
    on_card: Callable[[SignedCard], None],
    *,
    deadline_s: float = 5.0,
) -> None:
    """Exchange cards with a connected peer.

    Raises:
        NetworkError: no answer, a refusal, or a card that does not hold.
    """
    async with dialogue(network, peer, HELLO, limit_bytes=MAX_HELLO_BYTES, deadline_s=deadline_s) as framed:
        await framed.send(_greeting(directory, own_card, peer))
        answer = await framed.receive(Hello)
    if isinstance(answer.answer, Refused):
        raise refused_by(peer, HELLO, answer.answer)
    _take(directory, peer, answer, on_card)


def _greeting(directory: PeerDirectory, own_card: OwnCard, to: PeerId) -> Hello:
    own = own_card()
    known = directory.some_cards(MAX_CARDS)
    others = tuple(signed for signed in known if signed.card.peer_id not in {own.card.peer_id, to})
    return Hello(answer=Greeting(card=own, known=others))


def _take(directory: PeerDirectory, peer: PeerId, hello: Hello, on_card: Callable[[SignedCard], None]) -> None:
    greeting = hello.answer
    if isinstance(greeting, Refused):
        raise CardError(f"{peer} opened with a refusal")
    if greeting.card.card.peer_id != peer:
        raise CardError(f"{peer} showed the card of {greeting.card.card.peer_id}")
    if directory.accept(greeting.card):
        on_card(greeting.card)
    if directory.member_of(peer) is None:
        return
    for signed in greeting.known:
        try:
            if directory.accept(signed):
                on_card(signed)
        except PeerFault as error:
            # A card that expired on the way, or that only the other's registry knows, is no reason to part.
            log.info("card_ignored from=%s of=%s error=%s", peer, signed.card.peer_id, error)
