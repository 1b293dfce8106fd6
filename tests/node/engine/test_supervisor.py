"""The engine with a real worker process: answers, crashes, freezes, orphans, queues."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import msgspec
import psutil
import pytest
import trio
import trio.testing

from nsllm.content import Text
from nsllm.governance.ports import Claim
from nsllm.ids import Digest
from nsllm.node.engine.link import WorkerSettings
from nsllm.node.engine.models import ModelPaths
from nsllm.node.engine.port import Done, EngineRequest, Piece
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError, ModelMissingError, OverloadedError
from nsllm.record import Guide, Message, Request, Sampling

LONG = Sampling(max_tokens=200, seed=7)
ENDLESS = Sampling(max_tokens=100_000, min_tokens=100_000, seed=7)
"""Seconds of work, of which a test awaits a token: needs the `endless` models, whose context holds it."""


@pytest.fixture(scope="module")
def endless(tiny, tmp_path_factory):
    """The tiny models, with a context that no test reaches the end of."""
    text = tmp_path_factory.mktemp("endless") / tiny.text.name
    shutil.copytree(tiny.text, text)
    config = json.loads((text / "config.json").read_text())
    (text / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 17}))
    return ModelPaths(text=text, encoder=tiny.encoder)


def user(text):
    return (Message(role="user", content=Text(text)),)


def engine_of(tiny, **changes):
    options = {"threads": 1, "max_queue": 2, "rng": random.Random(3), "pause_s": 0.01, **changes}
    return WorkerEngine(text=tiny.text, encoder=tiny.encoder, **options)


def patient(tiny, **changes):
    return WorkerSettings(text=tiny.text, encoder=tiny.encoder, threads=1, **changes)


async def collect(engine, prompt, sampling):
    async with engine.generate(EngineRequest(prompt, sampling)) as stream:
        events = [event async for event in stream]
    *pieces, done = events
    assert isinstance(done, Done)
    assert all(piece.token_ids for piece in pieces)
    # How tokens are cut into pieces depends on who was how quick.
    return Piece(sum((p.token_ids for p in pieces), ()), "".join(p.text for p in pieces)), done


async def until(condition):
    """Wait for what another process does; the test's time limit is the deadline."""
    while not condition():
        await trio.sleep(0.01)


async def reread(engine, whole, done):
    """What an answer of this engine comes to when it is read again."""
    digest = engine.info().text.digest
    assert engine.holds(digest)
    assert not engine.holds(Digest(bytes(32)))
    request = Request(model="m", model_digest=digest, messages=user("hi"), sampling=Sampling())
    claim = Claim(request, done.sampling, done.prompt_token_ids, whole.token_ids, whole.text, done.finish_reason)
    warmer = msgspec.structs.replace(done.sampling, temperature_micro=1_100_000)  # nobody asked for it
    assert (await engine.retrace(replace(claim, sampling=warmer))).fault == "sampling"
    trace = await engine.retrace(claim)
    return trace.fault, trace.worst_strain


async def prompts_of_tokens(engine):
    """Tokens in, tokens told, and what is none."""
    letters = await engine.tokenize(EngineRequest(user("hi"), Sampling(), form="text"), special=False)
    given = (*letters, 3)
    assert await engine.detokenize(given, None) == "hi"
    asked = EngineRequest(user("hi"), Sampling(max_tokens=2), form="text", prompt_token_ids=given, prompt_logprobs=1)
    async with engine.generate(asked) as stream:
        *pieces, done = [event async for event in stream]
    told = [token for piece in pieces for token in piece.prompt]
    assert tuple(token.token_id for token in told) == given == done.prompt_token_ids
    assert [len(token.top) for token in told] == [0, 1, 1]
    assert not any(piece.prompt for piece in pieces if piece.token_ids)
    for param, wrong in (
        ("prompt_token_ids", engine.detokenize((99_999,), None)),
        ("input", engine.embed_counted([(5,), (99_999,)])),
    ):
        with pytest.raises(InvalidRequestError, match="99999") as refused:
            await wrong
        assert refused.value.param == param
    (by_text, by_tokens), tokens = await engine.embed_counted(["ab", tuple(range(4, 90))], most_tokens=3)
    assert (len(by_text), len(by_tokens), tokens) == (384, 384, 6)


