"""One model in two processes: the same tokens as in one, and all of them end when one does."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import trio

from nsllm.content import Text
from nsllm.node.engine.backend import Read
from nsllm.node.engine.devices import Devices
from nsllm.node.engine.general import GeneralCache
from nsllm.node.engine.link import WorkerSettings
from nsllm.node.engine.port import Done, EngineRequest
from nsllm.node.engine.protocol import frame
from nsllm.node.engine.ranks import leader
from nsllm.node.engine.ranks.follower import take
from nsllm.node.engine.ranks.passes import Part, Pass, pass_reader
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.node.errors import EngineError
from nsllm.record import Message, Sampling

TWO = Devices("tensor", ("cpu", "cpu"))
GREEDY = Sampling(temperature_micro=0, seed=1, max_tokens=40)
SEEDED = Sampling(seed=7, max_tokens=40)
LONG = Sampling(seed=7, max_tokens=150)


def user(text):
    return (Message(role="user", content=Text(text)),)


def engine_of(tiny, devices, **changes):
    settings = WorkerSettings(text=tiny.text, encoder=tiny.encoder, threads=1, **changes)
    return WorkerEngine(
        text=tiny.text,
        encoder=tiny.encoder,
        threads=1,
        max_queue=4,
        rng=random.Random(3),
        backend="general",
        devices=devices,
        settings=settings,
        pause_s=0.01,
    )


async def tokens(engine, text, sampling):
    async with engine.generate(EngineRequest(messages=user(text), sampling=sampling)) as stream:
        events = [event async for event in stream]
    assert isinstance(events[-1], Done)
    return [token for piece in events[:-1] for token in piece.token_ids]


async def _store(into, key, work):
    into[key] = await work


async def answers(engine):
    """Greedy, seeded, three at once, and what is judged and embedded."""
    found = {"greedy": await tokens(engine, "hello there", GREEDY), "seeded": await tokens(engine, "hello", SEEDED)}
    async with trio.open_nursery() as nursery:
        for i in range(3):
            sampling = Sampling(seed=i, max_tokens=30)
            nursery.start_soon(_store, found, i, tokens(engine, f"question {i}", sampling))
    likelihoods = await engine.likelihoods([(user("why"), "because of the rain, " * 6)])
    return found, likelihoods, await engine.embed(["a text"])


def followers(engine):
    """The other ranks of a worker that is ready."""
    found = psutil.Process(engine.worker_pid).children()
    assert all("nsllm.node.engine.ranks.follower" in process.cmdline() for process in found)
    return found


async def gone(processes):
    """Wait for their end; the test's time limit is the deadline."""
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        await trio.sleep(0.01)


@pytest.mark.process
async def test_two_processes_give_the_tokens_of_one(tiny):
    async with engine_of(tiny, Devices()).running() as engine:
        alone = await answers(engine)
    async with engine_of(tiny, TWO).running() as engine:
        together = await answers(engine)
        # A caller who leaves in mid-answer leaves the ranks in step.
        async with engine.generate(EngineRequest(messages=user("hi"), sampling=LONG)) as stream:
            await anext(stream)
        assert await tokens(engine, "hello there", GREEDY) == alone[0]["greedy"]
        others = followers(engine)
        assert len(others) == 1
        family = [psutil.Process(engine.worker_pid), *others]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert set(listening) == {"127.0.0.1"}
    await gone(others)
    assert together[0] == alone[0]
    assert together[1][0].tokens == alone[1][0].tokens
    assert together[1][0].mean_logprob == pytest.approx(alone[1][0].mean_logprob, abs=1e-5)
    assert together[2] == alone[2]


@pytest.mark.process
async def test_when_a_rank_dies_or_freezes_all_are_started_again(tiny):
    engine = engine_of(tiny, TWO, ping_interval_s=0.2, silence_limit_s=2.0)
    async with engine.running():
        expected = await tokens(engine, "hello", SEEDED)
        (first,) = followers(engine)
        leading = psutil.Process(engine.worker_pid)
        with pytest.raises(EngineError, match="died over this request"):
            async with engine.generate(EngineRequest(messages=user("hi"), sampling=LONG)) as stream:
                await anext(stream)
                first.kill()
                async for _ in stream:
                    pass
        await gone([leading, first])
        assert await tokens(engine, "hello", SEEDED) == expected
        assert engine.info().restarts == 1

        (second,) = followers(engine)
        second.suspend()
        with pytest.raises(EngineError, match="died over this request"):
            await tokens(engine, "hi", LONG)
        await gone([second])
        assert await tokens(engine, "hello", SEEDED) == expected
        assert engine.info().restarts == 2

        (third,) = followers(engine)
        os.kill(engine.worker_pid, signal.SIGKILL)
        await gone([third])


