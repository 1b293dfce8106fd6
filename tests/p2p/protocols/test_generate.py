"""Generate: pieces stream, refusals have reasons, a caller that leaves stops the executor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from nsllm.consensus.registry import Member
from nsllm.errors import NsllmError
from nsllm.ids import ZERO_DIGEST
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, NetworkError, RefusedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.generate import (
    GENERATE,
    MAX_GENERATE_BYTES,
    GenerateDone,
    GenerateEvent,
    GeneratePiece,
    GenerateRequest,
    Pieces,
    generate,
    serve_generate,
)
from nsllm.record import Message, Request, Sampling

REQUEST = GenerateRequest(
    request=Request(
        model="m",
        model_digest=ZERO_DIGEST,
        messages=(Message(role="user", content="hi"),),
        sampling=Sampling(),
    ),
    visibility="public",
)
DONE = GenerateDone(finish_reason="stop", prompt_token_ids=(1,), sampling=Sampling(seed=1))


class Executor:
    """Makes a piece every tenth of a second."""

    def __init__(self, pieces: int = 3, fault: Exception | None = None, prefill_s: float = 0.0) -> None:
        self.prefill_s = prefill_s
        self.pieces = pieces
        self.fault = fault
        self.made = 0
        self.state = "idle"

    @asynccontextmanager
    async def execute(self, request: GenerateRequest, member: Member) -> AsyncIterator[Pieces]:
        async def events() -> Pieces:
            await trio.sleep(self.prefill_s)
            for number in range(self.pieces):
                await trio.sleep(0.1)
                self.made += 1
                yield GeneratePiece(token_ids=(number,), text=f"t{number}")
            if self.fault is not None:
                raise self.fault
            yield DONE

        self.state = "running"
        try:
            yield events()
            self.state = "done"
        except BaseException:
            self.state = "stopped"
            raise


def serve(town: Any, executor: Executor) -> None:
    bob = town.citizens[1]
    bob.network.handle(GENERATE, serve_generate(bob.directory, executor.execute))


async def test_pieces_come_as_they_are_made(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    executor = Executor()
    serve(town, executor)
    times = []
    async with town.running():
        async with generate(alice.network, bob.peer, REQUEST) as events:
            got = []
            async for event in events:
                got.append(event)
                times.append(trio.current_time())
        await trio.sleep(1)
    assert [event.text for event in got[:3]] == ["t0", "t1", "t2"]
    assert got[3] == DONE
    assert times[2] - times[0] > 0.15
    assert executor.state == "done"


@pytest.mark.parametrize("how", ["leave", "cancel", "crash"])
async def test_a_caller_that_goes_stops_the_executor(town: Any, autojump_clock: Any, how: str) -> None:
    alice, bob = town.citizens[:2]
    executor = Executor(pieces=1000)
    serve(town, executor)
    async with bob.network.run():
        async with alice.network.run():
            await alice.network.connect(bob.where)
            with trio.move_on_after(1 if how == "cancel" else 60):
                async with generate(alice.network, bob.peer, REQUEST) as events:
                    async for _ in events:
                        if how == "leave":
                            break
                        if how == "crash":
                            town.world.kill(alice.peer)
            if how != "crash":
                await trio.sleep(1)
        await trio.sleep(1)
        assert executor.state == "stopped"
        assert executor.made < 30


async def test_an_executor_stops_before_its_first_token(town: Any, autojump_clock: Any) -> None:
    """Nothing is being sent that could fail: only the stream's end tells that the caller left."""
    alice, bob = town.citizens[:2]
    executor = Executor(prefill_s=600)
    serve(town, executor)
    async with town.running():
        with trio.move_on_after(1):
            async with generate(alice.network, bob.peer, REQUEST) as events:
                async for _ in events:
                    pass
        assert executor.state == "running"
        await trio.sleep(1)
        assert executor.state == "stopped"


async def test_engine_errors_are_refusals(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town, Executor(pieces=1, fault=NsllmError("prompt too long", hint="shorten it")))
    async with town.running():
        with pytest.raises(RefusedError, match="prompt too long"):
            async with generate(alice.network, bob.peer, REQUEST) as events:
                async for _ in events:
                    pass


async def test_a_bug_in_the_executor_costs_the_stream(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    serve(town, Executor(pieces=1, fault=RuntimeError("bug")))
    async with town.running():
        with pytest.raises(NetworkError, match="ended"):
            async with generate(alice.network, bob.peer, REQUEST) as events:
                async for _ in events:
                    pass
        assert bob.peer in alice.network.connected()


async def test_members_only(town: Any, autojump_clock: Any) -> None:
    executor = Executor()
    serve(town, executor)
    bob, carol = town.citizens[1:]
    async with town.running():
        with pytest.raises(RefusedError, match="members only"):
            async with generate(carol.network, bob.peer, REQUEST) as events:
                async for _ in events:
                    pass
    assert executor.state == "idle"


async def test_a_silent_executor_is_not_waited_for(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    executor = Executor(pieces=1000)
    serve(town, executor)
    async with town.running():
        with pytest.raises(DeadlineError):
            async with generate(alice.network, bob.peer, REQUEST, piece_s=5.0) as events:
                async for _ in events:
                    town.world.cut(alice.peer, bob.peer)
        town.world.heal()
        await trio.sleep(2)
        assert executor.state == "stopped"


@pytest.mark.parametrize("script", [["piece", "end"], ["done", "piece", "end"], ["done"], ["piece"]])
async def test_answers_out_of_turn(town: Any, autojump_clock: Any, script: list[str]) -> None:
    alice, bob = town.citizens[:2]

    async def cheat(stream: Stream) -> None:
        framed = FramedStream(stream, MAX_GENERATE_BYTES)
        await framed.receive(GenerateRequest)
        for step in script:
            if step == "end":
                await framed.send_end()
            else:
                event = DONE if step == "done" else GeneratePiece(token_ids=(), text="x")
                await framed.send(GenerateEvent(event=event))

    bob.network.handle(GENERATE, cheat)
    async with town.running():
        with pytest.raises(NetworkError) as caught:
            async with generate(alice.network, bob.peer, REQUEST) as events:
                async for _ in events:
                    pass
        assert isinstance(caught.value, MisbehaviourError) == (script[-1] == "end")


def test_private_requests_have_no_spelling() -> None:
    from nsllm import canonical
    from nsllm.errors import EncodingError

    plain = canonical.unpack(canonical.encode(REQUEST), limit_bytes=10_000)
    assert isinstance(plain, dict)
    with pytest.raises(EncodingError, match="visibility"):
        canonical.from_plain({**plain, "visibility": "private"}, GenerateRequest)