async def test_answers_embeddings_and_likelihoods(tiny):
    seen = []
    engine = engine_of(tiny, max_tokens=20, observer=lambda state, restarts: seen.append((state, restarts)))
    assert engine.info().state == "starting"
    async with engine.running():
        whole, done = await collect(engine, user("hi"), Sampling())
        assert len(whole.token_ids) == 20
        assert done.finish_reason == "length"
        assert done.sampling == Sampling(
            temperature_micro=1_000_000,
            top_p_micro=1_000_000,
            top_k=0,
            min_p_micro=0,
            repetition_penalty_micro=1_000_000,
            presence_penalty_micro=0,
            frequency_penalty_micro=0,
            min_tokens=0,
            seed=random.Random(3).getrandbits(48),
            max_tokens=20,
        )
        again, _ = await collect(engine, user("hi"), done.sampling)
        assert again == whole
        assert bytes(done.prompt_token_ids)  # small ids: one a byte
        info = engine.info()
        assert (info.state, info.restarts, info.active, info.queued) == ("ready", 0, 0, 0)
        assert info.tokens_per_second > 0

        # Over many messages, in order, and none beside another's.
        texts = [f"text {i}" for i in range(40)]
        (vectors, tokens), rows = await engine.embed_counted(texts), []
        assert len(vectors) == 40
        assert tokens == sum(len(f"text{i}") + 2 for i in range(40))
        assert vectors[39] == pytest.approx((await engine.embed(["text 39"]))[0], abs=1e-5)
        rows = await engine.likelihoods([(user("q"), "a" * (i % 3)) for i in range(40)])
        assert [row.tokens for row in rows] == [i % 3 for i in range(40)]
        assert await engine.embed_counted([]) == ([], 0)
        assert await engine.likelihoods([]) == []
        assert await reread(engine, whole, done) == await reread(engine, whole, done) == (None, 0.0)
        assert (await reread(engine, Piece(whole.token_ids, whole.text + "!"), done))[0] == "text"

        await prompts_of_tokens(engine)
        with pytest.raises(ContextOverflowError, match="context is 256 tokens") as overflow:
            await collect(engine, user("x" * 300), Sampling())
        assert overflow.value.param == "messages"
        with pytest.raises(InvalidRequestError, match="template refuses that"):
            await collect(engine, user("REFUSE THIS"), Sampling())
        with pytest.raises(InvalidRequestError, match="template refuses that"):
            await engine.likelihoods([(user("REFUSE THIS"), "a")])
    assert seen == [("ready", 0)]
    assert "torch" not in _modules_of_a_peer()


def _modules_of_a_peer():
    code = "import sys, nsllm.node.engine.supervisor; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


async def test_leaving_early_frees_the_slot_and_a_full_queue_refuses(endless):
    engine = engine_of(endless, max_active=1, max_queue=1)
    async with engine.running(), trio.open_nursery() as nursery:
        async with engine.generate(EngineRequest(user("hi"), ENDLESS)) as stream:
            assert isinstance(await anext(stream), Piece)
            waiting = []
            nursery.start_soon(lambda: _store(waiting, collect(engine, user("second"), Sampling(max_tokens=3, seed=1))))
            await until(lambda: engine.info().queued == 1)
            assert engine.info().active == 1
            with pytest.raises(OverloadedError) as refused:
                await collect(engine, user("third"), ENDLESS)
            assert refused.value.retry_after_s
            # Embedding and judging go on while the only slot is taken.
            assert len(await engine.embed(["a"])) == 1
            assert (await engine.likelihoods([(user("q"), "abc")]))[0].tokens == 3
        await until(lambda: waiting)
        (whole, _) = waiting[0]
        assert len(whole.token_ids) == 3
        await until(lambda: engine.info().active == 0)

        with trio.move_on_after(0.05):  # a cancelled caller leaves nothing behind either
            await collect(engine, user("hi"), ENDLESS)
        assert engine.info().active == 0
        await collect(engine, user("hi"), Sampling(max_tokens=2))


