"""Every token of a prompt is told once, with what transformers' forward pass says of it, however the prompt is read."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.node.engine.fast.select import NativeChooser
from nsllm.node.engine.port import EngineRequest, PromptToken
from nsllm.node.engine.prompt_teller import PromptTeller
from nsllm.node.engine.protocol import Generate, PromptTold, Refused, Started, Step
from nsllm.node.engine.sampler import PlainChooser
from nsllm.node.engine.scheduler import PASS_TOKENS, Scheduler
from nsllm.record import Message, Sampling

GREEDY = Sampling(temperature_micro=0, top_p_micro=1_000_000, top_k=0, seed=1, max_tokens=4)
LONG = "The quick brown fox 狐 jumps over the lazy dog. " * 4


def asked(text, top=3, form="text", **changes):
    sampling = msgspec.structs.replace(GREEDY, **changes)
    return EngineRequest((Message(role="user", content=text),), sampling, form=form, prompt_logprobs=top)


class Desk:
    """A scheduler and what it says."""

    def __init__(self, backend):
        self.said = []
        self.scheduler = Scheduler(backend, self.said.append)

    def ask(self, job, request):
        self.scheduler.handle(Generate(job, request, max_tokens_cap=20))

    def finish(self):
        while self.scheduler.busy:
            self.scheduler.step()

    def told(self, job=1):
        parts = [message.tokens for message in self.said if isinstance(message, PromptTold) and message.job == job]
        return [token for part in parts for token in part]

    def tokens(self, job=1):
        gains = [gain for message in self.said if isinstance(message, Step) for gain in message.gains]
        return [token for gain in gains if gain.job == job for token in gain.token_ids]

    def prompt(self, job=1):
        (found,) = [message for message in self.said if isinstance(message, Started) and message.job == job]
        return list(found.prompt_token_ids)


def run(backend, *requests):
    desk = Desk(backend)
    for job, request in enumerate(requests, 1):
        desk.ask(job, request)
    desk.finish()
    return desk


@pytest.fixture
def reference(general):
    """Log-probabilities (tokens, vocabulary) after each token, by transformers."""

    def logprobs(token_ids):
        with torch.inference_mode():
            logits = general._model._model(input_ids=torch.tensor([token_ids])).logits[0].float()
        return torch.log_softmax(logits, 1)

    return logprobs


def check(told, prompt, expected, top, spelling):
    """`told` is what `expected`, log-probabilities after each token of `prompt`, says of it."""
    assert [token.token_id for token in told] == prompt
    assert [token.token for token in told] == [spelling.token_bytes(token) for token in prompt]
    assert (told[0].logprob, told[0].rank, told[0].top) == (None, 0, ())
    decoder, chars = spelling.decoder(), 0
    for at, token in enumerate(told):
        assert token.start == chars
        chars += len(decoder.push(token.token_id))
        if at:
            row = expected[at - 1]
            assert token.logprob == pytest.approx(float(row[prompt[at]]), abs=2e-4)
            likely = torch.sort(row, descending=True, stable=True)
            assert [one for one, _, _ in token.top] == likely.indices[:top].tolist()
            assert [value for _, _, value in token.top] == pytest.approx(likely.values[:top].tolist(), abs=2e-4)
            assert token.rank == int((row > row[prompt[at]]).sum()) + 1


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("text", ["a", "Hello 世界", LONG])
@pytest.mark.parametrize("top", [0, 1, 20])
def test_a_prompt_is_told_as_transformers_reads_it(backend, reference, form, text, top):
    desk = run(backend, asked(text, top, form))
    prompt = desk.prompt()
    check(desk.told(), prompt, reference(prompt), top, backend.spelling)
    plain = dataclasses.replace(asked(text, form=form), prompt_logprobs=None)
    assert desk.tokens() == run(backend, plain).tokens()


def test_pieces_come_as_the_prompt_is_read_and_before_the_answer(backend):
    desk = run(backend, asked(LONG))
    parts = [message for message in desk.said if isinstance(message, PromptTold)]
    assert len(parts) == -(-len(desk.prompt()) // PASS_TOKENS) > 2
    first_gain = next(at for at, one in enumerate(desk.said) if isinstance(one, Step) and one.gains)
    assert max(desk.said.index(part) for part in parts) < first_gain


def test_a_known_beginning_is_told_all_the_same(backend, reference):
    desk = run(backend, dataclasses.replace(asked(LONG), prompt_logprobs=None))
    desk.ask(2, asked(LONG))
    desk.ask(3, dataclasses.replace(asked(LONG), prompt_logprobs=None))
    desk.finish()
    prompt = desk.prompt(2)
    check(desk.told(2), prompt, reference(prompt), 3, backend.spelling)
    assert desk.tokens(1) == desk.tokens(2) == desk.tokens(3)
    assert desk.told(3) == []


def test_side_by_side_as_alone(backend):
    requests = [asked(LONG, 2), asked("b", 0), dataclasses.replace(asked(LONG + "!"), prompt_logprobs=None),
                asked("other " * 20, 5, "chat"), asked(LONG, 1, temperature_micro=900_000, seed=4)]  # fmt: skip
    desk = run(backend, *requests)
    for job, request in enumerate(requests, 1):
        alone = run(backend, request)
        assert desk.tokens(job) == alone.tokens()
        close = zip(desk.told(job), alone.told(), strict=True)
        for one, other in close:
            assert (one.token_id, one.start, one.rank) == (other.token_id, other.start, other.rank)
            assert one.logprob is None or one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_what_is_cut_off_is_not_told(backend, reference):
    desk = run(backend, asked(LONG, truncate_prompt_tokens=9))
    prompt = desk.prompt()
    assert len(prompt) == 9
    check(desk.told(), prompt, reference(prompt), 3, backend.spelling)


def test_the_tokens_that_were_given_are_told(backend, reference):
    given_ids = (200, 5, 199, 3, 7, 140)
    desk = run(backend, dataclasses.replace(asked("x"), prompt_token_ids=given_ids))
    check(desk.told(), list(given_ids), reference(given_ids), 3, backend.spelling)


def test_after_a_pass_that_failed_nothing_is_told_twice(backend, monkeypatch):
    """All that took part read their sequences again, each alone."""
    both = [dataclasses.replace(asked(text), client=text[0]) for text in (LONG, "b " * 50)]
    expected = run(backend, *both)
    read, passes = backend.read, 0

    def failing(reads):
        nonlocal passes
        passes += 1
        if passes == 2:
            raise RuntimeError("a kernel failed")
        return read(reads)

    monkeypatch.setattr(backend, "read", failing)
    desk = run(backend, *both)
    assert passes > 5
    for job in (1, 2):
        assert desk.tokens(job) == expected.tokens(job)
        found, known = desk.told(job), expected.told(job)
        assert [(one.token_id, one.rank) for one in found] == [(one.token_id, one.rank) for one in known]


def test_telling_that_fails_ends_one_alone(backend, monkeypatch):
    take, beside = PromptTeller.take, dataclasses.replace(asked("beside it"), prompt_logprobs=None)
    before = backend.room()[0]

    def failing(self, start, rows):
        if self._top == 7:
            raise RuntimeError("out of words")
        return take(self, start, rows)

    monkeypatch.setattr(PromptTeller, "take", failing)
    desk = run(backend, asked(LONG), asked(LONG, 7), beside)
    (refused,) = [message for message in desk.said if isinstance(message, Refused)]
    assert (refused.job, refused.kind) == (2, "failed")
    assert desk.tokens(1) == run(backend, asked(LONG)).tokens()
    assert desk.tokens(3) == run(backend, beside).tokens()
    assert backend.room()[0] == before


def test_a_prompt_with_pictures_is_refused(backend):
    desk = Desk(backend)
    desk.ask(1, dataclasses.replace(asked("x", form="chat"), images=(b"PNG",)))
    (refused,) = desk.said
    assert (refused.kind, refused.param) == ("invalid", "prompt_logprobs")


class FakeSpelling:
    """Every token is a letter."""

    def token_bytes(self, token):
        return b"x"

    def decoder(self):
        return self

    def push(self, token):
        return "x"


@settings(deadline=None)
@given(data=st.data(), count=st.integers(1, 30))
def test_each_token_is_told_once_however_it_is_read(data, count):
    """In pieces of any size, with any number of new beginnings."""
    rng = np.random.default_rng(count)
    prompt = rng.integers(0, 8, count).tolist()
    logits = torch.from_numpy(rng.normal(size=(count, 8)).astype(np.float32))
    teller = PromptTeller(prompt, 2, PlainChooser(), FakeSpelling())
    found: list[PromptToken] = []
    read = 0
    while teller.left:
        piece = data.draw(st.integers(1, count - read))
        found += teller.take(read, logits[read : read + piece])
        read = read + piece if read + piece < count and data.draw(st.integers(0, 5)) else 0
    assert [token.token_id for token in found] == prompt
    assert [token.start for token in found] == list(range(count))
    expected = torch.log_softmax(logits, 1)
    for at, token in enumerate(found[1:], 1):
        assert token.logprob == pytest.approx(float(expected[at - 1][prompt[at]]), abs=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), top=st.integers(0, 20))
def test_both_choosers_agree_to_the_bit(kernels, seed, top):
    """Ties, minus infinities and numbers that are none included."""
    rng = np.random.default_rng(seed)
    size = 300
    rows = rng.integers(-4, 4, (5, size)).astype(np.float32) + rng.choice([0.0, 0.25], (5, size)).astype(np.float32)
    rows[rng.random((5, size)) < 0.05] = -np.inf
    rows[4, rng.random(size) < 0.1] = np.nan
    rows[3, :] = rng.normal(size=size)
    token_ids = rng.integers(0, size, 5).tolist()
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    one = PlainChooser().standings(tensor, token_ids, top)
    other = NativeChooser(kernels, size).standings(tensor, token_ids, top)
    assert repr(one) == repr(other)
    order = [sorted((-value, at) for at, value in enumerate(row) if value > -np.inf)[:top] for row in rows[:4].tolist()]
    assert [[token for token, _ in found.top] for found in one[:4]] == [[at for _, at in row] for row in order]
