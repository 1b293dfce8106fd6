"""Fairness: clients in turns, whatever each of them has waiting; budgets shared between them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.engine.turns import Turns, shared

CLIENTS = st.sampled_from("abc")


def turns_of(*clients):
    turns = Turns()
    for number, client in enumerate(clients):
        turns.add(client, (client, number))
    return turns


def order(turns):
    return [turns.take() for _ in range(len(turns))]


@pytest.mark.parametrize(
    ("came", "served"),
    [
        ("", ""),
        ("aaa", "aaa"),
        ("aaab", "abaa"),
        ("aaabbc", "abcaba"),
        ("abab", "abab"),
        ("bbbbba", "babbbb"),
    ],
)
def test_clients_are_served_in_turns(came, served):
    assert "".join(client for client, _ in order(turns_of(*came))) == served


def test_a_client_that_comes_back_goes_behind_the_others():
    turns = turns_of(*"ab")
    assert turns.take()[0] == "a"
    turns.add("a", "again")
    assert [turns.take() for _ in range(2)] == [("b", 1), "again"]
    with pytest.raises(IndexError):
        turns.take()


@given(st.lists(CLIENTS, max_size=12), st.data())
def test_whatever_is_taken_and_removed_each_line_keeps_its_order(came, data):
    turns = turns_of(*came)
    left = [(client, number) for number, client in enumerate(came)]
    assert sorted(turns) == sorted(left)
    while left:
        if data.draw(st.booleans()):
            gone = turns.first()
            assert turns.take() == gone
            assert gone == next(item for item in left if item[0] == gone[0])
        else:
            gone = data.draw(st.sampled_from(left))
            turns.remove(gone[0], gone)
        left.remove(gone)
        assert len(turns) == len(left)
        assert Counter(client for client, _ in left) == {c: turns.line(c) for c in "abc" if turns.line(c)}
    assert not list(turns)


def test_the_longest_line_and_its_end():
    turns = turns_of(*"abbcc")
    assert turns.longest() == "c"
    assert turns.last("b") == ("b", 2)
    with pytest.raises(ValueError, match="not in deque"):
        turns.remove("a", "stranger")


@pytest.mark.parametrize(
    ("budget", "wants", "given"),
    [
        (64, [], []),
        (64, [("a", 500)], [64]),
        (64, [("a", 500), ("b", 500)], [32, 32]),
        (64, [("a", 500), ("a", 500), ("b", 500)], [32, 0, 32]),
        (64, [("a", 10), ("a", 500), ("b", 500)], [10, 22, 32]),
        (64, [("a", 500), ("b", 8)], [56, 8]),
        (16, [("a", 500), ("b", 500)], [16, 0]),
        (48, [("a", 500), ("b", 500), ("c", 1), ("d", 500)], [16, 16, 1, 15]),
        (64, [("a", 3), ("b", 4)], [3, 4]),
    ],
)
def test_a_budget_is_shared_between_clients(budget, wants, given):
    assert shared(budget, wants, 16) == given


@given(st.integers(1, 200), st.lists(st.tuples(CLIENTS, st.integers(1, 300)), max_size=8), st.integers(1, 20))
def test_nothing_of_a_budget_is_wasted_or_given_twice(budget, wants, least):
    given = shared(budget, wants, least)
    assert sum(given) == min(budget, sum(want for _, want in wants))
    assert all(0 <= got <= want for got, (_, want) in zip(given, wants, strict=True))
    for client in "abc":  # first come, first served
        mine = [want - got for got, (who, want) in zip(given, wants, strict=True) if who == client]
        assert all(before == 0 or after > 0 for before, after in pairwise(mine))
