"""Another peer's HTTP side as an upstream: both ends are ours, real sockets between them."""

from __future__ import annotations

import random

import pytest
import trio

from nsllm.node.engine.port import Done, EngineRequest
from nsllm.node.engine.upstream import Upstream, UpstreamEngine
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError, OverloadedError
from nsllm.record import Message, Sampling
from nsllm.simulations.standin import StandInEngine

MODEL = "smollm2-135m-instruct"


def chat(text="Why is the sky blue?"):
    return (Message(role="system", content="Be brief."), Message(role="user", content=text))


@pytest.fixture
def over(nursery):
    """`await over(running)`: an engine over a running server."""

    async def start(running, **changed):
        upstream = Upstream(url=f"{running.url}/v1", model=MODEL, **changed)
        engine = UpstreamEngine(
            local=StandInEngine(), upstream=upstream, max_active=2, max_queue=2, max_tokens=50, rng=random.Random(1)
        )
        await nursery.start(engine.run)
        return engine

    return start


async def collect(engine, messages, sampling=None):
    async with engine.generate(EngineRequest(messages, sampling or Sampling())) as events:
        *pieces, done = [item async for item in events]
    assert isinstance(done, Done)
    return "".join(piece.text for piece in pieces), done


async def test_a_peer_answers_for_another_and_publishes_nothing(over, running):
    engine = await over(running)
    sampling = Sampling(
        temperature_micro=500_000, top_p_micro=900_000, top_k=0, repetition_penalty_micro=1_100_000, seed=7,
        max_tokens=20, stop=("END",),
    )  # fmt: skip
    text, done = await collect(engine, chat(), sampling)
    assert text == "The sky scatters blue light."
    assert done == Done("stop", (), sampling, (7, 5))
    (command,) = running.service.commands
    assert (command.messages, command.sampling, command.visibility) == (chat(), sampling, "private")
    assert engine.info().state == "ready"
    assert engine.info().text.context_tokens == 8192


async def test_its_key_is_sent_and_a_wrong_one_is_told(over, start):
    running = await start(api_key="sk-right-0123456789")
    assert (await collect(await over(running, key="sk-right-0123456789"), chat()))[1].counted == (7, 5)
    with pytest.raises(EngineError, match="HTTP 401"):
        await collect(await over(running, key="sk-wrong", connect_s=0.5), chat())


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (OverloadedError("32 wait"), OverloadedError),
        (ContextOverflowError("the prompt has 9000 tokens, the context is 8192"), ContextOverflowError),
        (InvalidRequestError("the template refuses"), InvalidRequestError),
    ],
)
async def test_its_refusals_are_ours(over, running, failure, kind):
    running.service.fail_entering = failure
    with pytest.raises(kind):
        await collect(await over(running), chat())
    assert len(running.service.commands) == 1


async def test_its_failure_in_mid_answer_is_told(over, running):
    running.service.pace_s = 0.05  # the failure overtakes what is still on its way there, never what has arrived
    running.service.fail_after = (2, EngineError("the worker died"))
    got = []
    with pytest.raises(EngineError, match=r"the upstream failed \(HTTP 500, engine_failed\)"):
        async with (await over(running)).generate(EngineRequest(chat(), Sampling())) as events:
            async for item in events:
                got.append(item)  # noqa: PERF401 - it breaks off
    assert [piece.text for piece in got] in (["The "], ["The ", "sky "])


async def test_leaving_stops_its_generation(over, running):
    running.service.pace_s = 0.01
    running.service.words = ("more ",) * 10_000
    async with (await over(running)).generate(EngineRequest(chat(), Sampling())) as events:
        await anext(aiter(events))
    with trio.fail_after(10):
        await running.service.cancelled.wait()


async def test_it_withholds_what_it_must(over, running):
    running.service.finish_reason = "content_filter"
    with pytest.raises(InvalidRequestError, match="withheld"):
        await collect(await over(running), chat())
