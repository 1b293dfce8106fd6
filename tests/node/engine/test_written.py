"""What a worker wrote itself is judged from memory: the same bits as of an answer that is read, and bounded."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
import torch
from claiming import claims, finish

from nsllm.node.engine import written
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.generation import Generation
from nsllm.node.engine.protocol import Refused, Retrace, Retraced
from nsllm.node.engine.scheduler import Scheduler
from nsllm.node.engine.written import Written
from nsllm.record import Guide, Message, Sampling

BESIDE = (Message(role="user", content="Say something."),)


class Desk:
    """A worker's scheduler."""

    def __init__(self, backend):
        self.said = []
        self.scheduler = Scheduler(backend, self.said.append)

    def claims(self, kinds, guide=None, **asked):
        """Of answers that are written all at once."""
        return claims(self.scheduler, self.said, kinds, guide=guide, **asked)

    def trace(self, claim, beside=BESIDE):
        self.said.clear()
        self.scheduler.handle(Retrace(1, claim, Sampling(), beside))
        finish(self.scheduler)
        (only,) = self.said
        assert isinstance(only, Retraced), only
        return only.trace


@pytest.fixture(scope="module", params=["float32", "int8"])
def native(request, tiny, kernels):
    return FastBackend(tiny.text, tiny.encoder, kernels, request.param, threads=1, cache_mb=1)


def reads(backend, monkeypatch):
    """Tokens that each pass reads from now on."""
    counts, read = [], backend.read
    monkeypatch.setattr(
        backend, "read", lambda given: counts.append(sum(len(one.token_ids) for one in given)) or read(given)
    )
    return counts


KINDS = [{}, {"temperature_micro": 0}, {"top_k": 7, "repetition_penalty_micro": 1_300_000}, {"stop": ("e",)}]
LONG = {"max_tokens": 90, "min_tokens": 90, "logit_bias": ((70, 5_000_000),)}


@pytest.mark.parametrize("beside", [(), BESIDE])
def test_own_answers_are_judged_from_memory_to_the_bit(native, monkeypatch, beside):
    desk = Desk(native)
    for one in desk.claims([*KINDS, LONG]):
        expected = Desk(native).trace(one, beside)
        assert expected.fault is None
        counts = reads(native, monkeypatch)
        assert desk.trace(one, beside) == expected
        # The head of the text after the other prompt is all that is read.
        assert sum(counts) == 0 if expected.beside is None else 0 < sum(counts) < 32 + len(one.token_ids)
        assert bool(beside) or not counts
        monkeypatch.undo()


def test_guided_answers_are_judged_from_memory_too(native, monkeypatch):
    desk = Desk(native)
    (one,) = desk.claims([{}], guide=Guide(kind="regex", text="[0-9]{4,8}"))
    expected = Desk(native).trace(one, ())
    counts = reads(native, monkeypatch)
    assert desk.trace(one, ()) == expected
    assert not counts


def test_what_differs_by_a_token_is_read(native, monkeypatch):
    desk = Desk(native)
    (one,) = desk.claims([{"logit_bias": ((70, 20_000_000),)}])
    shorter = msgspec.structs.replace(one.sampling, max_tokens=23)
    other = dataclasses.replace(
        one,
        token_ids=one.token_ids[:-1],
        text=native.spelling.decoder().push(70) * 23,
        sampling=shorter,
        request=msgspec.structs.replace(one.request, sampling=shorter),
    )
    expected = Desk(native).trace(other)
    assert expected.fault is None
    counts = reads(native, monkeypatch)
    assert desk.trace(other) == expected
    assert counts


def test_another_seed_shows_in_memory_as_it_does_in_reading(native):
    desk = Desk(native)
    (one,) = desk.claims([{"temperature_micro": 2_000_000}])
    sown = msgspec.structs.replace(one.sampling, seed=99)
    claim = dataclasses.replace(one, sampling=sown, request=msgspec.structs.replace(one.request, sampling=sown))
    found = desk.trace(claim)
    assert found == Desk(native).trace(claim)
    assert found.worst_strain > 0


def test_answers_whose_passes_failed_are_judged_as_they_are_read(native, monkeypatch):
    desk, read, passes = Desk(native), native.read, []

    def fail(given):
        passes.append(len(given))
        if len(given) > 1 and passes.count(len(given)) == 6:  # who took part reads all again, by itself
            raise MemoryError("no memory")
        return read(given)

    monkeypatch.setattr(native, "read", fail)
    made = desk.claims(KINDS)
    monkeypatch.undo()
    assert not [message for message in desk.said if isinstance(message, Refused)]
    for one in made:
        assert desk.trace(one) == Desk(native).trace(one)


def test_an_answer_whose_prompt_was_told_is_read(native, monkeypatch):
    desk = Desk(native)
    (one,) = desk.claims([{}], prompt_logprobs=2)
    expected = Desk(native).trace(one)
    counts = reads(native, monkeypatch)
    assert desk.trace(one) == expected
    assert counts


class Told:
    """A backend of which only states are asked."""

    def __init__(self):
        self.row = 0

    def states(self):
        return torch.full((1, 256), float(self.row))

    def logits_of(self, states):
        return states


def remembered(book, backend, answer):
    one = Generation(
        job=1, client="", prompt=[1, 2], max_tokens=99, end_token_ids=frozenset(), sampler=None, stream=None
    )
    for token in answer:
        backend.row = token
        book.note([one])
        one.tokens.append(token)
    book.keep(one)


def test_the_latest_answers_are_kept_as_far_as_their_bytes_allow(monkeypatch):
    monkeypatch.setattr(written, "MOST_BYTES", 10 * 1024)
    backend = Told()
    book = Written(backend)
    for first in range(4):
        remembered(book, backend, range(first * 10, first * 10 + 4))
    assert [book.find([1, 2], range(first * 10, first * 10 + 4)) is not None for first in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    assert book.find([1, 2], range(30, 34))[:, 0].tolist() == [30, 31, 32, 33]
    remembered(book, backend, range(30, 34))  # the same once more takes no more
    assert book.find([1, 2], range(20, 24))[:, 0].tolist() == [20, 21, 22, 23]
    assert book.find([1], range(30, 34)) is None


def test_a_long_answer_is_not_kept(monkeypatch):
    monkeypatch.setattr(written, "MOST_TOKENS", 3)
    backend = Told()
    book = Written(backend)
    remembered(book, backend, range(3))
    remembered(book, backend, range(4))
    assert book.find([1, 2], range(3))[:, 0].tolist() == [0, 1, 2]
    assert book.find([1, 2], range(4)) is None
