"""Jobs: every reply in its inbox, in order; an end for everybody if the worker dies."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nsllm.errors import EncodingError
from nsllm.node.engine.answer import AnswerStream
from nsllm.node.engine.jobs import Jobs
from nsllm.node.engine.port import Done, Piece, TokenLogprob
from nsllm.node.engine.protocol import Cancel, Embed, Embedded, Gain, Load, Refused, Started, Step
from nsllm.node.engine.stats import Recorder, Timing
from nsllm.node.errors import ContextOverflowError, EngineError, InvalidRequestError
from nsllm.record import Sampling

LOAD = Load(0.1, 1, 1, 0, 0, 0, 0, 0, 0)


class Link:
    """A worker that says nothing."""

    def __init__(self):
        self.posted = []

    def post(self, message):
        if "too long" in message.texts:
            raise EncodingError("message of 9 bytes")
        self.posted.append(message)


class QuietLink(Link):
    def post(self, message):
        self.posted.append(message)


def asked(job):
    return Embed(job, ("a",))


@pytest.fixture
def jobs():
    return Jobs()


async def test_a_waiting_task_gets_each_reply_at_once_and_in_order(jobs):
    link, got = QuietLink(), []
    with jobs.open(link, asked) as inbox:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read():
                while len(got) < 3:
                    got.append(await inbox.take())

            for text in "abc":
                await trio.testing.wait_all_tasks_blocked()
                jobs.step(Step((Gain(1, (1,), text),), LOAD))
            await trio.testing.wait_all_tasks_blocked()
    assert [gain.text for gain in got] == ["a", "b", "c"]
    assert link.posted == [Embed(1, ("a",)), Cancel(1)]


async def test_what_comes_before_anybody_waits_is_kept(jobs):
    with jobs.open(QuietLink(), asked) as inbox:
        jobs.give(Started(1, (1, 2), 5))
        jobs.step(Step((Gain(1, (1,), "x"), Gain(99, (1,), "a stranger's")), LOAD))
        assert isinstance(await inbox.take(), Started)
        assert await inbox.take() == Gain(1, (1,), "x")
        assert inbox.take_now() is None


async def test_a_finished_job_is_not_cancelled(jobs):
    link = QuietLink()
    with jobs.open(link, asked) as inbox:
        jobs.give(Embedded(1, (b"",), 3))
        assert await inbox.take() == Embedded(1, (b"",), 3)
        jobs.give(Embedded(1, (b"",), 3))  # once more is too often
        assert inbox.take_now() is None
    assert link.posted == [Embed(1, ("a",))]


async def test_a_waiting_task_can_be_cancelled_and_wait_again(jobs):
    with jobs.open(QuietLink(), asked) as inbox:
        with trio.move_on_after(0) as scope:
            await inbox.take()
        assert scope.cancelled_caught
        jobs.give(Started(1, (), 1))
        assert isinstance(await inbox.take(), Started)


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (Refused(1, "overflow", "too long", "messages"), ContextOverflowError),
        (Refused(1, "invalid", "no such", "response_format"), InvalidRequestError),
        (Refused(1, "failed", "KeyError in f"), EngineError),
        (None, EngineError),
    ],
)
async def test_an_end_comes_after_what_was_there(jobs, refused, error):
    recorder = Recorder()
    timing = Timing(recorder, 0.0)
    with jobs.open(QuietLink(), asked, timing) as inbox:
        jobs.step(Step((Gain(1, (1,), "x"),), LOAD))
        if refused is None:
            jobs.end()
        else:
            jobs.give(refused)
        assert isinstance(await inbox.take(), Gain)
        for _ in range(2):
            with pytest.raises(error) as caught:
                await inbox.take()
        if refused is not None and error is not EngineError:
            assert caught.value.param == refused.param
    assert timing.over() == "error"


def test_a_message_beyond_the_limit_is_the_callers_mistake(jobs):
    link = Link()
    with pytest.raises(InvalidRequestError, match="too long"), jobs.open(link, lambda job: Embed(job, ("too long",))):
        pass
    assert link.posted == []


async def test_a_late_reader_gets_several_steps_in_one_piece(jobs):
    told = [TokenLogprob(bytes([n]), -float(n)) for n in range(4)]
    with jobs.open(QuietLink(), asked) as inbox:
        stream = AnswerStream(inbox, (7, 8), Sampling(seed=3))
        for number in range(3):
            jobs.step(Step((Gain(1, (number,), f"t{number}", logprobs=(told[number],)),), LOAD))
        assert await anext(stream) == Piece((0, 1, 2), "t0t1t2", tuple(told[:3]), prompt_tokens=2)
        jobs.step(Step((Gain(1, (3,), "", "stop", (told[3],)),), LOAD))
        assert await anext(stream) == Piece((3,), "", (told[3],))
        assert await anext(stream) == Done("stop", (7, 8), Sampling(seed=3))
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
