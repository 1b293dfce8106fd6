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
from nsllm.node.engine.side_work import BEHIND, EASY_TOKENS, LEAST_RIDING, MOST_RIDING
from nsllm.record import Guide, Message, Sampling, Tool

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


def test_a_token_of_the_request_ends_the_answer_and_is_no_part_of_its_text(desk, backend, reference):
    tokens = reference("Hello 世界", 30)
    at = tokens.index(tokens[12])
    desk.ask(1, user("Hello 世界"), with_(stop_token_ids=(tokens[12],)))
    desk.ask(2, user("Hello 世界"), GREEDY)
    desk.finish()
    decoder = backend.spelling.decoder()
    assert desk.tokens() == tokens[: at + 1]
    assert desk.text() == "".join(map(decoder.push, tokens[:at])) + decoder.finish()
    assert desk.reason() == "stop"
    assert desk.tokens(2) == tokens


def test_a_token_of_the_request_ends_nothing_before_min_tokens(desk, reference):
    tokens = reference("Hello 世界", 30)
    desk.ask(1, user("Hello 世界"), with_(stop_token_ids=(tokens[0],), min_tokens=5))
    desk.finish()
    assert tokens[0] not in desk.tokens()[:5]
    assert len(desk.tokens()) > 5


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
    assert all(message.gains == () and message.load.rows == 0 for message in desk.said[said:])


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
    for _ in range(6):
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


def test_texts_of_many_jobs_are_read_together_each_job_in_its_turn(desk):
    texts = [f"question {number}" for number in range(20)]
    for number, text in enumerate(texts):
        desk.scheduler.handle(Embed(100 + number, (text,)))
    desk.scheduler.handle(Embed(1, ("word " * 100,) * 20))
    desk.scheduler.handle(Embed(2, ()))
    desk.scheduler.handle(Cancel(101))
    desk.turn()
    replies = {reply.job: reply for reply in desk.said if isinstance(reply, Embedded)}
    # few tokens each and 512 at once: the short ones are there after one piece of work, the long job is not
    assert set(replies) == {2, *range(100, 120)} - {101}
    assert replies[2].vectors == ()
    desk.finish()
    assert len(desk.said[-1].vectors) == 20
    together = memoryview(replies[107].vectors[0]).cast("f").tolist()
    torch.testing.assert_close(torch.tensor([together]), embedded(desk, [texts[7]])[0], atol=1e-5, rtol=0)


def test_an_encoder_that_fails_fails_the_texts_that_it_read_and_no_others(desk, backend, monkeypatch):
    def vectors(rows):
        raise RuntimeError(f"{len(rows)} texts are too many today")

    monkeypatch.setattr(backend.encoder, "vectors", vectors)
    desk.scheduler.handle(Embed(1, ("a",)))
    desk.scheduler.handle(Embed(2, ("b", "c")))
    desk.turn()
    assert {reply.job for reply in desk.said if isinstance(reply, Refused)} == {1, 2}
    assert not desk.scheduler.busy
    monkeypatch.undo()
    desk.said.clear()
    assert embedded(desk, ["a"])[0].shape == (1, 384)


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
    ((mean, count, _),) = judged(backend, (user(question), answer))
    assert mean == pytest.approx(float(expected), abs=1e-5)
    assert count == len(tokens)


def test_likelihoods_do_not_depend_on_company(backend):
    items = [(user("q"), "one"), (user("other"), "two" * 30), (user("q"), "")]
    together = judged(backend, *items)
    assert together == tuple(judged(backend, item)[0] for item in items)
    assert together[2] == (0.0, 0, 0.0)


def test_the_head_of_an_answer_is_judged_by_itself(backend):
    answer = "a long answer " * 8
    ((whole, count, head),) = judged(backend, (user("q"), answer))
    ((beginning, short, same),) = judged(backend, (user("q"), answer[:32]))
    assert (count, short) == (len(answer), 32)
    assert head == pytest.approx(beginning, abs=1e-5)
    assert same == beginning != whole
    desk = Desk(backend)
    desk.scheduler.handle(Judge(1, ((user("q"), answer),), most_tokens=32))
    desk.finish()
    assert desk.only(Judged).rows[0] == (pytest.approx(beginning, abs=1e-5), 32, pytest.approx(beginning, abs=1e-5))


def test_a_conversation_longer_than_the_context_loses_its_beginning(backend):
    ((mean, count, _),) = judged(backend, (user("q" * 1000), "answer"))
    assert count == 6
    assert mean < 0
    ((_, count, _),) = judged(backend, (user("q"), "a" * 1000))
    assert count == backend.context_tokens - 1


def test_judging_says_if_the_template_refuses(desk):
    desk.scheduler.handle(Judge(1, ((user("REFUSE THIS"), "a"),)))
    desk.finish()
    assert desk.only(Refused).kind == "invalid"


