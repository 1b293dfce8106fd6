"""Lines stay open between questions, break without costing an answer, and are bounded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from nsllm.canonical import Value
from nsllm.p2p.errors import DeadlineError, MisbehaviourError, StreamClosedError
from nsllm.p2p.framing import FramedStream
from nsllm.p2p.network import Stream
from nsllm.p2p.protocols.lines import IDLE_S, KEPT, KEPT_EACH, LISTEN_S, Lines, questions

ECHO = "/test/echo/1"
LIMIT = 1024


class Word(Value, frozen=True, kw_only=True):
    word: str


def serve_echo(citizen: Any, served: Counter[str], *, last: int = 1_000_000, slow_s: float = 0.0) -> None:
    """Repeats words; each line only so many."""

    async def handler(stream: Stream) -> None:
        served["lines"] += 1
        answered = 0
        async for framed in questions(stream, LIMIT):
            word = await framed.receive(Word)
            await trio.sleep(slow_s)
            served["words"] += 1
            answered += 1
            await framed.send(word)
            if answered == last:
                return
        served["hung up"] += 1

    citizen.network.handle(ECHO, handler)


async def said(lines: Lines, peer: Any, word: str, deadline_s: float = 5.0) -> str:
    async def talk(framed: FramedStream) -> str:
        await framed.send(Word(word=word))
        return (await framed.receive(Word)).word

    return await lines.ask(peer, talk, deadline_s=deadline_s)


async def test_one_line_carries_one_question_after_another(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    served: Counter[str] = Counter()
    serve_echo(bob, served)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)
        assert [await said(lines, bob.peer, word) for word in ("one", "two", "three")] == ["one", "two", "three"]
    assert served["lines"] == 1


async def test_questions_at_the_same_time_take_a_line_each_and_only_some_are_kept(
    town: Any, autojump_clock: Any
) -> None:
    alice, bob = town.citizens[:2]
    served: Counter[str] = Counter()
    serve_echo(bob, served, slow_s=1.0)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)

        async def together(count: int) -> None:
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(said, lines, bob.peer, str(number))

        await together(5)
        assert served["lines"] == 5
        await trio.sleep(1.0)
        assert served["hung up"] == 5 - KEPT_EACH
        await together(KEPT_EACH)
        assert served["lines"] == 5


@pytest.mark.parametrize(("pause_s", "lines_opened"), [(IDLE_S - 1, 1), (IDLE_S + 1, 2), (LISTEN_S + 1, 2)])
async def test_a_line_that_was_idle_for_long_is_not_used_again(
    town: Any, autojump_clock: Any, pause_s: float, lines_opened: int
) -> None:
    alice, bob = town.citizens[:2]
    served: Counter[str] = Counter()
    serve_echo(bob, served)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)
        await said(lines, bob.peer, "one")
        await trio.sleep(pause_s)
        assert await said(lines, bob.peer, "two") == "two"
    assert served["lines"] == lines_opened


async def test_a_line_that_broke_meanwhile_costs_another_one_not_the_answer(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    served: Counter[str] = Counter()
    serve_echo(bob, served, last=1)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)
        await said(lines, bob.peer, "one")
        await trio.sleep(1.0)
        assert await said(lines, bob.peer, "two") == "two"
    assert served == {"lines": 2, "words": 2}


async def test_a_new_line_that_breaks_is_an_error(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]

    async def handler(stream: Stream) -> None:
        await stream.receive_some(1)

    bob.network.handle(ECHO, handler)
    async with town.running():
        with pytest.raises(StreamClosedError):
            await said(Lines(alice.network, ECHO, LIMIT), bob.peer, "one")


async def test_a_question_that_failed_costs_its_line(town: Any, autojump_clock: Any) -> None:
    alice, bob = town.citizens[:2]
    served: Counter[str] = Counter()
    serve_echo(bob, served, slow_s=2.0)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)
        with pytest.raises(DeadlineError, match="within 1"):
            await said(lines, bob.peer, "late", deadline_s=1.0)

        async def refuse(framed: FramedStream) -> None:
            await framed.send(Word(word="odd"))
            await framed.receive(Word)
            raise MisbehaviourError("odd")

        with pytest.raises(MisbehaviourError):
            await lines.ask(bob.peer, refuse, deadline_s=5.0)
        assert await said(lines, bob.peer, "fine") == "fine", "no answer to an earlier question"
    assert served["lines"] == 3


async def test_lines_to_many_peers_are_bounded(make_town: Any, autojump_clock: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("nsllm.p2p.protocols.lines.KEPT", 2)
    town = make_town(members=2, strangers=2)
    alice, *others = town.citizens
    served: Counter[str] = Counter()
    for other in others:
        serve_echo(other, served)
    async with town.running():
        lines = Lines(alice.network, ECHO, LIMIT)
        for other in others:
            await said(lines, other.peer, "one")
        await trio.sleep(1.0)
        assert served["hung up"] == 1
        await said(lines, others[-1].peer, "two")
        assert served["lines"] == 3
        await said(lines, others[0].peer, "two")
        assert served["lines"] == 4, "the line that was idle longest went first"
    assert KEPT >= 2
