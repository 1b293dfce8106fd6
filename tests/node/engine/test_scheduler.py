"""The worker's loop over a real (tiny) model: exact tokens, fair turns, clean ends."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.protocol import (
    Cancel,
    Embed,
    Embedded,
    Generate,
    Judge,
    Judged,
    Ping,
    Pong,
    Refused,
    Started,
    Step,
)
from nsllm.node.engine.scheduler import PASS_TOKENS, Scheduler
from nsllm.record import Message, Sampling

GREEDY = Sampling(
    temperature_micro=0, top_p_micro=1_000_000, top_k=0, repetition_penalty_micro=1_000_000, seed=1, max_tokens=30
)


def user(text):
    return (Message(role="user", content=text),)


def with_(**changes):
    return msgspec.structs.replace(GREEDY, **changes)


class Desk:
    """A scheduler and what it said."""

    def __init__(self, backend):
        self.said = []
        self.scheduler = Scheduler(backend, self.said.append)

    def turn(self):
        self.scheduler.step()
        self.scheduler.side()

    def finish(self):
        for _ in range(5000):
            if not self.scheduler.busy:
                return
            self.turn()
        pytest.fail("the scheduler does not come to an end")

    def ask(self, job, messages, sampling, cap=512, **asked):
        self.scheduler.handle(Generate(job, EngineRequest(messages, sampling, **asked), cap))

    def gains(self, job=1):
        return [gain for m in self.said if isinstance(m, Step) for gain in m.gains if gain.job == job]

    def tokens(self, job=1):
        return [i for gain in self.gains(job) for i in gain.token_ids]

    def text(self, job=1):
        return "".join(gain.text for gain in self.gains(job))

    def reason(self, job=1):
        return self.gains(job)[-1].reason

    def only(self, kind):
        (message,) = [m for m in self.said if isinstance(m, kind)]
        return message


@pytest.fixture
def desk(backend):
    return Desk(backend)


def generated(backend, prompt, sampling, job=1):
    desk = Desk(backend)
    desk.ask(job, prompt, sampling)
    desk.finish()
    return desk


@pytest.fixture
def reference(general):
    """transformers' own greedy decoding."""

    def greedy(text, count, **options):
        ids = torch.tensor([general.chat_tokens(user(text))])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count, "do_sample": False, **options}
        with torch.inference_mode():
            return general._model._model.generate(ids, **options)[0, ids.shape[1] :].tolist()

    return greedy


@pytest.mark.parametrize("text", ["hi", "Hello 世界", "long " * 30])
def test_greedy_tokens_are_those_of_transformers(backend, text, reference):
    assert generated(backend, user(text), GREEDY).tokens() == reference(text, 30)


def test_a_long_prompt_is_read_in_chunks(desk, backend, reference):
    text = "x" * 200
    chunks = math.ceil(len(backend.chat_tokens(user(text))) / PASS_TOKENS)
    assert chunks > 2
    desk.ask(1, user(text), with_(max_tokens=5))
    for _ in range(chunks - 1):
        desk.turn()
    assert desk.tokens() == []
    desk.turn()
    assert len(desk.tokens()) == 1
    desk.finish()
    assert desk.tokens() == reference(text, 5)


def test_generations_side_by_side_give_what_they_give_alone(desk, backend):
    hot = with_(temperature_micro=1_000_000)
    jobs = {
        1: (user("one"), hot),
        2: (user("two" * 40), with_(seed=2, temperature_micro=1_000_000)),
        3: (user("3"), GREEDY),
    }
    for job, (prompt, sampling) in jobs.items():
        desk.ask(job, prompt, sampling)
        desk.turn()
    desk.scheduler.handle(Judge(4, ((user("q"), "answer"),)))
    desk.finish()
    for job, (prompt, sampling) in jobs.items():
        assert desk.tokens(job) == generated(backend, prompt, sampling).tokens()
        assert len(desk.tokens(job)) == 30


def test_same_seed_same_tokens_another_seed_other_tokens(backend):
    hot = with_(temperature_micro=1_000_000)
    first = generated(backend, user("hi"), hot).tokens()
    assert generated(backend, user("hi"), hot).tokens() == first
    assert generated(backend, user("hi"), with_(temperature_micro=1_000_000, seed=2)).tokens() != first


def test_a_repetition_penalty_is_that_of_transformers(backend, reference):
    desk = generated(backend, user("hi"), with_(repetition_penalty_micro=1_500_000))
    assert desk.tokens() == reference("hi", 30, repetition_penalty=1.5) != reference("hi", 30)


def test_pieces_join_to_the_decoded_tokens(backend):
    desk = generated(backend, user("hi"), with_(temperature_micro=1_500_000, max_tokens=100))
    assert desk.text() == backend.text(desk.tokens())