@pytest.mark.process
async def test_a_rank_that_is_lost_is_named(tiny, caplog):
    engine = engine_of(tiny, TWO)
    async with engine.running():
        await engine.wait_ready()
        (other,) = followers(engine)
        other.kill()
        while engine.info().restarts == 0:
            await trio.sleep(0.01)
    assert "rank 1 of 2 ended, exit status -9" in caplog.text


PARENT = """
import random, sys, trio
from pathlib import Path
from nsllm.node.engine.devices import Devices
from nsllm.node.engine.supervisor import WorkerEngine

async def main():
    text, encoder = Path(sys.argv[1]), Path(sys.argv[2])
    engine = WorkerEngine(
        text=text, encoder=encoder, threads=1, max_queue=1, rng=random.Random(1),
        devices=Devices("tensor", ("cpu", "cpu")),
    )
    async with engine.running():
        await engine.wait_ready()
        print("up", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.process
async def test_all_ranks_die_with_their_peer(tiny):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tiny.text, tiny.encoder], stdout=subprocess.PIPE, text=True
    )
    assert await trio.to_thread.run_sync(parent.stdout.readline) == "up\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2
    parent.kill()
    parent.communicate()
    await gone(family)


class Broken:
    """A model whose passes fail."""

    config, end_token_ids = None, frozenset()

    def forward(self, reads):
        raise RuntimeError("out of memory")


def test_a_pass_that_fails_on_the_leader_ends_it(monkeypatch, capsys):
    """Were it to go on, its next pass would take the other ranks' answers to this one."""
    monkeypatch.setattr(leader, "LAST_WORDS_S", 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        model = leader.LeadingModel(Broken(), [leader.Follower(1, None, ours)])
        with pytest.raises(SystemExit):
            model.forward([Read(GeneralCache(5, None), [1, 2], 1)])
        (told,) = pass_reader().feed(theirs.recv(1000))
    assert told == Pass((), (Part(5, (1, 2), 1),))
    assert "RuntimeError: out of memory" in capsys.readouterr().err


class Recorder:
    """A model that writes down what it is asked."""

    config, end_token_ids = None, frozenset()

    def __init__(self):
        self.opened = 0
        self.seen = []

    def open(self):
        self.opened += 1
        return self.opened

    def forward(self, reads):
        self.seen.append(reads)
        return []


def test_a_follower_makes_the_passes_that_it_is_told():
    model, sequences = Recorder(), {}
    data = b"".join(
        map(
            frame,
            (
                Pass((), (Part(5, (1, 2), 0), Part(9, (3,), 1))),
                Pass((5,), (Part(9, (4,), 1), Part(11, (6,), 1))),
                Pass((9, 11, 77), ()),
            ),
        )
    )
    for told in pass_reader().feed(data):
        take(told, model, sequences)
    assert model.seen == [[Read(1, (1, 2), 0), Read(2, (3,), 1)], [Read(2, (4,), 1), Read(3, (6,), 1)], []]
    assert sequences == {}


def test_the_leader_tells_each_pass_once_and_what_ended_since_the_last():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        model = leader.LeadingModel(Recorder(), [leader.Follower(1, None, ours)])
        first, second = (GeneralCache(number, None) for number in (5, 9))
        model.forward([Read(first, [1, 2], 0), Read(second, [3], 1)])
        model.close(first)
        model.forward([Read(second, [4], 1)])
        model.forward([Read(second, [6], 1)])
        told = pass_reader().feed(theirs.recv(10_000))
    assert told == [
        Pass((), (Part(5, (1, 2), 0), Part(9, (3,), 1))),
        Pass((5,), (Part(9, (4,), 1),)),
        Pass((), (Part(9, (6,), 1),)),
    ]
