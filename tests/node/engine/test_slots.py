"""Places: never more than there are, clients in turns, a queue that no client has for itself, a time to come again."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nsllm.node.engine.slots import Slots
from nsllm.node.errors import OverloadedError


class Hall:
    """Callers of some slots, and what became of them."""

    def __init__(self, nursery, places, queue, most_wait_s):
        self.nursery = nursery
        self.slots = Slots(places, queue, most_wait_s)
        self.admitted = []
        self.refused = []
        self.scopes = {}

    async def come(self, name, stay_s=1.0):
        """A caller of the client that its first letter names."""
        self.nursery.start_soon(self._stay, name, stay_s)
        await trio.testing.wait_all_tasks_blocked()

    async def _stay(self, name, stay_s):
        with trio.CancelScope() as self.scopes[name]:
            try:
                async with self.slots.place(name[0]):
                    self.admitted.append(name)
                    await trio.sleep(stay_s)
            except OverloadedError as error:
                self.refused.append((name, error.retry_after_s))


@pytest.fixture
async def hall():
    async with trio.open_nursery() as nursery:
        yield lambda places, queue, most_wait_s=None: Hall(nursery, places, queue, most_wait_s)


async def test_clients_are_admitted_in_turns(hall, autojump_clock):
    here = hall(1, 10)
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2"):
        await here.come(name)
    assert (here.slots.taken, here.slots.waiting) == (1, 6)
    await trio.sleep(10)
    assert here.admitted == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
    assert (here.slots.taken, here.slots.waiting) == (0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_again(hall, autojump_clock):
    here = hall(2, 3)
    for number in range(6):
        await here.come(f"a{number}", stay_s=7.9)
    assert here.refused == [("a5", 1)]  # nobody knows yet how long it takes
    await trio.sleep(9)
    await here.come("a6", stay_s=7.9)
    await here.come("a7", stay_s=7.9)
    await here.come("a8", stay_s=7.9)
    # 3 wait and this would be the 4th: four times 7.9 s over 2 places
    assert here.refused[1:] == [("a8", 16)]


async def test_who_would_wait_too_long_is_refused_though_the_queue_has_room(hall, autojump_clock):
    here = hall(1, 10, most_wait_s=20)
    for number in range(4):
        await here.come(f"a{number}", stay_s=7.9)
    assert here.refused == []  # nobody knows yet how long it takes
    await trio.sleep(9)
    await here.come("a4", stay_s=7.9)  # two wait: a third would for 24 s
    assert here.refused == [("a4", 24)]
    await trio.sleep(8)
    await here.come("a5", stay_s=7.9)
    await trio.sleep(60)
    assert here.admitted == ["a0", "a1", "a2", "a3", "a5"]


async def test_the_longest_line_gives_way_to_a_client_with_less(hall, autojump_clock):
    here = hall(1, 3)
    for name in ("a0", "a1", "a2", "a3", "b1"):
        await here.come(name)
    assert [name for name, _ in here.refused] == ["a3"]
    await here.come("b2")  # would have as many as a: that changes nothing
    assert [name for name, _ in here.refused] == ["a3", "b2"]
    await trio.sleep(10)
    assert here.admitted == ["a0", "a1", "b1", "a2"]


@pytest.mark.parametrize("queue", [0, 1])
async def test_without_a_queue_nobody_waits(hall, autojump_clock, queue):
    here = hall(1, queue)
    for name in ("a", "b", "c"):
        await here.come(name)
    assert len(here.refused) == 2 - queue


async def test_who_leaves_the_queue_takes_no_place(hall, autojump_clock):
    here = hall(1, 3)
    for name in ("a1", "b1", "c1"):
        await here.come(name)
    here.scopes["b1"].cancel()
    await trio.sleep(10)
    assert here.admitted == ["a1", "c1"]
    assert (here.slots.taken, here.slots.waiting) == (0, 0)


async def test_who_is_cancelled_in_the_moment_of_its_turn_passes_it_on(hall, autojump_clock):
    here = hall(1, 3)
    for name in ("a1", "b1", "c1"):
        await here.come(name)
    give_back = here.slots._give_back

    def give_back_and_cancel():
        give_back()
        here.scopes["b1"].cancel()

    here.slots._give_back = give_back_and_cancel
    here.scopes["a1"].cancel()
    await trio.sleep(10)
    assert here.admitted[-1] == "c1"
    assert (here.slots.taken, here.slots.waiting) == (0, 0)