async def _store(into, work):
    into.append(await work)


async def test_generations_at_once_give_what_they_give_alone(tiny):
    engine = engine_of(tiny)
    jobs = [(user(f"question {i}"), Sampling(seed=i, max_tokens=40)) for i in range(3)]
    async with engine.running():
        alone = [await collect(engine, *job) for job in jobs]
        together = [[] for _ in jobs]
        async with trio.open_nursery() as nursery:
            for into, job in zip(together, jobs, strict=True):
                nursery.start_soon(_store, into, collect(engine, *job))
    assert [into[0] for into in together] == alone


async def test_a_killed_worker_fails_its_generations_and_is_replaced(endless):
    states = []
    engine = engine_of(endless, max_active=1, observer=lambda state, _: states.append(state))
    async with engine.running():
        later = []
        async with trio.open_nursery() as nursery:
            with pytest.raises(EngineError, match="died over this request"):
                async with engine.generate(EngineRequest(user("hi"), ENDLESS)) as stream:
                    await anext(stream)
                    nursery.start_soon(lambda: _store(later, collect(engine, user("x"), Sampling(max_tokens=2))))
                    await until(lambda: engine.info().queued == 1)
                    nursery.start_soon(lambda: _store(later, engine.embed(["a"])))
                    os.kill(engine.worker_pid, signal.SIGKILL)
                    async for _ in stream:
                        pass
            # What waited gets the next worker; what can be asked again is asked again.
        assert len(later) == 2
        info = engine.info()
        assert (info.state, info.restarts, info.active) == ("ready", 1, 0)
    assert states == ["ready", "restarting", "ready"]


async def test_a_frozen_worker_is_killed_and_replaced(tiny):
    engine = engine_of(tiny, settings=patient(tiny, ping_interval_s=0.1, silence_limit_s=1.0))
    async with engine.running():
        await engine.wait_ready()
        frozen = psutil.Process(engine.worker_pid)
        frozen.suspend()
        with pytest.raises(EngineError):
            await collect(engine, user("hi"), LONG)
        assert engine.info().restarts == 1
        await engine.wait_ready()
        assert not frozen.is_running()
        # SIGINT belongs to the peer; SIGTERM ends a worker at once.
        worker = psutil.Process(engine.worker_pid)
        worker.send_signal(signal.SIGINT)
        await collect(engine, user("hi"), Sampling(max_tokens=2))
        assert engine.worker_pid == worker.pid
        worker.terminate()
        await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert not worker.is_running()


async def test_a_worker_that_cannot_load_is_reported_with_its_last_words(tiny, tmp_path):
    shutil.copytree(tiny.text, tmp_path / "broken")
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "model_type": "no-such-kind"}))
    engine = WorkerEngine(
        text=tmp_path / "broken", encoder=tiny.encoder, threads=1, max_queue=1, rng=random.Random(1), pause_s=0.01
    )
    async with engine.running():
        with pytest.raises(EngineError, match=r"does not start: .*exit status 1.*no-such-kind"):
            await engine.wait_ready()
        assert engine.info().state == "failed"
        with pytest.raises(EngineError):
            await engine.embed(["a"])
        with pytest.raises(EngineError):
            await collect(engine, user("hi"), LONG)
        assert engine.info().active == 0


def test_a_missing_model_folder_is_named(tiny, tmp_path):
    with pytest.raises(ModelMissingError, match=str(tmp_path / "none")):
        WorkerEngine(text=tmp_path / "none", encoder=tiny.encoder, threads=1, max_queue=1, rng=random.Random(1))


