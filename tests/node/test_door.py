"""The door: under any load who is let in waits about as long as is allowed; who has most inside gives way."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nsllm.node.chat import ChatDelta, ChatFinished, ChatStarted, Source
from nsllm.node.door import Door
from nsllm.node.errors import OverloadedError

STARTED = ChatStarted("chatcmpl-1", "m", 0, Source("engine", "0x"), "public")
FINISHED = ChatFinished("stop", 1, 1, "pending")


class Peer:
    """Answers that are read together, written side by side, and judged one after the other."""

    def __init__(self, nursery, door, *, read_s=0.1, write_s=1.0, judge_s=1.0):
        self.nursery = nursery
        self.door = door
        self.read_s, self.write_s, self.judge_s = read_s, write_s, judge_s
        self.judge = trio.Lock()
        self.finished = []
        self.refused = []
        self.broken = []
        """Who was refused after something had been sent."""

    def send_nowait(self, event):
        """Nobody listens."""

    async def send(self, event):
        """Nobody listens."""

    async def come(self, name):
        """A caller of the client that its first letter names."""
        self.nursery.start_soon(self._answer, name)
        await trio.testing.wait_all_tasks_blocked()

    async def _answer(self, name):
        came_s, visit = trio.current_time(), None
        try:
            with self.door.visit(name[0], self) as visit:
                await trio.sleep(self.read_s)
                visit.send_nowait(STARTED)
                await trio.sleep(self.write_s)
                visit.send_nowait(ChatDelta("text"))
                visit.write_ended()
                async with self.judge:
                    await trio.sleep(self.judge_s)
                visit.send_nowait(FINISHED)
            self.finished.append((name, came_s, trio.current_time() - came_s))
        except OverloadedError as error:
            (self.broken if visit is not None and visit.begun else self.refused).append((name, error.retry_after_s))


@pytest.fixture
async def open_door():
    async with trio.open_nursery() as nursery:
        yield lambda most_wait_s=10.0, most=1000, **times: Peer(nursery, Door(most_wait_s, most), **times)


@pytest.mark.parametrize("judge_s", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("stretch", ["judge_s", "read_s"])
async def test_an_overload_is_refused_at_the_door_and_who_is_let_in_is_served_in_time(
    open_door, autojump_clock, judge_s, stretch
):
    times = {"judge_s": judge_s} if stretch == "judge_s" else {"judge_s": 0.01, "read_s": 30.0, "write_s": 0.0}
    here = open_door(**times)
    for number in range(2000):  # twenty a second
        await here.come(f"a{number}")
        await trio.sleep(0.05)
    await trio.sleep(400)
    late = [stay_s for _, came_s, stay_s in here.finished if came_s > 20]  # by then it is known how long it takes
    assert len(here.finished) + len(here.refused) == 2000
    assert here.broken == []
    if stretch == "judge_s":
        # As many as can be judged, and nobody waits much longer than ten seconds (and is written meanwhile).
        assert len(here.finished) == pytest.approx(100 / judge_s, rel=0.25)
        assert max(late) < 10 + 3 * judge_s + 1.5
    else:
        assert len(here.finished) < 1000  # reading alone takes longer than is allowed: only an empty peer tries again
    assert here.door.inside == 0
    assert here.door.wait_s() == 0


async def test_a_burst_at_an_idle_peer_is_let_in(open_door, autojump_clock):
    here = open_door(judge_s=0.1)
    await here.come("a0")
    await trio.sleep(5)
    for number in range(64):
        await here.come(f"b{number}")
    await trio.sleep(60)
    assert (len(here.finished), here.refused) == (65, [])


async def test_who_is_refused_hears_when_to_come_again_and_then_is_let_in(open_door, autojump_clock):
    here = open_door()
    for number in range(30):
        await here.come(f"a{number}")
        await trio.sleep(0.5)
    (first, seconds), *_ = here.refused
    assert first != "a0"
    assert 10 <= seconds <= 60
    await trio.sleep(seconds)
    await here.come("a30")
    await trio.sleep(20)
    assert here.finished[-1][0] == "a30"


async def test_the_client_with_most_inside_gives_way(open_door, autojump_clock):
    here = open_door(read_s=1.0)
    for number in range(60):
        await here.come(f"a{number}")
        await trio.sleep(0.25)
    assert here.refused
    before = len(here.refused)
    await here.come("a60")  # one that waits: the newest of the longest line
    await here.come("b0")
    await trio.sleep(0)
    await trio.testing.wait_all_tasks_blocked()
    assert all(name.startswith("a") for name, _ in here.refused[before:])
    await trio.sleep(60)
    assert "b0" in [name for name, *_ in here.finished]
    assert here.broken == []


async def test_a_client_that_asks_seldom_is_served_beside_one_that_floods(open_door, autojump_clock):
    here = open_door(read_s=0.5)
    for number in range(1200):
        await here.come(f"a{number}")
        if number % 40 == 0:
            await here.come(f"b{number}")
        await trio.sleep(0.05)
    await trio.sleep(60)
    names = [name[0] for name, came_s, _ in here.finished if came_s > 20]
    assert names.count("b") >= names.count("a") / 2  # which asks forty times as often
    assert max(stay_s for _, came_s, stay_s in here.finished if came_s > 20) < 2 * 10 + 5
    assert here.broken == []


async def test_answers_from_the_cache_do_not_wait_for_the_judge(open_door, autojump_clock):
    here = open_door(judge_s=2.0, read_s=0.5)
    for number in range(3):
        await here.come(f"a{number}")
    await trio.sleep(30)
    served, refused = [], []

    async def hit():
        try:
            with here.door.visit("b", here) as visit:
                visit.send_nowait(STARTED)
                await trio.sleep(0.3)
                visit.send_nowait(FINISHED)
            served.append(trio.current_time())
        except OverloadedError:
            refused.append(trio.current_time())

    for _ in range(40):  # few at once, until that is known of them
        here.nursery.start_soon(hit)
        await trio.sleep(0.1)
    for _ in range(64):
        here.nursery.start_soon(hit)
    await trio.sleep(5)
    assert (len(served), refused) == (104, [])


async def test_where_all_have_begun_a_client_with_little_may_wait_twice_as_long(open_door, autojump_clock):
    here = open_door()
    await here.come("a0")
    await trio.sleep(5)  # a second each
    for number in range(1, 12):
        await here.come(f"a{number}")
    await trio.sleep(0.2)
    assert 10 < here.door.wait_s() < 20
    await here.come("a12")
    await here.come("b0")
    assert [name for name, _ in here.refused] == ["a12"]
    for number in range(1, 20):
        await here.come(f"b{number}")
        await trio.sleep(0.01)
    await trio.sleep(60)
    names = [name[0] for name, *_ in here.finished]
    assert names.count("b") == 5  # less than half of a's twelve


async def test_each_newcomer_sends_somebody_else_away(open_door, autojump_clock):
    here = open_door(most=4, read_s=1.0)
    for number in range(4):
        await here.come(f"a{number}")
    for name in ("b0", "c0"):
        here.nursery.start_soon(here._answer, name)
    await trio.sleep(60)
    assert sorted(name for name, _ in here.refused) == ["a2", "a3"]
    assert sorted(name for name, *_ in here.finished) == ["a0", "a1", "b0", "c0"]


async def test_no_more_are_inside_than_there_may_be(open_door, autojump_clock):
    here = open_door(most_wait_s=1e9, most=5)
    for number in range(9):
        await here.come(f"a{number}")
    assert here.door.inside == 5
    assert len(here.refused) == 4


async def test_what_has_begun_gives_way_to_nobody(open_door, autojump_clock):
    here = open_door(most=3)
    for number in range(3):
        await here.come(f"a{number}")
    await trio.sleep(0.5)
    await here.come("b0")
    assert [name for name, _ in here.refused] == ["b0"]


async def test_who_has_to_leave_sends_nothing_any_more(autojump_clock):
    door, heard = Door(10.0, 1), []

    class Listener:
        def send_nowait(self, event):
            heard.append(event)

        async def send(self, event):
            heard.append(event)

    with pytest.raises(OverloadedError), door.visit("a", Listener()) as visit:
        visit.scope.cancel()
        with pytest.raises(trio.WouldBlock):
            visit.send_nowait(STARTED)
        await visit.send(STARTED)
    assert heard == []
    assert door.inside == 0
