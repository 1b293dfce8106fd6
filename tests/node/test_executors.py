"""Our own engine first; another contributor while it is down; private questions stay; nobody streams for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from nsllm.ids import Digest
from nsllm.node import executors as module
from nsllm.node.engine.port import LoadedModel
from nsllm.node.errors import EngineError, UnknownModelError
from nsllm.p2p.errors import MisbehaviourError
from nsllm.p2p.protocols.generate import GENERATE
from nsllm.record import Sampling
from nsllm.simulations.standin import StandInEngine


class DownEngine(StandInEngine):
    """Its worker died: what needs the text model fails; embeddings go on, for the caches and the layers."""

    def info(self):
        return replace(super().info(), state="restarting")

    def generate(self, request):
        raise EngineError("the model worker is down", hint="ask again in a moment")


def break_engine(peer) -> None:
    engine = DownEngine()
    peer._world.engine.info = engine.info
    peer._world.engine.generate = engine.generate


def test_another_contributor_answers_while_our_engine_is_down(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        told: list[str] = []
        peer.parts.context.events.tap(lambda event: told.append(event.kind))
        break_engine(peer)
        assert "engine is restarting" in peer.readiness().detail
        answer = await stage.ask(peer, "How do bridges carry weight?", visibility="public")
        assert answer.text.startswith("How do bridges carry weight?")
        assert answer.finished.publication == "pending"
        assert "generation_delegated" in told
        await stage.anchored(peer, answer)

    on_stage(play)


def test_a_private_question_is_never_handed_on(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        told: list[str] = []
        peer.parts.context.events.tap(lambda event: told.append(event.kind))
        break_engine(peer)
        sent: set[str] = set()
        stage.network.space._on_event = lambda event: sent.add(event[4])
        with pytest.raises(EngineError, match="worker is down"):
            await stage.ask(peer, "What is my secret?", visibility="private")
        await trio.sleep(1)
        assert "generation_delegated" not in told
        assert GENERATE not in sent

    on_stage(play)


def test_one_that_refuses_is_passed_over_and_with_none_left_our_own_error_is_told(on_stage) -> None:
    async def play(stage) -> None:
        peer, *others = stage.peers
        break_engine(peer)
        for other in others[:2]:
            break_engine(other)
        answer = await stage.ask(peer, "How do tides work?", visibility="public")
        assert answer.finished.publication == "pending"
        break_engine(others[2])
        with pytest.raises(EngineError, match="worker is down"):
            await stage.ask(peer, "How do rivers flow?", visibility="public")

    on_stage(play)


@pytest.mark.parametrize("what", ["tokens", "text"])
def test_an_executor_that_streams_beyond_what_was_asked_is_cut_off(on_stage, monkeypatch, what: str) -> None:
    stream = StandInEngine._stream

    async def endless(self, messages, sampling):
        async for piece in stream(self, messages, sampling):
            for _ in range(1_000):
                yield (
                    replace(piece, token_ids=(), text="The tide turns twice a day. " * 36)
                    if what == "text"
                    else replace(piece, text="")
                )

    async def play(stage) -> None:
        peer = stage.peers[0]
        break_engine(peer)
        monkeypatch.setattr(StandInEngine, "_stream", endless)
        monkeypatch.setattr(module, "MAX_TEXT_CHARS", 50_000)
        with pytest.raises(MisbehaviourError, match="more than was asked for"):
            await stage.ask(peer, "How do tides work?", visibility="public", sampling=Sampling(max_tokens=50))

    on_stage(play)


def with_second_model(peer, state: str) -> None:
    """The peer has another model loaded, in this state."""
    engine = peer._world.engine
    plain = engine.info

    def info():
        first = plain()
        second = replace(first.text, name="second", digest=Digest(b"\x02" * 32))
        rows = (LoadedModel(first.text, first.state, 0, 0), LoadedModel(second, state, 0, 0))
        return replace(first, loaded=rows)

    engine.info = info


def test_a_model_that_one_peer_cannot_run_now_answers_at_another_that_loaded_it_too(on_stage) -> None:
    async def play(stage) -> None:
        peer, other, *_ = stage.peers
        told: list[str] = []
        peer.parts.context.events.tap(lambda event: told.append(event.kind))
        with_second_model(peer, "restarting")
        with_second_model(other, "ready")
        assert [model.name for model in other.models()][1] == "second"
        with trio.fail_after(120):  # until the other's new card has come with a heartbeat
            while len(peer.parts.directory.card_of(other._world.network.peer_id).models) != 3:
                await trio.sleep(1)
        answer = await stage.ask(peer, "How do bridges carry weight?", visibility="public", model="second")
        assert answer.started.model == "second"
        assert "generation_delegated" in told
        told.clear()
        await stage.ask(peer, "How do rivers flow?", visibility="public")
        assert "generation_delegated" not in told
        with pytest.raises(UnknownModelError, match="'second'"):
            await stage.ask(peer, "How do tides work?", model="third")

    on_stage(play)
