"""Contestants take turns, each at its best; medians count."""

from __future__ import annotations

import pytest

from benchmarks.measuring import TRIES, Task, compare

TASK = Task("decode, 2 streams", "decode", {"streams": 2, "steps": 4}, 4)


class Scripted:
    """A contestant whose times are known: one a settings, or a list that is used up."""

    def __init__(self, name: str, walls: dict[str, list[float]], journal: list[str]) -> None:
        self.name = name
        self._walls = walls
        self._journal = journal

    def ask(self, do: str, **details):
        if do == "settings":
            assert details == {"of": "decode", "thorough": True}
            return {"settings": list(self._walls)}
        assert (do, details["streams"], details["steps"]) == ("decode", 2, 4)
        self._journal.append(self.name)
        walls = self._walls[details["settings"]]
        wall = walls.pop(0) if len(walls) > 1 else walls[0]
        return {"wall_s": wall, "cpu_s": 2 * wall, "tokens": 8}


def test_the_quickest_settings_are_kept_and_medians_count():
    slow_start = Scripted("one", {"": [9.0, 0.4, 0.8, 0.4]}, [])
    several = Scripted("two", {"a": [1.0], "b": [9.0, 9.0, 0.2, 0.2]}, [])

    first, second = compare(TASK, [slow_start, several], 3, thorough=True)

    assert (first.who, first.wall_ms, first.cpu_ms) == ("one", pytest.approx(100), pytest.approx(200))
    assert (first.tokens_per_s, first.tokens_per_cpu_s, first.rounds) == (pytest.approx(20), pytest.approx(10), 3)
    assert first.least_wall_ms == pytest.approx(100)
    assert (second.settings, second.wall_ms) == ("b", pytest.approx(50))


def test_they_go_forwards_and_backwards():
    journal: list[str] = []
    contestants = [Scripted("one", {"": [1.0]}, journal), Scripted("two", {"a": [1.0], "b": [2.0]}, journal)]

    compare(TASK, contestants, 3, thorough=True)

    warm = ["one", *["two"] * (2 * TRIES)]
    assert journal == [*warm, "two", "one", "one", "two", "two", "one"]
