"""Models that come and go beside the one that stays, within the memory that there is."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from nsllm.governance.ports import Claim
from nsllm.ids import Digest
from nsllm.node.engine.pool import MAX_MODELS, Candidate, ModelPool
from nsllm.node.engine.port import EngineInfo, EngineRequest, ModelInfo, Piece
from nsllm.node.errors import (
    EngineError,
    InvalidRequestError,
    MemoryBudgetError,
    NotReadyError,
    OverloadedError,
    UnknownModelError,
)
from nsllm.offload import InlineOffload
from nsllm.record import Message, Request, Sampling

MB = 1 << 20


def model(name):
    return ModelInfo(
        name=name,
        digest=Digest(hashlib.sha256(name.encode()).digest()),
        dtype="float32",
        context_tokens=64,
        defaults=Sampling(),
    )


class Fake:
    """An engine that says its name, a word a second."""

    def __init__(self, name, *, words=3, fails=False, start_s=5.0, digest_of=None):
        self.model = model(name)
        if digest_of is not None:
            self.model = ModelInfo(name, model(digest_of).digest, "float32", 64, Sampling())
        self.words = words
        self.fails = fails
        self.start_s = start_s
        self.state = "starting"
        self.active = 0
        self.asked = []
        self.running = False
        self.died = trio.Event()

    def info(self):
        return EngineInfo(self.model, model("encoder"), self.state, 1, self.active, 0, None)

    async def run(self):
        self.running = True
        try:
            await trio.sleep(self.start_s)
            self.state = "ready"
            await trio.sleep_forever()
        finally:
            self.running = False
            self.died.set()

    async def wait_ready(self):
        await trio.sleep(self.start_s + 0.1)
        if self.fails:
            raise EngineError("the model worker does not start: boom")

    @asynccontextmanager
    async def generate(self, request):
        self.asked.append(request)
        self.active += 1
        try:
            yield self.pieces()
        finally:
            self.active -= 1

    async def pieces(self):
        for number in range(self.words):
            with trio.move_on_after(1):
                await self.died.wait()
                raise EngineError("the model worker died over this request")
            yield Piece((number,), self.model.name)

    async def embed(self, texts):
        return [(float(len(self.model.name)),) for _ in texts]

    async def embed_counted(self, texts, *, most_tokens=None):
        return await self.embed(texts), len(texts)

    async def likelihoods(self, items, *, most_tokens=512):
        return [self.model.name for _ in items]

    def judging(self, scorer):
        return self if scorer == self.model.digest else None

    def holds(self, model):
        return model in (self.model.digest, *self.model.kin)

    async def retrace(self, claim, *, beside=()):
        return self.model.name


class House:
    """A pool over fakes, and what was opened."""

    def __init__(self, *, budget_mb=0, free_mb=10_000, needs=None, grace_s=30.0):
        self.base = Fake("base")
        self.base.state = "ready"
        self.needs = needs or {}
        self.free_mb = free_mb
        self.fakes = {}
        self.opened = []
        self.pool = ModelPool(
            base=self.base,
            base_bytes=400 * MB,
            find=self.find,
            offload=InlineOffload(),
            budget_bytes=budget_mb * MB,
            free_bytes=lambda: self.free_mb * MB,
            grace_s=grace_s,
        )

    def find(self, name):
        if name.startswith("no-"):
            raise UnknownModelError(f"there is no model {name!r} in the store")
        return Candidate(self.needs.get(name, 300) * MB, lambda: self.open(name))

    def open(self, name):
        self.opened.append(name)
        return self.fakes.setdefault(name, Fake(name))

    def names(self):
        return [row.model.name for row in self.pool.info().texts()]


@pytest.fixture
async def house(nursery):
    made = House()
    await nursery.start(made.pool.run)
    return made


async def started(nursery, **options):
    made = House(**options)
    await nursery.start(made.pool.run)
    return made


def request(name=None):
    digest = None if name is None else model(name).digest
    return EngineRequest((Message(role="user", content="?"),), Sampling(), model=digest)


async def said(pool, name=None):
    async with pool.generate(request(name)) as pieces:
        return {piece.text async for piece in pieces}


async def test_each_request_goes_to_the_model_that_it_names(house, autojump_clock):
    pool = house.pool
    row = await pool.load("second")
    assert (row.model.name, row.state, row.memory_mb, row.removable) == ("second", "ready", 300, True)
    assert await said(pool) == await said(pool, "base") == {"base"}
    assert await said(pool, "second") == {"second"}
    assert house.fakes["second"].asked[0].model is None
    with pytest.raises(UnknownModelError, match="this peer serves 'base', 'second'"):
        await said(pool, "third")
    assert house.names() == ["base", "second"]
    assert pool.loaded()[0].removable is False
    info = pool.info()
    assert (info.text.name, info.restarts, info.state) == ("base", 2, "ready")
    assert info.named("second") == model("second")
    assert info.named("default") == model("base")
    assert info.named("third") is None
    assert info.serving(model("second").digest).model.name == "second"


async def test_a_loaded_model_judges_where_the_rubric_names_it(house, autojump_clock):
    pool, second = house.pool, Fake("second").model.digest
    assert pool.judging(house.base.model.digest) is pool
    assert pool.judging(second) is None
    await pool.load("second")
    models = pool.judging(second)
    assert await models.likelihoods([()]) == ["second"]
    assert await models.embed(["x"]) == await pool.embed(["x"])
    assert models.holds(house.base.model.digest)
    claim = SimpleNamespace(request=SimpleNamespace(model_digest=house.base.model.digest))
    assert await models.retrace(claim) == "base"
    assert models.judging(house.base.model.digest) is pool
    assert await pool.likelihoods([()]) == ["base"]
    await pool.unload("second")
    assert pool.judging(second) is None


async def test_another_model_answers_by_default_and_the_first_goes_on_judging(house, autojump_clock):
    pool = house.pool
    await pool.load("second", default=True)
    info = pool.info()
    assert (info.text.name, info.scorer.name, info.encoder.name) == ("second", "base", "encoder")
    assert house.names() == ["second", "base"]
    assert await said(pool) == {"second"}
    assert await said(pool, "base") == {"base"}
    assert await pool.likelihoods([()]) == ["base"]
    assert await pool.embed(["x"]) == [(4.0,)]
    assert (await pool.embed_counted(["x"]))[1] == 1
    house.base.state = "restarting"
    assert pool.info().state == "restarting"
    await pool.load("base", default=True)
    assert house.names() == ["base", "second"]
    assert pool.info().scorer is None


async def test_whichever_model_is_claimed_reads_its_answers_again(house, autojump_clock):
    pool = house.pool
    await pool.load("second")
    assert [pool.holds(model(name).digest) for name in ("base", "second", "third")] == [True, True, False]
    for name in ("base", "second"):
        request = Request(
            model="?",
            model_digest=model(name).digest,
            messages=(Message(role="user", content="q"),),
            sampling=Sampling(),
        )
        assert await pool.retrace(Claim(request, Sampling(), (), (), "", "stop")) == name
    await pool.unload("second")
    assert not pool.holds(model("second").digest)
    with pytest.raises(UnknownModelError, match="not loaded"):
        await pool.retrace(Claim(request, Sampling(), (), (), "", "stop"))


async def test_loading_twice_opens_one_worker_also_at_the_same_time(house, autojump_clock):
    async with trio.open_nursery() as both:
        both.start_soon(house.pool.load, "second")
        both.start_soon(house.pool.load, "second")
    assert house.opened == ["second"]
    assert house.names() == ["base", "second"]


async def test_a_generation_that_runs_ends_before_its_model_goes(house, nursery, autojump_clock):
    pool = house.pool
    await pool.load("second", default=True)
    answers = []

    async def ask():
        answers.append(await said(pool, "second"))

    nursery.start_soon(ask)
    await trio.sleep(0.5)
    before = trio.current_time()
    async with trio.open_nursery() as leaving:
        leaving.start_soon(pool.unload, "second")
        await trio.sleep(0.5)
        assert house.names() == ["base"]
        assert pool.info().text.name == "base"
        assert house.fakes["second"].running
        with pytest.raises(UnknownModelError):
            await said(pool, "second")
    assert answers == [{"second"}]
    assert not house.fakes["second"].running
    assert trio.current_time() - before < 10


async def test_after_the_grace_a_generation_ends_with_an_error_that_says_why(nursery, autojump_clock):
    house = await started(nursery, grace_s=10)
    house.fakes["slow"] = Fake("slow", words=1000)
    await house.pool.load("slow")
    failures = []

    async def ask():
        with pytest.raises(EngineError, match="'slow' was unloaded while it was answering") as failure:
            await said(house.pool, "slow")
        failures.append(failure.value)

    nursery.start_soon(ask)
    await trio.sleep(1)
    before = trio.current_time()
    await house.pool.unload("slow")
    assert trio.current_time() - before == pytest.approx(10)
    await trio.sleep(0)
    await trio.testing.wait_all_tasks_blocked()
    assert len(failures) == 1
    assert house.names() == ["base"]


async def test_a_worker_that_dies_by_itself_is_not_called_unloaded(house, autojump_clock):
    house.fakes["second"] = fake = Fake("second", words=100)
    await house.pool.load("second")
    with pytest.raises(EngineError, match="died over this request"):
        async with house.pool.generate(request("second")) as pieces:
            async for _ in pieces:
                fake.died.set()


async def test_what_does_not_fit_the_budget_is_refused_before_anything_is_opened(nursery, autojump_clock):
    house = await started(nursery, budget_mb=1000, needs={"big": 601, "small": 300, "other": 301})
    with pytest.raises(MemoryBudgetError, match="needs about 601 MB, 600 MB of the budget of 1000 MB are left"):
        await house.pool.load("big")
    await house.pool.load("small")
    with pytest.raises(MemoryBudgetError, match="needs about 301 MB, 300 MB"):
        await house.pool.load("other")
    assert house.opened == ["small"]
    assert house.pool.budget_mb == 1000
    await house.pool.unload("small")
    await house.pool.load("other")


async def test_without_a_budget_free_memory_counts(house, autojump_clock):
    house.free_mb = 299
    with pytest.raises(MemoryBudgetError, match="needs about 300 MB, 299 MB of memory are free"):
        await house.pool.load("second")
    house.free_mb = 300
    await house.pool.load("second")
    assert house.pool.budget_mb is None


async def test_a_model_that_does_not_start_leaves_nothing(house, autojump_clock):
    house.fakes["bad"] = Fake("bad", fails=True)
    with pytest.raises(EngineError, match="does not start"):
        await house.pool.load("bad", default=True)
    assert not house.fakes["bad"].running
    assert house.names() == ["base"]
    assert house.pool.info().text.name == "base"


async def test_a_caller_that_leaves_takes_the_half_loaded_model_along(house, autojump_clock):
    with trio.move_on_after(2):
        await house.pool.load("second")
    assert house.names() == ["base"]
    assert not house.fakes["second"].running
    del house.fakes["second"]
    await house.pool.load("second")
    assert house.names() == ["base", "second"]


@pytest.mark.parametrize(
    ("name", "error"), [("no-such", UnknownModelError), ("default", UnknownModelError), ("twin", InvalidRequestError)]
)
async def test_what_cannot_be_loaded(house, name, error, autojump_clock):
    house.fakes["twin"] = Fake("twin", digest_of="base")
    with pytest.raises(error):
        await house.pool.load(name)
    assert house.names() == ["base"]


async def test_the_model_that_judges_stays_and_others_must_be_there_to_go(house, autojump_clock):
    with pytest.raises(InvalidRequestError, match="it judges answers, and stays"):
        await house.pool.unload("base")
    with pytest.raises(UnknownModelError, match="'second' is not loaded"):
        await house.pool.unload("second")


async def test_there_are_at_most_as_many_as_a_card_names(house, autojump_clock):
    for number in range(MAX_MODELS - 1):
        await house.pool.load(f"model-{number}")
    with pytest.raises(OverloadedError, match="7 models are loaded"):
        await house.pool.load("one-more")


async def test_nothing_is_loaded_before_the_peer_runs(autojump_clock):
    with pytest.raises(NotReadyError):
        await House().pool.load("second")


async def test_the_end_of_the_peer_ends_the_workers_also_in_the_middle_of_an_unloading(autojump_clock):
    house = House()
    house.fakes["slow"] = Fake("slow", words=1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.pool.run)
        await house.pool.load("slow")

        async def ask():
            with pytest.raises(EngineError):
                await said(house.pool, "slow")

        nursery.start_soon(ask)
        await trio.sleep(1)
        nursery.start_soon(house.pool.unload, "slow")
        await trio.sleep(1)
        before = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - before < 1
    assert not house.fakes["slow"].running
