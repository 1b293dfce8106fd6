"""The pool of observations: each validator's fault costs that validator, and nothing in it grows without bound."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nsllm.consensus.batch import Excerpt, pack_rows, unpack_rows
from nsllm.consensus.batch_conflict import conflict_of
from nsllm.consensus.errors import BatchEquivocationError, ObservationError
from nsllm.consensus.observation import pack_subjects
from nsllm.consensus.settlement import Terms
from nsllm.errors import SignatureError
from nsllm.governance import batch_lanes
from nsllm.governance.batch_lanes import EXPIRY_S, MAX_NUMBERS_AHEAD
from nsllm.governance.observation_pool import Candidate, Hopeless, ObservationPool
from nsllm.governance.record_case import WAIT_FOR_ALL_S


@pytest.fixture
def pool(net) -> ObservationPool:
    rubric = net.genesis.policy.rubric
    return ObservationPool(Terms(net.network, net.validators, rubric.digest(), rubric.dimensions), net.keys[0].address)


def never(_record: bytes) -> bool:
    return False


def say(pool, batches, now: float = 0.0) -> None:
    """All commit, then all open."""
    for signed, _ in batches:
        pool.add_commit(signed, now, never)
    for _, reveal in batches:
        pool.add_reveal(reveal, now)


def test_a_record_is_ready_with_the_rows_of_enough_validators(net, pool) -> None:
    signed = net.record("a")
    record = signed.record.digest()
    batches = [net.batch(key, signed) for key in net.keys]
    for commit, _ in batches:
        pool.add_commit(commit, 0.0, never)
    for _, reveal in batches[:2]:
        assert pool.add_reveal(reveal, 0.0)
    assert pool.ready() == []
    for _, reveal in batches[2:]:
        assert pool.add_reveal(reveal, 0.0)
    assert pool.ready() == [record]
    candidate = pool.candidate(record)
    assert isinstance(candidate, Candidate)
    assert candidate.subject == net.subject(signed)
    assert [each.commit.validator for each, _ in candidate.rows] == list(net.validators.members)
    assert pool.generator(record) == net.generator.address
    assert {standing.observed for standing in pool.standings.values()} == {1}


def test_our_row_waits_for_the_others_commits(net, pool) -> None:
    signed = net.record("a")
    record = signed.record.digest()
    batches = [net.batch(key, signed) for key in net.keys]
    for commit, _ in batches[:2]:
        pool.add_commit(commit, 0.0, never)
    assert (pool.openable(9.0), pool.opens_in_s(9.0)) == ([], None)
    pool.add_commit(batches[2][0], 9.0, never)
    assert pool.openable(9.0) == []
    assert pool.opens_in_s(9.0) == pytest.approx(WAIT_FOR_ALL_S)
    assert pool.openable(9.0 + WAIT_FOR_ALL_S) == [record]
    pool.add_commit(batches[3][0], 9.1, never)
    assert pool.openable(9.1) == [record]
    assert not pool.shown(record)
    pool.add_reveal(batches[0][1], 9.1)
    assert pool.shown(record)
    assert (pool.openable(9.9), pool.opens_in_s(9.9)) == ([], None)


def test_our_row_waits_again_where_a_commit_is_left_out(net, pool) -> None:
    signed = net.record("a")
    for key in net.keys:
        pool.add_commit(net.batch(key, signed)[0], 0.0, never)
    assert pool.openable(0.0) == [signed.record.digest()], "all have committed"
    pool.ban(net.keys[3].address)
    assert (pool.openable(0.0), pool.opens_in_s(0.0)) == ([], WAIT_FOR_ALL_S)
    pool.ban(net.keys[2].address)
    assert (pool.openable(9.0), pool.opens_in_s(9.0)) == ([], None)


def test_a_batch_opens_row_by_row(net, pool) -> None:
    """A record that nobody else has holds back its own row, not the rest of the batch."""
    known, lonely = sorted((net.record("a"), net.record("b")), key=lambda signed: signed.record.digest())
    mine, reveal = net.batch(net.keys[0], known, lonely)
    pool.add_commit(mine, 0.0, never)
    for key in net.keys[1:]:
        pool.add_commit(net.batch(key, known)[0], 0.0, never)
    assert pool.openable(0.0) == [known.record.digest()]
    size = len(reveal.rows) // 2
    first = replace(reveal, rows=reveal.rows[:size], subjects=pack_subjects([net.subject(known)]))
    assert pool.add_reveal(first, 0.0)
    assert not pool.add_reveal(first, 0.0)
    assert pool.add_reveal(reveal, 0.0), "the rest"
    with pytest.raises(ObservationError, match="2 rows with 1 subjects"):
        pool.add_reveal(replace(reveal, subjects=reveal.subjects[:84]), 0.0)


def test_rows_of_a_block_were_checked_only_if_exactly_these_are_open_here(net, pool) -> None:
    known, closed, other = sorted((net.record(n) for n in "abc"), key=lambda signed: signed.record.digest())
    commit, reveal = net.batch(net.keys[1], known, closed)
    pool.add_commit(commit, 0.0, never)
    rows = unpack_rows(reveal.rows, len(net.genesis.policy.rubric.dimensions))
    pool.add_reveal(replace(reveal, rows=pack_rows(rows[:1]), subjects=pack_subjects([net.subject(known)])), 0.0)
    scored = {signed.record.digest(): net.subject(signed) for signed in (known, closed, other)}

    def opened(excerpt, about=scored) -> bool:
        return pool.has_opened(excerpt, about)

    block_has = Excerpt(signed=commit, rows=pack_rows(rows[:1]))
    assert opened(block_has)
    assert block_has.opened(len(rows[0].ppm)) == rows[:1]
    assert opened(Excerpt(signed=commit, rows=b""))
    elsewhere = net.subject(known)._replace(generator=bytes(20))
    assert not opened(block_has, scored | {known.record.digest(): elsewhere})
    assert not opened(block_has, {})
    for wrong in (rows[:2], [rows[0]._replace(ppm=(7,) * len(rows[0].ppm))], [rows[0]._replace(position=2)]):
        assert not opened(Excerpt(signed=commit, rows=pack_rows(wrong))), wrong
    assert not opened(Excerpt(signed=net.batch(net.keys[1], other, number=77)[0], rows=pack_rows(rows[:1])))
    with pytest.raises(ObservationError, match="row 0 after row 0"):
        opened(Excerpt(signed=commit, rows=pack_rows([rows[0], rows[0]])))
    pool.settled(known.record.digest())
    assert not opened(block_has)


def test_what_stands_before_a_wrong_row_counts(net, pool) -> None:
    """Rows are judged together; where one is wrong, those before it are opened and those after it are not."""
    records = sorted((net.record(name) for name in "abc"), key=lambda signed: signed.record.digest())
    commit, reveal = net.batch(net.keys[1], *records)
    pool.add_commit(commit, 0.0, never)
    size = len(reveal.rows) // 3
    spoilt = bytearray(reveal.rows)
    spoilt[2 * size - 1] ^= 1
    with pytest.raises(ObservationError, match="row 1 is not what was committed to"):
        pool.add_reveal(replace(reveal, rows=bytes(spoilt)), 0.0)
    cases = [pool.case(signed.record.digest()) for signed in records]
    assert [len(case.opened) for case in cases] == [1, 0, 0]
    first = net.subject(records[0])
    twice = replace(reveal, rows=reveal.rows[: 2 * size], subjects=pack_subjects([first, first]))
    assert not pool.add_reveal(twice, 0.0), "what is open already is not judged again"
    assert pool.add_reveal(reveal, 0.0)
    assert [len(case.opened) for case in cases] == [1, 1, 1]


def test_two_batches_of_one_number_are_proved_and_whoever_signed_them_is_left_out(net, pool) -> None:
    one, two, other = net.record("a"), net.record("b"), net.record("c")
    liar = net.keys[1].address
    first, reveal = net.batch(net.keys[1], one, number=1)
    second, _ = net.batch(net.keys[1], two, number=1)
    pool.add_commit(first, 0.0, never)
    with pytest.raises(BatchEquivocationError) as caught:
        pool.add_commit(second, 0.0, never)
    caught.value.conflict.check(net.network)
    assert caught.value.conflict == conflict_of(first, second)
    pool.ban(liar)
    assert pool.is_banned(first)
    assert pool.standings[liar].equivocated
    assert len(pool) == 0
    assert not pool.add_commit(first, 0.0, never)
    assert not pool.add_reveal(reveal, 0.0)
    assert not pool.add_commit(net.batch(net.keys[1], other, number=2)[0], 0.0, never), "its other batches neither"
    assert pool.add_commit(net.batch(net.keys[2], other, number=2)[0], 0.0, never)


def test_the_same_commit_under_another_signature_is_no_equivocation(net, pool) -> None:
    first, _ = net.batch(net.keys[1], net.record("a"), number=1)
    pool.add_commit(first, 0.0, never)
    assert pool.contradiction(replace(first, signature=bytes(65))) is None


def test_a_batch_in_a_block_is_held_against_what_is_here(net, pool) -> None:
    """Also where its record is settled by then: its number stands."""
    first, _ = net.batch(net.keys[1], net.record("a"), number=1)
    pool.add_commit(first, 0.0, never)
    for shown in (
        net.batch(net.keys[1], net.record("b"), number=1)[0],
        net.batch(net.keys[1], net.record("a"), number=2, ppm=9)[0],
        net.batch(net.keys[1], abstain=[net.record("a")], number=2)[0],
    ):
        assert pool.contradiction(shown) == conflict_of(first, shown)
    for innocent in (
        first,
        net.batch(net.keys[1], net.record("a"), number=2)[0],
        net.batch(net.keys[1], net.record("b"), number=2)[0],
        net.batch(net.keys[2], net.record("a"), number=1, ppm=9)[0],
    ):
        assert pool.contradiction(innocent) is None


def test_two_rows_for_a_record_are_an_equivocation_and_one_row_twice_is_none(net, pool) -> None:
    signed = net.record("a")
    pool.add_commit(net.batch(net.keys[1], signed, number=1)[0], 0.0, never)
    pool.add_commit(net.batch(net.keys[1], signed, number=2)[0], 0.0, never)
    assert pool.outstanding(net.keys[1].address) == 1
    with pytest.raises(BatchEquivocationError):
        pool.add_commit(net.batch(net.keys[1], signed, number=3, ppm=9)[0], 0.0, never)
    pool.add_commit(net.batch(net.keys[2], signed, number=1)[0], 0.0, never)
    with pytest.raises(BatchEquivocationError):
        pool.add_commit(net.batch(net.keys[2], abstain=[signed], number=2)[0], 0.0, never)


def test_abstentions_are_counted_and_told(net, pool) -> None:
    signed = net.record("a")
    record = signed.record.digest()
    batches = [net.batch(key, abstain=[signed]) for key in net.keys[:2]]
    say(pool, batches)
    assert pool.ready() == [record]
    found = pool.candidate(record)
    assert found == Hopeless(record, tuple(commit for commit, _ in batches))
    assert pool.generator(record) is None
    standing = pool.standings[net.keys[0].address]
    assert (standing.abstained, standing.reason, standing.observed) == (1, "no encoder", 0)
    pool.settled(record)
    assert len(pool) == 0
    assert pool.outstanding(net.keys[0].address) == 0


def test_who_floods_drops_its_own_batches(net, pool, monkeypatch) -> None:
    monkeypatch.setattr(batch_lanes, "MAX_OUTSTANDING", 3)
    signed = net.record("a")
    batches = [net.batch(key, signed) for key in net.keys[:3]]
    say(pool, batches)
    assert pool.ready() == [signed.record.digest()]
    for i in range(5):
        pool.add_commit(net.batch(net.keys[1], net.record(f"flood {i}"))[0], 0.0, never)
    assert pool.outstanding(net.keys[1].address) == 3
    assert pool.ready() == []
    assert len(pool) == 4
    pool.add_commit(batches[1][0], 0.0, never)
    pool.add_reveal(batches[1][1], 0.0)
    assert pool.ready() == [signed.record.digest()]


def test_rows_of_one_validator_are_bounded_over_all_of_its_batches(net, pool, monkeypatch) -> None:
    monkeypatch.setattr(batch_lanes, "MAX_ROWS", 5)
    for name in "abc":
        pool.add_commit(net.batch(net.keys[1], *(net.record(f"{name}{i}") for i in range(2)))[0], 0.0, never)
    assert pool.outstanding(net.keys[1].address) == 2
    assert len(pool) == 4


def test_far_numbers_are_dropped_before_their_signature_is_looked_at(net, pool, monkeypatch) -> None:
    checks = []
    sound = net.batch(net.keys[1], net.record("a"), number=5000)[0]
    monkeypatch.setattr(type(sound), "check_signature", lambda self, network: checks.append(self.commit.number))
    for number in (5000, 5000 + MAX_NUMBERS_AHEAD + 1, 5000 - MAX_NUMBERS_AHEAD - 1, 2**62, 5001):
        pool.add_commit(net.batch(net.keys[1], net.record(str(number)), number=number)[0], 0.0, never)
    assert checks == [5000, 5001]
    pool.expire(EXPIRY_S)
    pool.add_commit(net.batch(net.keys[1], net.record("late"), number=2**40)[0], EXPIRY_S, never)
    assert checks == [5000, 5001, 2**40], "whoever is not heard of for long may begin anywhere"


def test_what_is_settled_costs_no_signature_check(net, pool) -> None:
    signed, reveal = net.batch(net.keys[1], net.record("a"), net.record("b"))
    forged = replace(signed, signature=bytes(65))
    settled = {net.record("a").record.digest(), net.record("b").record.digest()}
    assert not pool.add_commit(forged, 0.0, settled.__contains__)
    with pytest.raises(SignatureError):
        pool.add_commit(forged, 0.0, never)
    settled.remove(net.record("b").record.digest())
    assert pool.add_commit(signed, 0.0, settled.__contains__)
    assert len(pool) == 1
    assert pool.add_reveal(reveal, 0.0)
    pool.settled(net.record("b").record.digest())
    assert (len(pool), pool.outstanding(net.keys[1].address)) == (0, 0)


def test_strangers_and_other_terms_are_refused(net, pool) -> None:
    for signed, message in (
        (net.batch(net.stranger, net.record("a"))[0], "not a validator"),
        (net.batch(net.keys[1], net.record("a"), epoch=3)[0], "epoch 3"),
        (net.batch(net.keys[1], net.record("a"), rubric=bytes(32))[0], "rubric"),
        (net.batch(net.keys[1], net.record("a"), commitments=b"")[0], "bytes of commitments"),
    ):
        with pytest.raises(ObservationError, match=message):
            pool.add_commit(signed, 0.0, never)


def test_what_is_old_is_forgotten(net, pool) -> None:
    old, young = net.record("old"), net.record("young")
    say(pool, [net.batch(key, old) for key in net.keys], 0.0)
    say(pool, [net.batch(key, young) for key in net.keys], 1.0)
    pool.expire(EXPIRY_S)
    assert pool.ready() == [young.record.digest()]
    pool.settled(young.record.digest())
    pool.settled(young.record.digest())
    assert len(pool) == 0
    assert not pool._closed
