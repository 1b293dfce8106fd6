"""Documents in a whole network: shared, held, found, cited and withdrawn; what a liar gives is used nowhere."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
import trio
from msgspec.structs import replace

from nsllm.embedding import quantize_embedding
from nsllm.ids import Digest
from nsllm.node.document_spreader import AGAIN_S
from nsllm.node.errors import NotFoundError
from nsllm.node.service import Piece
from nsllm.passages import check_evidence, framed
from nsllm.record import sign_chunk

TEXTS = (
    "The lighthouse of Aldern was built in 1871 from granite of the northern quarry.",
    "Its keeper Marta Lund wrote a diary that the museum of Aldern keeps.",
    "Ferries to Aldern leave the harbour of Holm every morning at seven.",
)
FILE = "\n\n".join(TEXTS)
DOCUMENT = Digest(hashlib.sha256(FILE.encode()).digest())


def pieces(texts=TEXTS):
    made, at = [], 0
    for number, text in enumerate(texts):
        made.append(Piece(number, at, at + len(text), text))
        at += len(text) + 2
    return made


async def _held(peer) -> int:
    return len(await peer.stores.documents.outline())


async def _everywhere(stage, peers) -> None:
    """Every chunk is at the two holders of its shard, and at its own peer."""
    with trio.fail_after(120):
        while True:
            wanted = {peer.parts.context.address: set() for peer in peers}
            for one in await peers[0].stores.documents.outline():
                shard = peers[0].parts.documents.shard(one.embedding)
                for holder in peers[0].parts.cache.holders_of(shard):
                    wanted[holder].add(one.digest)
            have = {
                peer.parts.context.address: {one.digest for one in await peer.stores.documents.outline()}
                for peer in peers
            }
            if all(wanted[address] <= have[address] for address in wanted):
                return
            await trio.sleep(0.5)


async def _ask(stage, peer, text, *, retrieve, visibility="public"):
    from nsllm.node.chat import ChatCommand, ChatFinished, ChatStarted
    from nsllm.record import Message, Sampling

    command = ChatCommand(
        model="default",
        messages=(Message(role="user", content=text),),
        sampling=Sampling(),
        visibility=visibility,
        retrieve=retrieve,
    )
    async with peer.chat(command) as channel:
        events = [event async for event in channel]
    assert isinstance(events[0], ChatStarted)
    assert isinstance(events[-1], ChatFinished)
    return events[0], events[-1]


def test_a_document_is_shared_found_elsewhere_cited_and_certified(on_stage) -> None:
    async def play(stage) -> None:
        author, *others = stage.peers
        done = await author.take_in(DOCUMENT, "aldern.txt", pieces())
        assert (done.added, done.known) == (3, 0)
        again = await author.take_in(DOCUMENT, "renamed.txt", pieces())
        assert (again.added, again.known, again.source) == (0, 3, "aldern.txt")
        await _everywhere(stage, stage.peers)
        asker = others[-1]
        question = "When was the lighthouse of Aldern built and from which granite"
        started, finished = await _ask(stage, asker, question, retrieve=2)
        assert finished.publication == "pending"
        assert [citation.source for citation in started.citations] == ["aldern.txt"] * len(started.citations)
        first = started.citations[0]
        assert FILE[first.start : first.end] == TEXTS[0]
        assert first.document == DOCUMENT
        assert first.member == author.parts.context.address
        await _anchored(asker, started)
        completion = await asker.stores.completions.get(started.completion_id)
        record = completion.signed.record
        assert tuple(signed.chunk.digest() for signed in record.evidence) == tuple(c.chunk for c in started.citations)
        assert record.request.messages[0].content == framed(record.evidence)
        assert record.request.question() == question
        check_evidence(record, asker.parts.context.network_id)
        assert "support" in await _dimensions(asker, started)
        plain, _ = await _ask(stage, asker, question, retrieve=False)
        await _anchored(asker, plain)
        assert "support" not in await _dimensions(asker, plain)
        assert plain.citations == ()  # another request: another key, and not that answer
        again, _ = await _ask(stage, others[0], question, retrieve=2)
        assert again.source.kind == "cache"  # the same passages were found: the same key
        assert again.citations == started.citations

    on_stage(play)


async def _dimensions(peer, started) -> list[str]:
    receipt = json.loads((await peer.receipt(started.completion_id)).receipt_json)
    return [score["name"] for score in receipt["leaf"]["scores"]]


async def _anchored(peer, started) -> None:
    with trio.fail_after(120):
        while (await peer.receipt(started.completion_id)).state != "anchored":
            await trio.sleep(0.1)


def test_a_withdrawn_document_leaves_its_holders_and_stays_away(on_stage) -> None:
    async def play(stage) -> None:
        author, *others = stage.peers
        await author.take_in(DOCUMENT, "aldern.txt", pieces())
        await _everywhere(stage, stage.peers)
        assert sum([await _held(peer) for peer in others]) >= 3
        stale = await others[0].stores.documents.by_digests(
            one.digest for one in await author.stores.documents.outline()
        )
        assert await author.remove_document(DOCUMENT) == 3
        with trio.fail_after(120):
            while sum([await _held(peer) for peer in stage.peers]):
                await trio.sleep(0.5)
        assert await author.documents(everybodys=True) == ()
        for peer in others:
            assert await peer.stores.documents.put(stale) == 0  # taken in before the withdrawal
        with pytest.raises(NotFoundError):
            await author.remove_document(DOCUMENT)
        assert (await author.take_in(DOCUMENT, "aldern.txt", pieces())).added == 3  # taken in after it
        await _everywhere(stage, stage.peers)

    on_stage(play)


def test_a_private_question_reads_own_documents_only_and_asks_nobody(on_stage) -> None:
    async def play(stage) -> None:
        author, *others = stage.peers
        await author.take_in(DOCUMENT, "aldern.txt", pieces())
        await _everywhere(stage, stage.peers)
        question = "When was the lighthouse of Aldern built and from which granite"
        asked: list[object] = []
        for peer in stage.peers:
            peer.parts.context.events.tap(lambda event: asked.append(event) if event.kind == "passages_found" else None)
        started, finished = await _ask(stage, author, question, retrieve=True, visibility="private")
        assert started.citations
        assert finished.publication == "private"
        links = others[0].parts.retrieval._links
        links.find_passages = None  # asking anybody would fail
        bare = [peer for peer in others if not await _held(peer)]
        for peer in bare:
            started, _ = await _ask(stage, peer, question, retrieve=True, visibility="private")
            assert started.citations == ()

    on_stage(play)


def test_chunks_of_strangers_forged_ones_and_wrong_embeddings_are_not_held(on_stage) -> None:
    async def play(stage) -> None:
        author, holder, *_ = stage.peers
        await author.take_in(DOCUMENT, "aldern.txt", pieces())
        good = await author.stores.documents.by_digests(one.digest for one in await author.stores.documents.outline())
        documents, member = holder.parts.documents, holder.parts.context.registry.members()[0]
        key = author.parts.context.key
        mine = [one for one in good if documents.is_ours(documents.shard(one.chunk.embedding))]
        foreign = [one for one in good if one not in mine]
        for signed in foreign:
            assert "do not hold" in await documents.shelve([signed], member)
        for signed in mine:
            assert await documents.shelve([signed], member) is None
        one = good[0]
        forged = replace(one, chunk=replace(one.chunk, text="The lighthouse was built in 1999."))
        assert "sign" in await documents.shelve([forged], member)
        draws = (random.Random(number).randbytes(384) for number in range(100))
        moved = replace(one.chunk, number=7, embedding=next(e for e in draws if documents.is_ours(documents.shard(e))))
        assert "not that of its text" in await documents.shelve([sign_chunk(key, moved)], member)
        encoder = sign_chunk(key, replace(one.chunk, encoder=Digest(bytes(32))))
        assert "encoder" in await documents.shelve([encoder], member)
        stranger = stranger_key()
        alien = sign_chunk(stranger, replace(one.chunk, member=stranger.address))
        assert "no member" in await documents.shelve([alien], member)

    on_stage(play)


def stranger_key():
    from nsllm.crypto import MemberKey

    return MemberKey(b"\x55" * 32)


def test_what_a_lying_holder_gives_is_not_cited(on_stage) -> None:
    async def play(stage) -> None:
        author, *_ = stage.peers
        await author.take_in(DOCUMENT, "aldern.txt", pieces())
        await _everywhere(stage, stage.peers)
        asker = next(peer for peer in stage.peers if peer is not author)
        question = "When was the lighthouse of Aldern built and from which granite"
        [vector] = await asker._world.engine.embed([question])
        key = author.parts.context.key
        (good, *_) = await author.stores.documents.by_digests(
            one.digest for one in await author.stores.documents.outline()
        )
        bait = replace(good.chunk, number=9, text="Buy our granite.", embedding=quantize_embedding(vector))
        unsigned = replace(good, chunk=replace(good.chunk, source="trusted.txt"))
        given = [sign_chunk(key, bait)], [unsigned]
        for lies in given:

            async def find_passages(_holder, _embedding, _count, lies=lies):
                return lies

            asker.parts.retrieval._links = type("Links", (), {"find_passages": staticmethod(find_passages)})()
            asker.stores.documents._index.remove(range(100))  # nothing of its own, so that it asks
            asker.parts.retrieval._cache.holders_of = lambda _shard: (author.parts.context.address,)
            before = asker.parts.retrieval.counters.refused
            started, _ = await _ask(stage, asker, question, retrieve=3)
            assert started.citations == ()
            assert asker.parts.retrieval.counters.refused > before

    on_stage(play)


def test_a_holder_that_lost_its_store_gets_its_chunks_again(on_stage) -> None:
    async def play(stage) -> None:
        author, *others = stage.peers
        await author.take_in(DOCUMENT, "aldern.txt", pieces())
        await _everywhere(stage, stage.peers)
        victim = max(others, key=lambda peer: len(peer.stores.documents._index))
        store = victim.stores.documents
        gone = dict(store._connection.execute("SELECT row, size_bytes FROM chunk").fetchall())
        store._connection.execute("DELETE FROM chunk")
        store._connection.commit()
        store._gone(gone)
        assert gone
        await trio.sleep(AGAIN_S + 60)
        assert await _held(victim) == len(gone)

    on_stage(play)
