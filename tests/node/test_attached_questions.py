"""Questions with attachments through a whole peer: what the model is asked, what the record holds, what the key is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from nsllm.node.attachments.attached import PLACE, Attached
from nsllm.node.attachments.port import Description
from nsllm.node.chat import ChatCommand, ChatFinished, ChatStarted
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Message, Sampling, request_key
from nsllm.simulations.standin import StandInEngine

TABLE = Attached("table", "CSV", b"river,km\nRhine,1233\n", "messages[0].content[0].file.file_data", "rivers.csv")
PICTURE = Attached("image", "PNG", b"one picture", "messages[0].content[0].image_url")
OTHER = Attached("image", "PNG", b"another picture", "messages[0].content[0].image_url")


class AllAlike:
    """Describes all pictures in the same words; notes what it was asked."""

    def __init__(self) -> None:
        self.looked: list[bytes] = []

    async def describe(self, attached: Attached) -> Description:
        self.looked.append(attached.data)
        return Description("9x9 PNG.\nNo text in it.", "ocr+labels")

    async def prepare(self, attached: Attached, max_bytes: int) -> bytes:
        return b"PNG of " + attached.data


async def ask(peer, attached: Attached, *, visibility="public") -> tuple[ChatStarted, ChatFinished]:
    command = ChatCommand(
        model="default",
        messages=(Message(role="user", content=f"{PLACE}How long is it?"),),
        sampling=Sampling(temperature_micro=0, seed=1),
        visibility=visibility,
        attached=(attached,),
    )
    async with peer.chat(command) as channel:
        events = [event async for event in channel]
    assert isinstance(events[0], ChatStarted)
    assert isinstance(events[-1], ChatFinished)
    return events[0], events[-1]


async def record_of(peer, completion_id: str):
    with_record = await peer.stores.completions.get(completion_id)
    return with_record.signed.record


def test_a_table_is_part_of_the_published_question_and_its_digest_of_the_record(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        started, finished = await ask(peer, TABLE)
        assert finished.publication == "pending"
        assert [(note.digest, note.how, note.name) for note in started.attachments] == [
            (TABLE.digest, "table", "rivers.csv")
        ]
        record = await record_of(peer, started.completion_id)
        assert record.request.attachments == (TABLE.digest,)
        assert record.request.messages[0].content == (
            "[Data 1, rivers.csv: 1 row, 2 columns.\nriver: text, Rhine (1)\nkm: integer, 1233 to 1233, mean 1233,"
            " sum 1233\nAll rows:\nriver,km\nRhine,1233]\n\nHow long is it?"
        )

    on_stage(play, peers=1)


def test_pictures_that_look_alike_have_keys_of_their_own(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        describer = peer.parts.reception._reader._describer = AllAlike()
        records = []
        for picture in (PICTURE, OTHER):
            started, _ = await ask(peer, picture)
            records.append(await record_of(peer, started.completion_id))
        first, second = (record.request for record in records)
        assert first.messages == second.messages
        assert first.attachments == (PICTURE.digest,)
        assert request_key(records[0].network, first) != request_key(records[1].network, second)
        assert describer.looked == [PICTURE.data, OTHER.data]
        assert PICTURE.data not in repr(records).encode()

    on_stage(play, peers=1)


def test_the_same_picture_again_is_answered_from_the_cache(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        peer.parts.reception._reader._describer = AllAlike()
        started, _ = await ask(peer, PICTURE)
        await stage.anchored(peer, SimpleNamespace(started=started))
        again, finished = await ask(peer, PICTURE)
        assert (again.source.kind, finished.publication) == ("cache", "certified")
        assert again.attachments == started.attachments
        other, _ = await ask(peer, OTHER)
        assert other.source.kind == "engine"

    on_stage(play, peers=1)


def test_a_model_that_sees_gets_the_picture_and_the_record_its_digest_only(on_stage, monkeypatch) -> None:
    info, generate = StandInEngine.info, StandInEngine.generate
    asked = []

    def seeing(self):
        told = info(self)
        return dataclasses.replace(told, text=dataclasses.replace(told.text, sees=True))

    def noting(self, request):
        asked.append(request)
        return generate(self, request)

    monkeypatch.setattr(StandInEngine, "info", seeing)
    monkeypatch.setattr(StandInEngine, "generate", noting)

    async def play(stage) -> None:
        peer = stage.peers[0]
        peer.parts.reception._reader._describer = AllAlike()
        started, _ = await ask(peer, PICTURE)
        assert [note.how for note in started.attachments] == ["native"]
        assert asked[-1].images == (b"PNG of one picture",)
        record = await record_of(peer, started.completion_id)
        assert record.request.messages[0].content == f"{PLACE}How long is it?"
        assert record.request.attachments == (PICTURE.digest,)
        assert b"one picture" not in repr(record).encode()

    on_stage(play, peers=1)


def test_a_private_question_with_a_table_leaves_nothing(on_stage) -> None:
    async def play(stage) -> None:
        peer, *others = stage.peers
        started, finished = await ask(peer, TABLE, visibility="private")
        assert finished.publication == "private"
        assert [note.how for note in started.attachments] == ["table"]
        assert {each.ledger.log_size for each in (peer, *others)} == {0}
        assert (await peer.stores.records.stats()).records == 0

    on_stage(play, peers=2)


def test_a_bad_attachment_fails_before_anything_is_asked(on_stage) -> None:
    async def play(stage) -> None:
        bad = Attached("table", "CSV", b"a,b\n1\n", "messages[0].content[0].file.file_data")
        with pytest.raises(InvalidRequestError) as caught:
            await ask(stage.peers[0], bad)
        assert caught.value.param == bad.at

    on_stage(play, peers=1)