PARENT = """
import random, sys, trio
from pathlib import Path
from nsllm.node.engine.supervisor import WorkerEngine

async def main():
    text, encoder = Path(sys.argv[1]), Path(sys.argv[2])
    engine = WorkerEngine(text=text, encoder=encoder, threads=1, max_queue=1, rng=random.Random(1))
    async with engine.running():
        if sys.argv[3] == "ready":
            await engine.wait_ready()
        else:
            await trio.sleep(0.3)
        print("up", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("when", ["ready", "loading"])
async def test_workers_die_with_their_peer(tiny, when):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tiny.text, tiny.encoder, when], stdout=subprocess.PIPE, text=True
    )
    assert await trio.to_thread.run_sync(parent.stdout.readline) == "up\n"
    (worker,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


async def test_every_field_of_a_request_reaches_the_model(tiny):
    engine = engine_of(tiny)
    async with engine.running():
        request = EngineRequest(
            user("a b c"),
            Sampling(max_tokens=6, min_tokens=2, seed=1, logit_bias=((70, 90_000_000),)),
            form="text",
            top_logprobs=1,
            client="c",
        )
        async with engine.generate(request) as stream:
            events = [event async for event in stream]
        done = events.pop()
        assert [token for piece in events for token in piece.token_ids] == [70] * 6
        told = [one for piece in events for one in piece.logprobs]
        assert len(told) == 6
        assert all(len(one.top) == 1 for one in told)
        assert len(done.prompt_token_ids) == len("a b c")
        with pytest.raises(InvalidRequestError) as refused:
            async with engine.generate(EngineRequest(user("hi"), Sampling(), guide=Guide(kind="regex", text="(("))):
                pass
        assert refused.value.param == "structured_outputs"
        guided = EngineRequest(user("hi"), Sampling(max_tokens=9), guide=Guide(kind="choice", text='["yes","yes"]'))
        async with engine.generate(guided) as stream:
            assert "".join([event.text async for event in stream if isinstance(event, Piece)]) == "yes"


async def test_clients_are_served_in_turns_and_the_statistics_tell(endless):
    engine = engine_of(endless, max_active=1, max_queue=8)
    order = []

    async def ask(name):
        async with engine.generate(EngineRequest(user(name), Sampling(max_tokens=3, seed=1), client=name[0])) as stream:
            order.append(name)
            async for _ in stream:
                pass

    async with engine.running():
        await engine.wait_ready()
        async with (
            trio.open_nursery() as nursery,
            engine.generate(EngineRequest(user("gone"), ENDLESS, client="a")) as stream,
        ):
            await anext(stream)
            for queued, name in enumerate(("a1", "a2", "b1"), start=1):
                nursery.start_soon(ask, name)
                await until(lambda queued=queued: engine.info().queued == queued)
        assert order == ["a1", "b1", "a2"]
        stats = engine.info().stats
        assert stats.path == "fast"
        assert dict(stats.outcomes) == {"stop": 0, "length": 3, "abort": 1, "error": 0}
        assert sum(stats.histograms.first_token.counts) == 4
        assert sum(stats.histograms.queue.counts) == 4
        assert sum(stats.histograms.whole.counts) == 3
        assert stats.generation_tokens > 9
        assert stats.queried_tokens == stats.prompt_tokens > 0
        assert stats.blocks > 0


async def test_a_cancelled_answer_frees_its_room_within_a_step(endless):
    engine = engine_of(endless)
    async with engine.running():
        async with engine.generate(EngineRequest(user("hi"), ENDLESS)) as stream:
            await anext(stream)
            assert engine.info().stats.used_blocks > 0
        # The next step is the first that the worker tells of after it.
        await collect(engine, user("x"), Sampling(max_tokens=1))
        assert engine.info().stats.used_blocks <= 2
