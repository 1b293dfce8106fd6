"""The signer guard: later or identical, nothing else, across restarts."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.consensus.errors import GuardError
from nsllm.consensus.evidence import contradicts
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.vote import Choice, ProposalBody, VoteBody, check_signature
from nsllm.errors import OwnFault


@pytest.fixture
def make(kit, tmp_path):
    key = kit.keys(4)[0]
    return lambda network=kit.NETWORK, which=key: SignerGuard(which, network, tmp_path / "guard")


def vote(guard, kind, value, *, height=1, round_=0, lock=None, valid_round=None):
    lock = Choice(round=lock[0], value=lock[1]) if lock is not None else None
    return guard.vote(
        VoteBody(
            kind=kind,
            epoch=0,
            height=height,
            round=round_,
            value=value,
            validator=guard.address,
            lock=lock,
            valid_round=valid_round,
        )
    )


A, B, C = (bytes([i] * 32) for i in (1, 2, 3))


def test_it_signs_upward(kit, make):
    guard = make()
    assert guard.last is None
    for height, round_, kind, value, lock in [
        (1, 0, "prevote", A, None), (1, 0, "precommit", A, None), (1, 1, "prevote", None, (0, A)),
        (1, 3, "precommit", None, None), (2, 0, "prevote", B, None),
    ]:  # fmt: skip
        signed = vote(guard, kind, value, height=height, round_=round_, lock=lock)
        check_signature(signed, kit.NETWORK)
        assert signed.validator == guard.address
    assert guard.last.place() == (2, 0, 2)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("kind", "value", "height", "round_"),
    [
        ("prevote", B, 5, 2), ("prevote", None, 5, 2), ("precommit", None, 5, 2), ("precommit", B, 5, 2),
        ("precommit", A, 5, 1), ("precommit", A, 4, 9),
    ],
)  # fmt: skip
def test_it_refuses_what_is_earlier_or_different(make, kind, value, height, round_, restart):
    guard = make()
    vote(guard, "precommit", A, height=5, round_=2)
    guard = make() if restart else guard
    with pytest.raises(GuardError, match="refused to sign"):
        vote(guard, kind, value, height=height, round_=round_)
    assert vote(guard, "precommit", A, height=5, round_=2) == vote(make(), "precommit", A, height=5, round_=2)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("value", "lock", "valid_round", "signs"),
    [
        (None, (1, A), None, True),
        (A, (1, A), None, True),
        (B, (1, A), 1, True),
        (B, (2, B), None, True),
        (C, (2, B), 2, True),
        (None, None, None, False),
        (A, None, None, False),
        (B, None, 2, False),
        (None, (0, A), None, False),
        (None, (1, B), None, False),
        (B, (1, A), None, False),
        (B, (1, A), 0, False),
        (C, (2, B), 1, False),
    ],
)
def test_it_keeps_the_lock(make, value, lock, valid_round, signs, restart):
    """Precommitted A in round 1, nil in round 2; what it prevotes in round 3, under which lock, with which proof."""
    guard = make()
    vote(guard, "precommit", A, round_=1)
    vote(guard, "precommit", None, round_=2)
    guard = make() if restart else guard
    if signs:
        vote(guard, "prevote", value, round_=3, lock=lock, valid_round=valid_round)
        assert guard.last.lock == Choice(round=1, value=A)
    else:
        with pytest.raises(GuardError, match="breaks the lock"):
            vote(guard, "prevote", value, round_=3, lock=lock, valid_round=valid_round)
        assert guard.last.place() == (1, 2, 3)
    assert vote(guard, "prevote", B, height=2).lock is None, "a lock is one height's"


def test_proposals_too(kit, make):
    validators = kit.validators(kit.keys(4))
    one, two = (kit.block(validators, proposer=kit.keys(4)[0].address, salt=i) for i in range(2))
    guard = make()

    def propose(block, valid_round=None):
        value, me = block.header.id(), guard.address
        body = ProposalBody(epoch=0, height=1, round=0, value=value, valid_round=valid_round, proposer=me)
        return guard.proposal(body, block, ())

    first = propose(one)
    check_signature(first, kit.NETWORK)
    assert propose(one) == first
    for different in [(two, None), (one, 0)]:
        with pytest.raises(GuardError):
            propose(*different)
    vote(guard, "prevote", first.value)
    with pytest.raises(GuardError):
        propose(one)


def test_a_signature_is_on_disk_before_it_exists(make, tmp_path, monkeypatch):
    guard = make()
    vote(guard, "prevote", A)

    def failing(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OwnFault, match="Input/output error"):
        vote(guard, "precommit", A)
    monkeypatch.undo()
    with pytest.raises(OwnFault, match="restart"):
        vote(guard, "precommit", A)
    again = make()  # nobody saw the signature, but the record may be on disk: only the same may be signed now
    vote(again, "precommit", A)
    with pytest.raises(GuardError):
        vote(again, "precommit", None)


def test_another_key_or_network_is_refused(kit, make):
    vote(make(), "prevote", A)
    with pytest.raises(GuardError, match="belongs to validator"):
        make(which=kit.keys(4)[1])
    with pytest.raises(GuardError, match="belongs to validator"):
        make(network=bytes([9] * 32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-3],
        lambda b: b"",
        lambda b: b.replace(b"height", b"heighT"),
        lambda b: b"\xff",
        lambda b: bytes(len(b)),
    ],
)
def test_a_damaged_file_is_refused(make, tmp_path, damage):
    vote(make(), "prevote", A)
    path = tmp_path / "guard"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(GuardError, match="is damaged"):
        make()


def test_the_key_does_not_show(make):
    guard = make()
    assert "7, 7" not in repr(vars(guard))
    assert guard._key.secret().hex() not in repr(vars(guard))


slots = st.tuples(
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from(["prevote", "precommit"]),
    st.sampled_from([A, B, None]),
    st.none() | st.tuples(st.integers(0, 1), st.sampled_from([A, B])),
    st.none() | st.integers(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(wishes=st.lists(slots, max_size=25), restarts=st.sets(st.integers(0, 24)))
def test_no_slot_ever_gets_two_values_and_no_lock_is_forgotten(kit, tmp_path_factory, wishes, restarts):
    path = tmp_path_factory.mktemp("guard") / "guard"
    key = kit.keys(1)[0]
    guard = SignerGuard(key, kit.NETWORK, path)
    signed = {}
    votes = []
    for number, (height, round_, kind, value, some_lock, some_round) in enumerate(wishes):
        if number in restarts:
            guard = SignerGuard(key, kit.NETWORK, path)
        lock = some_lock if kind == "prevote" and some_lock is not None and some_lock[0] < round_ else None
        valid_round = some_round if kind == "prevote" and value and (some_round or 0) < round_ else None
        try:
            votes.append(vote(guard, kind, value, height=height, round_=round_, lock=lock, valid_round=valid_round))
        except GuardError:
            continue
        assert signed.setdefault((height, round_, kind), value) == value
        assert (height, round_, kind == "precommit") == max((h, r, k == "precommit") for h, r, k in signed)
    for one in votes:
        for other in votes:
            if (one.kind, other.kind, other.height) == ("precommit", "prevote", one.height) and one.round < other.round:
                assert one.value is None or not contradicts(one, other)