def test_the_prompts_of_clients_are_read_side_by_side(desk):
    for job, client in ((1, "a"), (2, "a"), (3, "b")):
        desk.ask(job, user(f"{job}" * 150), with_(max_tokens=2), client=client)
    firsts = []
    while len(firsts) < 3:
        desk.turn()
        firsts += [job for job in (1, 2, 3) if desk.tokens(job) and job not in firsts]
    assert firsts == [1, 3, 2]


def test_room_is_given_in_turns_between_clients(fast):
    desk = Desk(fast)
    for job in range(1, 13):
        desk.ask(job, user(f"{job}"), with_(max_tokens=200), client="a")
    desk.ask(13, user("13"), with_(max_tokens=200), client="b")
    desk.finish()
    started = [message.job for message in desk.said if isinstance(message, Started)]
    assert started.index(13) == 1
    assert [job for job in started if job != 13] == list(range(1, 13))


class Fuse:
    """A backend's `read` that fails while it is asked for too much."""

    def __init__(self, backend, monkeypatch, blows):
        self.sizes = []
        self.blows = blows
        self._read = backend.read
        monkeypatch.setattr(backend, "read", self)

    def __call__(self, reads):
        self.sizes.append(len(reads))
        if self.blows(reads):
            self._read(reads[:-1]) if len(reads) > 1 else None  # what the caches hold is uncertain
            raise MemoryError("no memory for 'the prompt'")
        return self._read(reads)


HOT = {1: ("one", 11), 2: ("two" * 30, 12), 3: ("three", 13)}


def hot(job):
    text, seed = HOT[job]
    return user(text), with_(temperature_micro=1_000_000, seed=seed, min_tokens=30)


def ask_hot(desk, jobs):
    for job in jobs:
        desk.ask(job, *hot(job))


def test_a_pass_that_fails_is_done_again_one_by_one(backend, monkeypatch):
    alone = {job: generated(backend, *hot(job)) for job in HOT}
    desk = Desk(backend)
    ask_hot(desk, HOT)
    for _ in range(8):
        desk.turn()
    fuse = Fuse(backend, monkeypatch, lambda reads: len(reads) > 1)
    desk.turn()
    assert fuse.sizes == [3]
    fuse.blows = lambda _reads: False
    while not all(len(desk.tokens(job)) > 12 for job in HOT):
        desk.turn()
    assert fuse.sizes[1] == 1  # by themselves
    assert fuse.sizes[-1] == 3  # and together again
    desk.finish()
    for job, there in alone.items():
        assert desk.tokens(job) == there.tokens()
        assert desk.text(job) == there.text()
    assert not [message for message in desk.said if isinstance(message, Refused)]


def test_the_one_that_fails_alone_ends_and_the_others_go_on(backend, monkeypatch):
    alone = {job: generated(backend, *hot(job)) for job in HOT}
    desk = Desk(backend)
    ask_hot(desk, HOT)
    for _ in range(8):
        desk.turn()
    poisoned = desk.scheduler._generations[2]
    Fuse(backend, monkeypatch, lambda reads: any(read.cache is poisoned.cache for read in reads))
    desk.finish()
    refused = desk.only(Refused)
    assert (refused.job, refused.kind) == (2, "failed")
    assert refused.message.startswith("MemoryError in __call__")
    assert "prompt" not in refused.message
    for job in (1, 3):
        assert desk.tokens(job) == alone[job].tokens()
    assert backend.room()[0] == 0


def test_a_backend_that_does_nothing_right_ends_the_worker(backend, monkeypatch):
    desk = Desk(backend)
    ask_hot(desk, HOT)
    Fuse(backend, monkeypatch, lambda _reads: True)
    with pytest.raises(MemoryError):
        desk.finish()
    assert len([message for message in desk.said if isinstance(message, Refused)]) == 2


ANSWER = "an answer of some length, which takes several pieces"


def test_judging_rides_along_with_a_generation_and_changes_nothing(fast, monkeypatch):
    alone, (expected,) = generated(fast, *hot(1)), judged(fast, (user("q"), ANSWER))
    fuse, desk = Fuse(fast, monkeypatch, lambda _reads: False), Desk(fast)
    ask_hot(desk, (1,))
    while not desk.tokens():
        desk.turn()
    desk.scheduler.handle(Judge(2, ((user("q"), ANSWER),)))
    fuse.sizes.clear()
    desk.finish()
    assert desk.tokens() == alone.tokens()
    assert desk.only(Judged).rows == (expected,)
    assert fuse.sizes.count(2) > 2  # pieces of the answer beside a token of the generation,
    assert len(fuse.sizes) == 29  # and no pass for the answer alone


