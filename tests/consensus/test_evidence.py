# ruff: noqa: E501 - tables
"""Evidence: what two messages prove, that it is the same bytes for everybody, and that no honest validator is hit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.consensus.errors import EvidenceError, VoteError
from nsllm.consensus.evidence import (
    MAX_VOTE_EVIDENCE_BYTES,
    Amnesia,
    DoubleProposal,
    DoubleVote,
    amnesia,
    check_evidence,
    contradicts,
    double_proposal,
    double_vote,
    offence_of,
)
from nsllm.consensus.screen import check_vote, check_votes
from nsllm.consensus.vote import Vote
from nsllm.crypto import CURVE_ORDER
from nsllm.errors import EncodingError, SignatureError

A, B, C = (bytes([i] * 32) for i in (1, 2, 3))


@pytest.fixture
def stand(kit):
    keys = kit.keys(4)
    return kit, keys, kit.validators(keys)


def test_two_votes_of_a_slot(stand):
    kit, keys, validators = stand
    one, other = (
        kit.vote(keys[1], "prevote", A, height=7, round_=2),
        kit.vote(keys[1], "prevote", None, height=7, round_=2),
    )
    evidence = double_vote(one, other)
    assert evidence == double_vote(other, one), "the same whoever found it"
    check_evidence(evidence, kit.NETWORK, validators)
    offence = offence_of(evidence)
    assert (offence.validator, offence.height, offence.round, offence.kind) == (keys[1].address, 7, 2, "double_vote")
    with pytest.raises(EvidenceError, match="canonical order"):
        check_evidence(DoubleVote(first=evidence.second, second=evidence.first), kit.NETWORK, validators)
    states = kit.vote(keys[1], "prevote", A, height=7, round_=2, lock=(0, A))
    check_evidence(double_vote(one, states), kit.NETWORK, validators)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "precommit"}, "not of one validator"), ({"height": 8}, "not of one validator"), ({"round_": 3}, "not of one validator"),
        ({"who": 2}, "not of one validator"), ({"value": A}, "say the same"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_proves_nothing(stand, change, reason):
    kit, keys, validators = stand
    said = {"kind": "prevote", "value": B, "height": 7, "round_": 2} | change
    other = kit.vote(keys[said.pop("who", 1)], said.pop("kind"), said.pop("value"), **said)
    evidence = double_vote(kit.vote(keys[1], "prevote", A, height=7, round_=2), other)
    with pytest.raises(EvidenceError, match=reason):
        check_evidence(evidence, kit.NETWORK, validators)


def test_the_same_vote_signed_twice_is_no_offence(stand):
    """ECDSA has many signatures for one message; only what is said counts."""
    kit, keys, validators = stand
    vote = kit.vote(keys[1], "prevote", A)
    again = msgspec.structs.replace(vote, signature=bytes(65))
    with pytest.raises(EvidenceError, match="say the same"):
        check_evidence(double_vote(vote, again), kit.NETWORK, validators)


def test_two_proposals_of_a_round(stand):
    kit, keys, validators = stand
    blocks = [kit.block(validators, proposer=keys[1].address, salt=i, entries=[bytes(60_000)]) for i in range(2)]
    one, other = (kit.proposal(keys[1], block, round_=2) for block in blocks)
    evidence = double_proposal(one, other)
    assert evidence == double_proposal(other, one)
    assert isinstance(evidence, DoubleProposal)
    check_evidence(evidence, kit.NETWORK, validators)
    assert len(canonical.encode(evidence)) < MAX_VOTE_EVIDENCE_BYTES, "no block in it"
    claims = kit.proposal(keys[1], blocks[0], round_=2, valid_round=1)
    check_evidence(double_proposal(one, claims), kit.NETWORK, validators)
    with pytest.raises(EvidenceError, match="say the same"):
        check_evidence(double_proposal(one, one), kit.NETWORK, validators)
    with pytest.raises(EvidenceError, match="not of one validator"):
        check_evidence(double_proposal(one, kit.proposal(keys[1], blocks[1], round_=3)), kit.NETWORK, validators)
    with pytest.raises(SignatureError):
        forged = msgspec.structs.replace(evidence.second, value=C)
        pair = sorted((evidence.first, forged), key=canonical.encode)
        check_evidence(DoubleProposal(first=pair[0], second=pair[1]), kit.NETWORK, validators)


@pytest.mark.parametrize(
    ("precommit", "prevote", "proves"),
    [
        # (round, value), (round, value, stated lock)
        ((0, A), (1, B, None), True),
        ((0, A), (1, A, None), True),
        ((0, A), (1, None, None), True),
        ((2, A), (5, B, (1, B)), True),
        ((2, A), (5, B, (2, B)), True),
        ((2, None), (5, B, (2, B)), True),
        ((2, A), (5, A, (2, A)), False),
        ((2, A), (5, None, (2, A)), False),
        ((2, A), (5, B, (3, B)), False),
        ((2, None), (5, B, None), False),
        ((2, None), (5, B, (1, B)), False),
        ((2, None), (5, B, (3, B)), False),
    ],
)  # fmt: skip
def test_amnesia(stand, precommit, prevote, proves):
    kit, keys, validators = stand
    one = kit.vote(keys[3], "precommit", precommit[1], round_=precommit[0])
    other = kit.vote(keys[3], "prevote", prevote[1], round_=prevote[0], lock=prevote[2])
    evidence = amnesia(one, other)
    if proves:
        check_evidence(evidence, kit.NETWORK, validators)
        assert offence_of(evidence).round == prevote[0]
    else:
        with pytest.raises(EvidenceError, match="agrees with the precommit"):
            check_evidence(evidence, kit.NETWORK, validators)


@pytest.mark.parametrize("change", [{"height": 2}, {"round_": 0}, {"who": 2}])
def test_amnesia_is_of_one_validator_and_height_in_order(stand, change):
    kit, keys, validators = stand
    said = {"round_": 1, "who": 3} | change
    one = kit.vote(keys[3], "precommit", A)
    evidence = amnesia(one, kit.vote(keys[said.pop("who")], "prevote", B, **said))
    with pytest.raises(EvidenceError, match="not of the same validator"):
        check_evidence(evidence, kit.NETWORK, validators)
    with pytest.raises(EvidenceError, match="amnesia of a precommit and a precommit"):
        check_evidence(amnesia(one, kit.vote(keys[3], "precommit", B, round_=1)), kit.NETWORK, validators)


def every_kind(kit, keys, validators):
    blocks = [kit.block(validators, proposer=keys[1].address, salt=i) for i in range(2)]
    return [
        double_vote(kit.vote(keys[1], "precommit", A), kit.vote(keys[1], "precommit", B)),
        double_vote(kit.vote(keys[1], "prevote", A, round_=2**31 - 1, height=2**53 - 1, lock=(2**31 - 2, B), valid_round=2**31 - 2),
                    kit.vote(keys[1], "prevote", B, round_=2**31 - 1, height=2**53 - 1, lock=(2**31 - 2, B), valid_round=2**31 - 2)),
        double_proposal(*(kit.proposal(keys[1], block) for block in blocks)),
        amnesia(kit.vote(keys[1], "precommit", A), kit.vote(keys[1], "prevote", B, round_=1)),
    ]  # fmt: skip


def test_a_strangers_another_epochs_and_another_networks_prove_nothing(stand):
    kit, keys, validators = stand
    for evidence in every_kind(kit, keys, validators):
        check_evidence(evidence, kit.NETWORK, validators)
        assert len(canonical.encode(evidence)) <= MAX_VOTE_EVIDENCE_BYTES
        with pytest.raises(SignatureError):
            check_evidence(evidence, bytes(32), validators)
        with pytest.raises(EvidenceError, match="is not a validator"):
            check_evidence(evidence, kit.NETWORK, kit.validators([keys[0], *keys[2:]]))
        with pytest.raises(EvidenceError, match="of epoch 0"):
            check_evidence(evidence, kit.NETWORK, msgspec.structs.replace(validators, epoch=1))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_byte_of_evidence_changes_unnoticed(kit, data):
    keys = kit.keys(4)
    validators = kit.validators(keys)
    evidence = data.draw(st.sampled_from(every_kind(kit, keys, validators)))
    whole = canonical.encode(evidence)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((EncodingError, EvidenceError, SignatureError)):
        check_evidence(
            canonical.decode(bytes(changed), type(evidence), limit_bytes=MAX_VOTE_EVIDENCE_BYTES),
            kit.NETWORK,
            validators,
        )


# What a prevote states


def test_a_prevote_against_its_own_lock_is_refused(stand):
    kit, keys, validators = stand

    def screen(value, lock, valid_round=None, round_=5):
        vote = kit.vote(keys[0], "prevote", value, round_=round_, lock=lock, valid_round=valid_round)
        check_vote(kit.NETWORK, validators, vote, lambda _vote: False)

    for value, lock, proof in [
        (A, None, None),
        (A, None, 4),
        (None, (2, A), None),
        (A, (2, A), None),
        (B, (2, A), 2),
        (B, (2, A), 4),
    ]:
        screen(value, lock, proof)
    for value, lock, proof in [(B, (2, A), None), (B, (2, A), 1)]:
        with pytest.raises(VoteError, match="its own lock forbids"):
            screen(value, lock, proof)
    lawful = [kit.vote(key, "prevote", B, round_=5) for key in keys[:2]]
    broken = kit.vote(keys[2], "prevote", B, round_=5, lock=(2, A))
    with pytest.raises(VoteError, match="its own lock forbids"):
        check_votes(kit.NETWORK, validators, [*lawful, broken], "prevote", lambda _vote: False)


@pytest.mark.parametrize(
    ("kind", "value", "lock", "valid_round"),
    [
        ("precommit", A, (0, A), None), ("precommit", A, None, 0), ("precommit", None, (0, A), None),
        ("prevote", A, (3, A), None), ("prevote", A, None, 3), ("prevote", None, None, 1),
    ],
)  # fmt: skip
def test_what_a_vote_cannot_state(kit, kind, value, lock, valid_round):
    """Refused when it is decoded: a precommit's signature would not cover it, or it says nothing."""
    plain = {"kind": kind, "epoch": 0, "height": 1, "round": 3, "value": value, "validator": kit.keys(1)[0].address,
             "signature": bytes(65), "valid_round": valid_round, "type": "vote",
             "lock": None if lock is None else {"round": lock[0], "value": lock[1]}}  # fmt: skip
    with pytest.raises(EncodingError, match="states"):
        canonical.decode(canonical.pack(plain), Vote, limit_bytes=1024)


