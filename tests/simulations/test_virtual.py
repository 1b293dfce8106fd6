"""Virtual time: deterministic scheduling, and the private names of trio that it leans on."""

from __future__ import annotations

import time

import trio
from trio._core import _run as scheduler

from nsllm.simulations.virtual import run_virtual, seeded


async def race() -> list[int]:
    order: list[int] = []

    async def runner(number: int) -> None:
        await trio.sleep(1)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(runner, number)
    return order


def test_the_seed_chooses_the_order_of_tasks() -> None:
    assert run_virtual(1, race) == run_virtual(1, race)
    assert run_virtual(1, race) != run_virtual(2, race)


def test_virtual_time_costs_nothing() -> None:
    async def sleep() -> float:
        await trio.sleep(86_400)
        return trio.current_time()

    before = time.monotonic()
    assert run_virtual(1, sleep) == 86_400
    assert time.monotonic() - before < 60


def test_trio_still_has_what_this_needs_and_is_left_as_it_was() -> None:
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    run_virtual(1, race)
    assert scheduler._ALLOW_DETERMINISTIC_SCHEDULING is allowed
    assert scheduler._r.getstate() == state


def test_named_random_sources_are_independent() -> None:
    assert seeded(1, "a").random() != seeded(1, "b").random()
    assert seeded(1, "a", 2).random() == seeded(1, "a", 2).random()