@pytest.mark.parametrize(
    ("generations", "answers", "most"),
    [
        (1, 1, EASY_TOKENS),
        (3, 2, EASY_TOKENS),
        (6, 1, 6 + LEAST_RIDING),
        (1, BEHIND - 1, EASY_TOKENS),
        (1, BEHIND, 1 + MOST_RIDING),
    ],
)
def test_a_piece_that_rides_along_costs_little_unless_judging_falls_behind(
    fast, monkeypatch, generations, answers, most
):
    desk, read, longest = Desk(fast), fast.read, []
    monkeypatch.setattr(
        fast, "read", lambda reads: longest.append(sum(len(one.token_ids) for one in reads)) or read(reads)
    )
    jobs = range(1, generations + 1)
    for job in jobs:
        desk.ask(job, user(f"{job}?"), GREEDY)
    while not all(map(desk.tokens, jobs)):
        desk.turn()
    longest.clear()
    for number in range(answers):
        desk.scheduler.handle(Judge(10 + number, ((user("q" * 200), ANSWER * 3),)))
    while desk.reason(generations) is None:
        desk.turn()
    assert max(longest) == most


def test_a_pass_that_fails_with_a_rider_costs_neither_the_generation_nor_the_rider(fast, monkeypatch):
    alone, (expected,) = generated(fast, *hot(1)), judged(fast, (user("q"), ANSWER))
    desk = Desk(fast)
    ask_hot(desk, (1,))
    while len(desk.tokens()) < 3:
        desk.turn()
    desk.scheduler.handle(Judge(2, ((user("q"), ANSWER),)))
    desk.turn()
    fuse = Fuse(fast, monkeypatch, lambda reads: len(reads) > 1)
    desk.finish()
    assert desk.tokens() == alone.tokens()
    assert desk.only(Judged).rows == (expected,)
    assert not [message for message in desk.said if isinstance(message, Refused)]
    assert fuse.sizes.count(2) == 1  # nobody takes it along again
    assert fast.room()[0] == 0


def test_where_company_costs_bits_nothing_rides_along(general, monkeypatch):
    fuse, desk = Fuse(general, monkeypatch, lambda _reads: False), Desk(general)
    ask_hot(desk, (1,))
    desk.scheduler.handle(Judge(2, ((user("q"), ANSWER),)))
    desk.finish()
    assert set(fuse.sizes) == {1}
    assert desk.only(Judged)


def test_a_rider_that_is_cancelled_gives_its_room_back(fast):
    desk = Desk(fast)
    ask_hot(desk, (1,))
    desk.scheduler.handle(Judge(2, ((user("q"), ANSWER),)))
    for _ in range(3):
        desk.turn()
    desk.scheduler.handle(Cancel(2))
    desk.finish()
    assert not [message for message in desk.said if isinstance(message, Judged)]
    assert fast.room()[0] == 0


def test_a_text_that_cannot_be_made_ends_its_generation_alone(backend, monkeypatch):
    desk = Desk(backend)
    ask_hot(desk, HOT)
    for _ in range(8):
        desk.turn()
    monkeypatch.setattr(desk.scheduler._generations[1].stream, "push", lambda _token: {}["x"], raising=False)
    desk.finish()
    assert desk.only(Refused).job == 1
    assert [desk.reason(job) for job in (2, 3)] == ["length", "length"]


def test_a_prompt_that_fails_costs_nobody_else(backend, monkeypatch):
    desk = Desk(backend)
    ask_hot(desk, (1,))
    monkeypatch.setattr(backend, "chat_tokens", lambda *_args, **_named: {}["x"])
    desk.ask(2, user("hi"), GREEDY)
    desk.scheduler.handle(Judge(3, ((user("q"), "answer"),)))
    desk.finish()
    assert [(message.job, message.kind) for message in desk.said if isinstance(message, Refused)] == [
        (2, "failed"),
        (3, "failed"),
    ]
    assert desk.reason(1) == "length"


def test_twins_that_come_together_are_read_once(fast):
    desk = Desk(fast)
    for job in (1, 2, 3):
        desk.ask(job, user("y" * 180), with_(max_tokens=3))
    desk.finish()
    read = sum(message.load.prompt_tokens for message in desk.said if isinstance(message, Step))
    size = len(fast.chat_tokens(user("y" * 180)))
    assert read < size + 3 * 64
    assert desk.tokens(1) == desk.tokens(2) == desk.tokens(3)
    found = sum(message.load.found_tokens for message in desk.said if isinstance(message, Step))
    assert found >= 2 * 160


def test_a_conversation_goes_on_where_its_last_answer_ended(fast):
    """Keys and values of answers are known as well, not only those of prompts."""
    first = Desk(fast)
    first.ask(1, user("tell me " * 8), with_(max_tokens=90), form="text")
    first.finish()
    said = fast.tokens("tell me " * 8) + first.tokens()
    cache = fast.open([*said, 5], len(said) + 10, side=False)
    assert cache.read == (len(said) - 1) // 32 * 32 > 0  # the last token was never read
    fast.close(cache)