def test_the_start_tells_prompt_and_length(desk, backend):
    desk.ask(1, user("hi"), with_(max_tokens=None), 12)
    desk.turn()
    started = desk.only(Started)
    assert list(started.prompt_token_ids) == backend.chat_tokens(user("hi"))
    assert started.max_tokens == 12
    desk.finish()
    assert desk.reason() == "length"
    assert len(desk.tokens()) == 12


def test_length_is_what_the_context_leaves(desk, backend):
    text = "x" * 220
    room = backend.context_tokens - len(backend.chat_tokens(user(text)))
    desk.ask(1, user(text), with_(max_tokens=1000))
    desk.turn()
    assert desk.only(Started).max_tokens == room
    desk.finish()
    assert len(desk.tokens()) == room


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(desk, backend):
    prompt = user("x" * 300)
    desk.ask(1, prompt, GREEDY)
    refused = desk.only(Refused)
    assert refused.kind == "overflow"
    assert str(len(backend.chat_tokens(prompt))) in refused.message
    assert str(backend.context_tokens) in refused.message
    assert not desk.scheduler.busy


def test_a_huge_prompt_is_refused_unread(desk, backend, monkeypatch):
    monkeypatch.setattr(backend, "chat_tokens", lambda _messages: pytest.fail("read"))
    desk.ask(1, user("x" * 100_000), GREEDY)
    assert "at least" in desk.only(Refused).message


def test_a_conversation_that_the_template_refuses(desk):
    desk.ask(1, user("REFUSE THIS"), GREEDY)
    refused = desk.only(Refused)
    assert refused.kind == "invalid"
    assert "template refuses that" in refused.message


def test_the_end_token_stops_and_is_told(desk, backend, monkeypatch, reference):
    ids = reference("hi", 8)
    monkeypatch.setattr(backend, "end_token_ids", frozenset([ids[5]]))
    desk.ask(1, user("hi"), GREEDY)
    desk.finish()
    assert desk.tokens() == ids[:6]
    assert desk.text() == backend.text(ids[:5])
    assert desk.reason() == "stop"


def test_a_stop_string_over_token_borders(desk, backend, reference):
    text = backend.text(reference("Hello 世界", 30))
    stop = text[10:13]
    desk.ask(1, user("Hello 世界"), with_(stop=(stop,)))
    desk.finish()
    assert desk.text() == text[: text.index(stop)]
    assert desk.reason() == "stop"
    assert len(desk.tokens()) < 30


def test_cancelling_frees_at_once(desk):
    desk.ask(1, user("hi"), GREEDY)
    desk.scheduler.handle(Embed(2, ("a",)))
    desk.scheduler.handle(Judge(3, ((user("q"), "a"),)))
    desk.turn()
    desk.turn()
    said = len(desk.said)
    for job in (1, 2, 3, 99):
        desk.scheduler.handle(Cancel(job))
    assert not desk.scheduler.busy
    desk.turn()
    assert len(desk.said) == said


def test_a_long_prompt_never_stalls_a_running_stream(desk):
    desk.ask(1, user("hi"), with_(max_tokens=100))
    desk.turn()
    before = len(desk.tokens())
    desk.ask(2, user("y" * 200), GREEDY)
    for turn in range(1, 4):
        desk.turn()
        assert len(desk.tokens()) == before + turn
    assert desk.tokens(2) == []  # its prompt is longer than three chunks


def test_short_prompts_are_read_together(desk):
    for job in (1, 2, 3):
        desk.ask(job, user("hello, you"), GREEDY)
    desk.turn()
    assert [len(desk.tokens(job)) for job in (1, 2, 3)] == [1, 1, 0]  # 64 tokens a turn hold two prompts
    desk.turn()
    assert [len(desk.tokens(job)) for job in (1, 2, 3)] == [2, 2, 1]


def test_who_finds_no_room_waits_in_turn_and_joins_as_soon_as_there_is_some(fast):
    desk = Desk(fast)
    free = fast.pool.free
    most = with_(max_tokens=200)
    jobs = range(1, 13)
    for job in jobs:
        desk.ask(job, user(f"{job}"), most)
    for _ in range(12):
        desk.turn()
    begun = [job for job in jobs if desk.tokens(job)]
    assert begun == list(jobs[: len(begun)])
    assert 0 < len(begun) < len(jobs)
    desk.scheduler.handle(Cancel(begun[0]))
    desk.turn()
    desk.turn()
    assert len(desk.tokens(len(begun) + 1)) > 0
    desk.scheduler.handle(Judge(99, ((user("q"), "answer"),)))  # side work has room of its own
    desk.turn()
    desk.turn()
    assert desk.only(Judged).job == 99
    desk.finish()
    assert [len(desk.tokens(job)) for job in jobs[1:]] == [200] * 11
    assert fast.pool.free == free


