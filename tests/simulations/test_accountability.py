"""Who is guilty: what votes prove together."""

from __future__ import annotations

import pytest

from nsllm.consensus.vote import Choice, Vote
from nsllm.simulations.core.accountability import guilty

A, B = bytes([1] * 32), bytes([2] * 32)
QUORUM = 3


def vote(who, kind, round_, value, lock=None, height=1):
    return Vote(
        kind=kind,
        epoch=0,
        height=height,
        round=round_,
        value=value,
        validator=bytes([who] * 20),
        signature=bytes(65),
        lock=None if lock is None else Choice(round=lock[0], value=lock[1]),
    )


POLKA_B_1 = [vote(who, "prevote", 1, B) for who in (1, 2, 3)]


@pytest.mark.parametrize(
    ("votes", "found"),
    [
        ([], set()),
        ([vote(0, "prevote", 0, A), vote(0, "precommit", 0, None), vote(0, "prevote", 1, B)], set()),
        ([vote(0, "prevote", 0, A), vote(0, "prevote", 0, None)], {0}),
        ([vote(0, "prevote", 0, A), vote(0, "prevote", 0, B, height=2)], set()),
        ([vote(0, "prevote", 2, A), vote(0, "prevote", 2, A, lock=(1, A))], {0}),
        ([vote(0, "precommit", 0, A), vote(0, "precommit", 0, B)], {0}),
        ([vote(0, "precommit", 0, A), vote(1, "precommit", 0, B)], set()),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 1, A, lock=(0, A))], set()),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 1, None)], {0}),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 1, B)], {0}),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 2, B, lock=(1, B))], {0}),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 2, B, lock=(1, B)), *POLKA_B_1], set()),
        ([vote(0, "precommit", 0, A), vote(0, "prevote", 2, B, lock=(1, B)), *POLKA_B_1[:2]], {0}),
        ([vote(0, "precommit", 2, A), vote(0, "prevote", 3, B, lock=(2, A)), *POLKA_B_1], {0}),
    ],
)
def test_who_is_guilty(votes, found):
    for order in (votes, votes[::-1], votes * 2):
        assert {address[0] for address in guilty(order, QUORUM)} == found