def test_a_step_says_how_full_the_worker_is(desk, backend):
    desk.ask(1, user("hi"), with_(max_tokens=3))
    desk.ask(2, user("x" * 90), with_(max_tokens=3))
    desk.finish()
    loads = [message.load for message in desk.said if isinstance(message, Step)]
    prompts = len(backend.chat_tokens(user("hi"))) + len(backend.chat_tokens(user("x" * 90)))
    assert sum(load.queried_tokens for load in loads) == prompts
    assert sum(load.prompt_tokens for load in loads) == prompts
    assert loads[0].rows == PASS_TOKENS
    assert loads[-1].running == 1
    assert loads[-1].rows == 1
    assert all(load.step_s > 0 and load.waiting == 0 for load in loads)
    if loads[0].blocks:
        assert 0 < loads[0].used_blocks < loads[0].blocks


def test_who_leaves_last_is_said_to_have_freed_its_room(desk):
    desk.ask(1, user("hi"), with_(max_tokens=30))
    desk.ask(2, user("ho"), with_(max_tokens=30))
    for _ in range(4):
        desk.scheduler.step()
    before = len(desk.said)
    for job in (1, 2):
        desk.scheduler.handle(Cancel(job))
        desk.scheduler.step()
    desk.scheduler.step()
    with_one, with_none = (message for message in desk.said[before:] if isinstance(message, Step))
    assert (with_one.load.running, with_one.load.rows) == (1, 1)
    assert with_none.gains == ()
    assert (with_none.load.running, with_none.load.rows, with_none.load.used_blocks) == (0, 0, 0)


def test_probabilities_come_with_the_tokens(desk, backend):
    desk.ask(1, user("hi"), with_(max_tokens=4), top_logprobs=2)
    desk.ask(2, user("hi"), with_(max_tokens=4), top_logprobs=0)
    desk.ask(3, user("hi"), with_(max_tokens=4))
    desk.finish()
    told = [one for gain in desk.gains(1) for one in gain.logprobs]
    assert b"".join(one.token for one in told) == b"".join(backend.spelling.token_bytes(t) for t in desk.tokens(1))
    assert all(one.top[0] == (one.token, one.logprob) and one.top[1][1] <= one.logprob < 0 for one in told)  # greedy
    assert all(gain.logprobs[0].top == () for gain in desk.gains(2))
    assert all(gain.logprobs == () for gain in desk.gains(3))


MIXED = {
    1: ({"temperature_micro": 1_000_000, "seed": 1}, {}),
    2: ({"temperature_micro": 900_000, "top_p_micro": 900_000, "seed": 2}, {"top_logprobs": 3}),
    3: ({"temperature_micro": 1_000_000, "seed": 3}, {"guide": Guide(kind="regex", text="[a-z]{5,40}")}),
    4: ({"frequency_penalty_micro": 900_000, "presence_penalty_micro": 500_000}, {}),
    5: ({"temperature_micro": 2_000_000, "min_p_micro": 100_000, "seed": 5, "min_tokens": 20}, {}),
    6: ({"logit_bias": ((70, 90_000_000),), "max_tokens": 5}, {"form": "text"}),
}


def test_a_mixed_batch_gives_each_what_it_gets_alone(backend):
    together = Desk(backend)
    for job, (sampling, asked) in MIXED.items():
        together.ask(job, user(f"question {job}"), with_(**sampling), **asked)
        together.turn()
    together.finish()
    for job, (sampling, asked) in MIXED.items():
        alone = Desk(backend)
        alone.ask(job, user(f"question {job}"), with_(**sampling), **asked)
        alone.finish()
        assert together.tokens(job) == alone.tokens(job)
        assert together.text(job) == alone.text(job)
        assert together.reason(job) == alone.reason(job)
    assert together.text(3).isalpha()
    assert together.tokens(6) == [70] * 5


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"guide": Guide(kind="regex", text="(((")}, "structured_outputs"),
        ({"guide": Guide(kind="json_schema", text='{"type":7}')}, "response_format"),
        ({"images": (b"\x89PNG",)}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(desk, asked, param):
    desk.ask(1, user("hi"), GREEDY, **asked)
    refused = desk.only(Refused)
    assert (refused.kind, refused.param) == ("invalid", param)
    assert not desk.scheduler.busy


def test_a_huge_tool_is_refused_unread(desk, backend, monkeypatch):
    monkeypatch.setattr(backend, "chat_tokens", lambda *_args, **_named: pytest.fail("read"))
    desk.ask(1, user("hi"), GREEDY, tools=(Tool(name="f", parameters="x" * 100_000),))
    assert desk.only(Refused).kind == "overflow"
