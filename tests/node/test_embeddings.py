"""Embeddings of public texts come from whoever computed them first; who states a wrong one is believed no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import trio

from nsllm.cache_dht.embedded import Embedded, packed, sign_embedded, text_digest
from nsllm.cache_dht.embedding_store import EmbeddingStore
from nsllm.ids import Digest
from nsllm.node import embeddings as module
from nsllm.node.embeddings import Embeddings
from nsllm.node.errors import EngineError
from nsllm.p2p.errors import MisbehaviourError, UnreachableError

ENCODER = Digest(b"\2" * 32)


def vector(text: str) -> tuple[float, ...]:
    """Another axis for each length of a text."""
    return tuple(1.0 if at == len(text) else 0.0 for at in range(384))


@dataclass
class FakeEngine:
    read: list[str] = field(default_factory=list)
    fails: bool = False

    def info(self):
        return SimpleNamespace(encoder=SimpleNamespace(digest=ENCODER))

    async def embed(self, texts):
        return (await self.embed_counted(texts))[0]

    async def embed_counted(self, texts, *, most_tokens=None):
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise EngineError("the worker died")
        self.read += texts
        return [vector(text) for text in texts], 3 * len(texts)


@dataclass
class FakeLinks:
    cast: object
    gives: dict = field(default_factory=dict)
    """By holder: embeddings, or an error."""
    given: list = field(default_factory=list)

    def peer_of(self, member):
        return next((i.peer_id for i in self.cast.identities if i.address == member), None)

    async def want_embeddings(self, holder, keys):
        await trio.lowlevel.checkpoint()
        found = self.gives.get(holder, ())
        if isinstance(found, Exception):
            raise found
        return [one for one in found if one.embedded.key() in keys]

    async def give_embeddings(self, holder, embeddings):
        await trio.lowlevel.checkpoint()
        self.given.append((holder, [one.embedded.text for one in embeddings]))


class Shelf:
    def __init__(self, cast, *, default="private", together=True) -> None:
        self.cast, context = cast, cast.context
        self.engine, self.links = FakeEngine(), FakeLinks(cast)
        self.store = EmbeddingStore.open(None, context.address, context.clock, context.offload)
        self.others = tuple(identity.peer_id for identity in cast.identities[1:])
        every = tuple(identity.address for identity in cast.identities)
        self.embeddings = Embeddings(
            context=context,
            engine=self.engine,
            store=self.store,
            cache=SimpleNamespace(holders_of=lambda shard: every if together else every[1:]),
            links=self.links,
            connected=lambda: self.others,
            default_visibility=default,
        )

    def signed(self, text, *, by=1, wrong=False, network=None):
        context, identity = self.cast.context, self.cast.identities[by]
        one = Embedded(
            network=network or context.network_id,
            member=identity.address,
            encoder=ENCODER,
            text=text_digest(context.network_id, text),
            vector=packed(vector(text + "wrong" if wrong else text)),
            tokens=7,
            created_ms=1_000,
        )
        return sign_embedded(identity.member, one)

    async def public(self, *texts):
        return await self.embeddings.texts(texts, "public")


@pytest.fixture
def shelf(cast) -> Shelf:
    return Shelf(cast)


async def test_a_question_is_embedded_once(shelf, monkeypatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        assert await shelf.embeddings.question(text) == vector(text)
    assert shelf.engine.read == ["a", "bb", "ccc", "bb"]
    assert await shelf.store.count() == 0


async def test_private_texts_leave_no_trace(shelf, cast) -> None:
    for visibility in ("private", None):
        found = await shelf.embeddings.texts(["secret"], visibility)
        assert (found.visibility, found.shared, found.tokens) == ("private", 0, 3)
    assert await shelf.store.count() == 0
    assert (await Shelf(cast, default="public").embeddings.texts(["open"], None)).visibility == "public"
    assert (await Shelf(cast, default="group").embeddings.texts(["ours"], None)).visibility == "private"


async def test_what_has_no_text_of_its_own_is_never_shared(shelf) -> None:
    for texts, most in ((["open", (5, 6)], None), ([(5, 6)], None), (["open"], 3)):
        found = await shelf.embeddings.texts(texts, "public", most_tokens=most)
        assert (found.visibility, found.shared, len(found.vectors)) == ("private", 0, len(texts))
    assert await shelf.store.count() == 0


async def test_a_public_text_is_computed_once_signed_and_brought_to_its_holders(shelf) -> None:
    found = await shelf.public("a", "bb", "a")
    assert found.vectors == (vector("a"), vector("bb"), vector("a"))
    assert (found.tokens, found.shared, found.visibility) == (9, 0, "public")
    again = await shelf.public("bb")
    assert (again.vectors, again.shared) == ((vector("bb"),), 1)
    assert sorted(shelf.engine.read) == ["a", "bb"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shelf.embeddings.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert {holder for holder, _ in shelf.links.given} == set(shelf.others)
    assert all(len(texts) == 2 for _, texts in shelf.links.given)


async def test_anothers_is_taken_and_computed_again_at_first_then_now_and_then(shelf, monkeypatch) -> None:
    monkeypatch.setattr(module, "KNOWN", 2)
    monkeypatch.setattr(module, "AGAIN", 0.0)
    texts = ["a", "bb", "ccc"]
    shelf.links.gives = dict.fromkeys(shelf.others, tuple(map(shelf.signed, texts)))
    for text in texts:
        found = await shelf.public(text)
        assert (found.vectors, found.shared, found.tokens) == ((vector(text),), 1, 7)
    assert shelf.engine.read == ["a", "bb"]
    assert shelf.embeddings.counters.computed_again == 2
    assert await shelf.store.count() == 3  # here, too, from now on


async def test_who_states_a_wrong_one_is_believed_no_more(shelf) -> None:
    lies = [shelf.signed("a"), shelf.signed("bb", wrong=True)]
    shelf.links.gives = dict.fromkeys(shelf.others, lies)
    found = await shelf.public("a", "bb")
    assert (found.vectors, found.shared) == ((vector("a"), vector("bb")), 0)
    assert shelf.cast.kinds().count("embedding_refused") == 1
    shelf.links.gives = dict.fromkeys(shelf.others, (shelf.signed("ccc"),))
    assert (await shelf.public("ccc")).shared == 0
    member = SimpleNamespace(address=shelf.cast.identities[1].address)
    assert await shelf.embeddings.keep([shelf.signed("dddd")], member) is not None


@pytest.mark.parametrize("what", ["foreign", "unreachable", "misbehaving", "stranger"])
async def test_a_holders_fault_costs_that_holder_and_no_vector(shelf, cast, what) -> None:
    stranger = shelf.signed("a")
    if what == "foreign":
        given = [shelf.signed("a", network=bytes(32))]
    elif what == "stranger":
        cast.context.standing.registry = SimpleNamespace(get=lambda _address: None)
        given = [stranger]
    else:
        given = UnreachableError("gone") if what == "unreachable" else MisbehaviourError("odd")
    shelf.links.gives = dict.fromkeys(shelf.others, given)
    found = await shelf.public("a")
    assert (found.vectors, found.shared) == ((vector("a"),), 0)


async def test_what_a_member_brings_is_kept_if_it_is_its_own_and_ours_to_hold(shelf, cast) -> None:
    members = [SimpleNamespace(address=identity.address) for identity in cast.identities]
    one = shelf.signed("a")
    assert await shelf.embeddings.keep([one], members[1]) is None
    assert await shelf.embeddings.look([one.embedded.key(), Digest(bytes(32))]) == (one,)
    assert "brought by" in await shelf.embeddings.keep([shelf.signed("bb")], members[2])
    apart = Shelf(cast, together=False)
    assert "shard that we do not hold" in await apart.embeddings.keep([one], members[1])
    apart.store.close()
    shelf.store.close()
    assert await shelf.embeddings.keep([one], members[1]) == "cannot keep them now"
    assert (await shelf.public("a")).vectors == (vector("a"),)  # trouble with the disk costs no answer


async def test_an_engine_that_fails_is_one_clear_error(shelf) -> None:
    shelf.engine.fails = True
    with pytest.raises(EngineError, match="the worker died"):
        await shelf.public("a", "bb")


def test_peers_share_what_they_compute(on_stage) -> None:
    async def play(stage) -> None:
        one, other = stage.peers[:2]
        texts = [f"a public text, number {number}" for number in range(5)]
        first = await one.embed(texts, "public")
        assert first.shared == 0
        with trio.fail_after(60):
            while await other.stores.embeddings.count() < 5:
                await trio.sleep(0.1)
        second = await other.embed(texts, "public")
        assert second.vectors == first.vectors
        assert second.tokens == first.tokens
        assert second.shared == 5
        assert other.parts.embeddings.counters.computed_again == 5
        assert (await other.embed(["only here"], "private")).shared == 0

    on_stage(play, peers=2)
