"""What models said is remembered for the same question only, and not for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nsllm.content import Text
from nsllm.governance.ports import Claim, Likelihood, Trace
from nsllm.ids import Digest
from nsllm.node.engine import remembered
from nsllm.node.engine.remembered import Remembered
from nsllm.record import Message, Request, Sampling

HERE, ELSEWHERE = Digest(b"h" * 32), Digest(b"e" * 32)
FREE = (Message(role="user", content="Say something."),)


class Models:
    """Counts what it is asked."""

    def __init__(self):
        self.embedded = []
        self.retraced = 0
        self.other = object()
        self.broken = False

    def judging(self, scorer):
        return {HERE: self, ELSEWHERE: self.other}.get(scorer)

    def holds(self, model):
        return model == HERE

    async def embed(self, texts):
        self.embedded += texts
        return [(float(len(text)),) for text in texts]

    async def likelihoods(self, items, *, most_tokens=512):
        return [Likelihood(-1.0, most_tokens, -1.0)] * len(items)

    async def retrace(self, claim, *, beside=()):
        if self.broken:
            raise ValueError("no")
        self.retraced += 1
        return Trace(self.retraced)


def claim(text):
    request = Request(
        model="m", model_digest=HERE, messages=(Message(role="user", content="q"),), sampling=Sampling(seed=1)
    )
    return Claim(request, Sampling(seed=1), (1, 2), (3,), text, "stop")


@pytest.fixture
def models():
    return Models()


async def test_texts_are_embedded_once_in_one_call_and_in_their_order(models):
    judges = Remembered(models)
    assert await judges.embed(["one", "three", "one"]) == [(3.0,), (5.0,), (3.0,)]
    assert await judges.embed(["three", Text("one"), "seven"]) == [(5.0,), (3.0,), (5.0,)]
    assert models.embedded == ["one", "three", "seven"]
    assert await judges.embed([]) == []


async def test_an_answer_is_read_once_for_the_same_claim(models):
    judges = Remembered(models)
    first = await judges.retrace(claim("a"), beside=FREE)
    assert await judges.retrace(replace(claim("a"), text=Text("a")), beside=FREE) == first
    for other in (claim("b"), replace(claim("a"), token_ids=(4,)), replace(claim("a"), sampling=Sampling(seed=2))):
        assert await judges.retrace(other, beside=FREE) != first
    assert await judges.retrace(claim("a")) != first  # without what is read beside it
    assert models.retraced == 5


async def test_the_oldest_is_forgotten(models, monkeypatch):
    monkeypatch.setattr(remembered, "TEXTS", 2)
    monkeypatch.setattr(remembered, "CLAIMS", 2)
    judges = Remembered(models)
    for text in ("a", "b", "a", "c", "b", "a"):
        await judges.embed([text])
        await judges.retrace(claim(text))
    assert models.embedded == ["a", "b", "c", "b", "a"]  # a was asked for again before c came
    assert models.retraced == 5


async def test_a_failure_is_not_remembered(models):
    judges = Remembered(models)
    models.broken = True
    with pytest.raises(ValueError, match="no"):
        await judges.retrace(claim("a"))
    models.broken = False
    assert await judges.retrace(claim("a")) == Trace(1)


async def test_other_models_judge_by_themselves(models):
    judges = Remembered(models)
    assert judges.judging(HERE) is judges
    assert judges.judging(ELSEWHERE) is models.other
    assert judges.judging(Digest(bytes(32))) is None
    assert (judges.holds(HERE), judges.holds(ELSEWHERE)) == (True, False)
    assert (await judges.likelihoods([(FREE, "a")], most_tokens=32))[0].tokens == 32
