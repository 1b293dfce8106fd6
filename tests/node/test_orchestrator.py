"""What may happen to an answer on its way: cut off, failed closed, found elsewhere, too large to publish."""

from __future__ import annotations

import pytest
import trio

from nsllm.cache_dht.patience import MOST_S
from nsllm.governance.errors import SafetyUnavailableError
from nsllm.governance.validation import Measure
from nsllm.node import orchestrator as module
from nsllm.node.chat import ChatCommand, ChatDelta, ChatFinished, ChatStarted
from nsllm.node.engine.port import Piece
from nsllm.plugins.inline import InlinePluginHost
from nsllm.record import Message, Request, Sampling, request_key
from nsllm.simulations.standin import StandInEngine

TOXIC = "you fucking stupid piece of shit, i will kill you, die you worthless idiot. "


def test_an_answer_whose_middle_turns_toxic_is_cut_off_and_nothing_of_it_is_published(on_stage, monkeypatch) -> None:
    stream = StandInEngine._stream

    async def turning(self, messages, sampling):
        async for piece in stream(self, messages, sampling):
            yield piece
            for _ in range(8):
                await trio.sleep(0.02)
                yield Piece((1,), TOXIC)

    monkeypatch.setattr(StandInEngine, "_stream", turning)

    async def play(stage) -> None:
        peer, *others = stage.peers
        answer = await stage.ask(peer, "How do tides work?")
        assert answer.finished.finish_reason == "content_filter"
        assert answer.finished.publication == "withheld"
        assert "toxicity" in answer.finished.detail
        assert len(answer.text) < 8 * len(TOXIC)  # it did not run to its end
        await trio.sleep(120)
        assert {each.ledger.log_size for each in stage.peers} == {0}
        assert (await peer.receipt(answer.started.completion_id)).state == "none"
        assert (await peer.stores.records.stats()).records == 0
        assert others[0].ledger.height == 0

    on_stage(play)


def test_a_short_toxic_answer_is_withheld_at_its_end(on_stage, monkeypatch) -> None:
    stream = StandInEngine._stream

    async def short(self, messages, sampling):
        async for piece in stream(self, messages, sampling):
            if isinstance(piece, Piece):
                continue
            yield Piece((1,), TOXIC)
            yield piece

    monkeypatch.setattr(StandInEngine, "_stream", short)

    async def play(stage) -> None:
        answer = await stage.ask(stage.peers[0], "How do tides work?")
        assert (answer.finished.finish_reason, answer.finished.publication) == ("content_filter", "withheld")

    on_stage(play, peers=1)


@pytest.mark.parametrize("stage_name", ["input", "output"])
def test_without_its_safety_layers_a_peer_answers_nothing(on_stage, monkeypatch, stage_name: str) -> None:
    validate = InlinePluginHost.validate

    async def unavailable(self, item):
        if item.stage == stage_name:
            raise SafetyUnavailableError("the built-in layers are restarting", hint="ask again in a moment")
        return await validate(self, item)

    monkeypatch.setattr(InlinePluginHost, "validate", unavailable)

    async def play(stage) -> None:
        peer = stage.peers[0]
        with pytest.raises(SafetyUnavailableError, match="restarting"):
            await stage.ask(peer, "How do tides work?")
        await trio.sleep(60)
        assert peer.ledger.log_size == 0
        assert peer.readiness().ready
        monkeypatch.setattr(InlinePluginHost, "validate", validate)
        assert (await stage.ask(peer, "How do tides work?")).finished.publication == "pending"

    on_stage(play, peers=1)


def test_layers_that_fail_while_they_read_along_end_the_answer(on_stage, monkeypatch) -> None:
    validate = InlinePluginHost.validate
    checks = 0

    async def failing(self, item) -> tuple[Measure, ...]:
        nonlocal checks
        checks += item.stage == "output"
        if checks:
            raise SafetyUnavailableError("the built-in layers are restarting")
        return await validate(self, item)

    monkeypatch.setattr(InlinePluginHost, "validate", failing)
    monkeypatch.setattr("nsllm.node.safety_reader.CHECK_CHARS", 20)

    async def play(stage) -> None:
        command = ChatCommand(
            model="default",
            messages=(Message(role="user", content="How do tides work?"),),
            sampling=Sampling(),
            visibility=None,
        )
        events = []
        with pytest.raises(SafetyUnavailableError):
            async with stage.peers[0].chat(command) as channel:
                events.extend([event async for event in channel])
        assert isinstance(events[0], ChatStarted)
        assert not any(isinstance(event, ChatFinished) for event in events)
        assert sum(isinstance(event, ChatDelta) for event in events) < 20

    on_stage(play, peers=1)


def _key(peer, question: str):
    model = peer.models()[0]
    message = Message(role="user", content=question)
    request = Request(model=model.name, model_digest=model.digest, messages=(message,), sampling=Sampling())
    return request_key(peer.parts.context.network_id, request)