def test_whatever_is_cancelled_gives_its_room_back(fast):
    desk = Desk(fast)
    free = fast.pool.free
    desk.ask(1, user("x" * 100), GREEDY)
    desk.ask(2, user("hi"), GREEDY)
    desk.scheduler.handle(Judge(3, ((user("q" * 100), "answer" * 10),)))
    for _ in range(2):
        desk.turn()
    assert fast.pool.free < free
    for job in (1, 2, 3):
        desk.scheduler.handle(Cancel(job))
    assert fast.pool.free == free
    assert not desk.scheduler.busy


def test_a_shared_beginning_is_read_once(fast):
    """A system prompt of 160 tokens, then different questions: the second takes one turn to its first token."""
    system = Message(role="system", content="s" * 130)
    desk = Desk(fast)
    for job, turns in ((1, 3), (2, 1)):
        desk.ask(job, (system, *user(f"{job}?")), with_(max_tokens=3))
        for _ in range(turns - 1):
            desk.turn()
            assert desk.tokens(job) == []
        desk.turn()
        assert len(desk.tokens(job)) == 1
        desk.finish()


def test_embedding_and_judging_end_during_a_generation(desk):
    desk.ask(1, user("hi"), with_(max_tokens=100))
    desk.turn()
    desk.scheduler.handle(Embed(2, ("a",)))
    desk.scheduler.handle(Judge(3, ((user("q"), "answer"),)))
    for _ in range(6):
        desk.turn()
    assert desk.only(Embedded).job == 2
    assert desk.only(Judged).job == 3
    assert desk.scheduler.busy
    assert len(desk.tokens()) == 7  # and it lost no turn


def test_ping(desk):
    desk.scheduler.handle(Ping())
    assert desk.said == [Pong()]


def embedded(desk, texts):
    desk.said.clear()
    desk.scheduler.handle(Embed(9, tuple(texts)))
    desk.finish()
    reply = desk.only(Embedded)
    return torch.tensor([memoryview(row).cast("f").tolist() for row in reply.vectors]), reply.tokens


def test_embeddings_are_unit_vectors_in_the_order_of_the_texts(desk):
    texts = ["a longer text than the others " * 5, "b", "", "Grüße 🦊", "b"]
    vectors, tokens = embedded(desk, texts)
    assert vectors.shape == (5, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(vectors[1], vectors[4])
    alone = torch.cat([embedded(desk, [text])[0] for text in texts])
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=0)
    assert tokens == sum(embedded(desk, [text])[1] for text in texts)
    assert not torch.allclose(vectors[0], vectors[1])


def test_many_long_texts_come_in_several_pieces_of_work(desk):
    desk.scheduler.handle(Embed(1, ("word " * 100,) * 8))
    desk.turn()
    assert desk.said == []
    desk.finish()
    assert len(desk.only(Embedded).vectors) == 8


def judged(backend, *items):
    desk = Desk(backend)
    desk.scheduler.handle(Judge(1, items))
    desk.finish()
    return desk.only(Judged).rows


@pytest.mark.parametrize(("question", "answer"), [("q", "a"), ("q" * 90, "an answer"), ("q" * 60, "long " * 20)])
def test_likelihood_is_that_of_one_forward_pass(backend, general, question, answer):
    prompt, tokens = backend.chat_tokens(user(question)), backend.tokens(answer)
    with torch.inference_mode():
        logits = general._model._model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].mean()
    ((mean, count),) = judged(backend, (user(question), answer))
    assert mean == pytest.approx(float(expected), abs=1e-5)
    assert count == len(tokens)


def test_likelihoods_do_not_depend_on_company(backend):
    items = [(user("q"), "one"), (user("other"), "two" * 30), (user("q"), "")]
    together = judged(backend, *items)
    assert together == tuple(judged(backend, item)[0] for item in items)
    assert together[2] == (0.0, 0)


def test_a_conversation_longer_than_the_context_loses_its_beginning(backend):
    ((mean, count),) = judged(backend, (user("q" * 1000), "answer"))
    assert count == 6
    assert mean < 0
    ((_, count),) = judged(backend, (user("q"), "a" * 1000))
    assert count == backend.context_tokens - 1


def test_judging_says_if_the_template_refuses(desk):
    desk.scheduler.handle(Judge(1, ((user("REFUSE THIS"), "a"),)))
    desk.finish()
    assert desk.only(Refused).kind == "invalid"