@pytest.mark.parametrize("kind", ["prevote", "precommit"])
def test_the_other_spelling_of_a_signature_is_refused(stand, kind):
    """High s: the same signature to plain ECDSA, and nobody's here; so are a v beyond 27 and 28, and s or r of zero."""
    kit, keys, validators = stand
    vote = kit.vote(keys[0], kind, A, round_=1)
    signature = vote.signature
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    for twin in (
        signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]]),
        signature[:64] + bytes([signature[64] - 27]),
        signature[:64] + bytes([signature[64] + 2]),
        signature[:32] + bytes(32) + signature[64:],
        bytes(32) + signature[32:],
        CURVE_ORDER.to_bytes(32, "big") + signature[32:],
    ):
        with pytest.raises(SignatureError):
            check_vote(kit.NETWORK, validators, msgspec.structs.replace(vote, signature=twin), lambda _vote: False)


# The core against itself: whatever an honest validator goes through, its votes contradict each other nowhere


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_an_honest_validator_is_never_accused(kit, data):
    bench = kit.Bench(me=0)
    bench.run("start")
    words = st.sampled_from(["prop", "pv", "pc", "to", "polka"])
    for _ in range(data.draw(st.integers(5, 60))):
        round_ = max(0, bench.state.round + data.draw(st.integers(-1, 1)))
        name = data.draw(st.sampled_from("AAB"))
        who = data.draw(st.sampled_from(["1", "2", "3", "12", "123", "23"]))
        match data.draw(words):
            case "prop" if bench.validators.proposer(1, round_) != bench.key.address:
                earlier = data.draw(st.none() | st.integers(0, round_ - 1)) if round_ else None
                bench.run(f"prop {round_} {name} {'' if earlier is None else earlier}")
            case "pv" | "pc" as verb:
                bench.run(f"{verb} {who} {round_} {data.draw(st.sampled_from(['A', 'B', 'nil']))}")
            case "to":
                bench.run(f"to {data.draw(st.sampled_from(['propose', 'prevote', 'precommit']))} {round_}")
            case "polka":
                bench.run(f"polka {round_} {name} 123")
            case _:
                pass
    votes = bench.votes
    for vote in votes:
        check_vote(kit.NETWORK, bench.validators, vote, lambda _vote: False)
    slots = [(v.kind, v.round) for v in votes]
    assert len(slots) == len(set(slots))
    for one in votes:
        for other in votes:
            if (one.kind, other.kind) == ("precommit", "prevote") and one.round < other.round:
                assert not contradicts(one, other)
    assert not [e for e in bench.evidence if offence_of(e).validator == bench.key.address]


def test_both_halves_in_one_far_round_are_found_when_it_comes(kit):
    """Votes far ahead are kept one a validator; what they prove is told when their round is near."""
    bench = kit.Bench()
    bench.run("start; pc 1 0 A; pv 1 7 B")
    assert bench.evidence == []
    bench.run("pv 2 7 B")
    assert [offence_of(e).kind for e in bench.evidence] == ["amnesia"]
    assert isinstance(bench.evidence[0], Amnesia)
    check_evidence(bench.evidence[0], kit.NETWORK, bench.validators)
