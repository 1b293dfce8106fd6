"""Our own engine first; another contributor while it is down; private questions stay; nobody streams for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from nsllm.node import executors as module
from nsllm.node.errors import EngineError
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
                yield replace(piece, token_ids=(), text="x" * 1_000) if what == "text" else replace(piece, text="")

    async def play(stage) -> None:
        peer = stage.peers[0]
        break_engine(peer)
        monkeypatch.setattr(StandInEngine, "_stream", endless)
        monkeypatch.setattr(module, "MAX_TEXT_CHARS", 50_000)
        with pytest.raises(MisbehaviourError, match="more than was asked for"):
            await stage.ask(peer, "How do tides work?", visibility="public", sampling=Sampling(max_tokens=50))

    on_stage(play)