async def _held_elsewhere(stage):
    """A question whose record is anchored, and a peer that does not hold it: placement follows the digests."""
    first, *others = stage.peers
    for load in ("weight", "trains", "wind", "water", "snow", "crowds"):
        question = f"How do bridges carry {load}?"
        await stage.anchored(first, await stage.ask(first, question))
        await trio.sleep(30)
        for peer in others:
            if await peer.parts.cache.local(_key(peer, question)) is None:
                return question, peer
    raise AssertionError("every peer holds every record itself")


def test_a_hit_elsewhere_cancels_the_generation_that_ran_beside_the_look_up(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        question, peer = await _held_elsewhere(stage)
        ran: list[str] = []
        stream = StandInEngine._stream

        async def watched(self, messages, sampling):
            ran.append("began")
            try:
                async for piece in stream(self, messages, sampling):
                    yield piece
                ran.append("ended")
            finally:
                ran.append("left")

        monkeypatch.setattr(StandInEngine, "_stream", watched)
        before = (await peer.status()).cache["hits_remote"]
        again = await stage.ask(peer, question)
        assert again.started.source.kind == "cache"
        assert (await peer.status()).cache["hits_remote"] == before + 1
        assert "ended" not in ran
        assert peer._world.engine.info().active == 0

    on_stage(play)


def test_a_holder_that_is_slow_beyond_the_deadline_costs_a_generation(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        question, asker = await _held_elsewhere(stage)
        for peer in stage.peers:
            lookup = peer.parts.cache.lookup

            async def slow(key, *, member, lookup=lookup):
                await trio.sleep(module.LOOKUP_DEADLINE_S + 1)
                return await lookup(key, member=member)

            monkeypatch.setattr(peer.parts.cache, "lookup", slow)
        again = await stage.ask(asker, question, semantic=False)
        assert again.started.source.kind == "engine"
        assert again.finished.publication == "pending"
        found = await stage.ask(asker, question)  # by meaning: its shard has other holders, who are not slow
        assert (found.started.source.kind, found.started.source.match) == ("cache", "exact")

    on_stage(play)


def test_a_look_up_that_hangs_holds_an_answer_up_no_longer_than_its_deadline(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]

        async def hang(_key) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(peer.parts.cache, "remote", hang)
        began = trio.current_time()
        answer = await stage.ask(peer, "How do tides work?")
        assert answer.started.source.kind == "engine"
        assert trio.current_time() - began < module.LOOKUP_DEADLINE_S + 2

    on_stage(play)


@pytest.mark.parametrize("peers", [1, 4])
def test_look_ups_that_ask_nobody_teach_no_impatience(on_stage, peers: int) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        await stage.ask(peer, "How do tides work?")
        assert (peer.parts.orchestrator._patience.wait_s == MOST_S) is (peers == 1)

    on_stage(play, peers=peers)


def test_an_answer_too_large_for_a_record_is_given_and_not_published(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        long = "How do tides work? " * 5_000
        command = ChatCommand(
            model="default",
            messages=(*(Message(role="user", content=long) for _ in range(7)), Message(role="user", content="And?")),
            sampling=Sampling(),
            visibility=None,
        )
        async with peer.chat(command) as channel:
            *_, finished = [event async for event in channel]
        assert finished.publication == "unpublished"
        assert "bytes" in finished.detail
        await trio.sleep(30)
        assert peer.ledger.log_size == 0

    on_stage(play, peers=1)


def test_an_answer_of_many_pieces_outruns_no_reader(on_stage, monkeypatch) -> None:
    """The layers may be slower than the engine by any number of pieces."""
    stream = StandInEngine._stream

    async def quick(self, messages, sampling):
        async for piece in stream(self, messages, sampling):
            if isinstance(piece, Piece):
                for _ in range(400):
                    yield Piece((1,), "a ")
            else:
                yield piece

    validate = InlinePluginHost.validate

    async def slow(self, item):
        if item.stage == "output":
            await trio.sleep(2)
        return await validate(self, item)

    monkeypatch.setattr(StandInEngine, "_stream", quick)
    monkeypatch.setattr(InlinePluginHost, "validate", slow)

    async def play(stage) -> None:
        answer = await stage.ask(stage.peers[0], "How do tides work?")
        assert len(answer.text) >= 2 * 400 * 16
        assert answer.finished.finish_reason in {"stop", "content_filter"}

    on_stage(play, peers=1)


@pytest.mark.parametrize(("embeds", "texts"), [(True, 2), (False, 0)])
def test_private_texts_are_embedded_unless_their_wording_is_enough(on_stage, monkeypatch, embeds, texts) -> None:
    seen: list[str] = []
    embed = StandInEngine.embed

    async def heard(self, some):
        seen.extend(some)
        return await embed(self, some)

    async def play(stage) -> None:
        peer = stage.peers[0]
        peer.parts.reception._embed_private = embeds
        monkeypatch.setattr(StandInEngine, "embed", heard)
        await stage.ask(peer, "How do tides work?", visibility="private")
        assert len(seen) == texts  # the question, the answer

    on_stage(play, peers=1)
