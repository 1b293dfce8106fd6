"""The pool of observations: bounded by validator, a record ripe with all or after a wait, liars apart."""

from __future__ import annotations

import pytest

from nsllm.crypto import keccak256
from nsllm.governance import observation_pool
from nsllm.governance.observation_pool import EXPIRY_S, WAIT_FOR_ALL_S, ObservationPool


@pytest.fixture
def net(ledger_network):
    return ledger_network(4)


def test_a_record_is_ripe_with_all_at_once_and_with_enough_after_a_wait(net) -> None:
    pool, signed = ObservationPool(4, 3), net.record("a")
    record = signed.record.digest()
    for at, key in enumerate(net.keys[:3]):
        assert not pool.enough()
        assert pool.add(net.observe(key, signed), float(at))
    assert pool.enough() == [record]
    assert pool.wait_s(record, 2.0) == pytest.approx(WAIT_FOR_ALL_S)
    assert pool.wait_s(record, 2.0 + WAIT_FOR_ALL_S) == 0.0
    assert pool.add(net.observe(net.keys[3], signed), 2.1)
    assert pool.wait_s(record, 2.1) == 0.0
    assert [s.observation.validator for s in pool.agreeing(record)] == list(net.validators.members)


def test_a_validator_s_first_word_counts(net) -> None:
    pool, signed = ObservationPool(4, 3), net.record("a")
    first = net.observe(net.keys[0], signed)
    second = net.observe(net.keys[0], signed, scores=first.observation.scores[:1])
    assert pool.add(first, 0.0)
    assert not pool.add(second, 0.0)
    assert pool.of(signed.record.digest()) == (first,)
    assert pool.holds(first)
    assert not pool.holds(second)


def test_a_liar_about_the_generator_does_not_count_with_the_others(net) -> None:
    pool, signed = ObservationPool(4, 3), net.record("a")
    record = signed.record.digest()
    pool.add(net.observe(net.keys[0], signed, generator=net.stranger.address), 0.0)
    pool.add(net.observe(net.keys[1], signed), 0.0)
    pool.add(net.observe(net.keys[2], signed), 0.0)
    assert not pool.enough()
    pool.add(net.observe(net.keys[3], signed), 0.0)
    assert pool.enough() == [record]
    assert [s.observation.validator for s in pool.agreeing(record)] == [key.address for key in net.keys[1:]]
    assert pool.wait_s(record, 0.0) == pytest.approx(WAIT_FOR_ALL_S)


def test_who_floods_drops_its_own_observations(net, monkeypatch) -> None:
    monkeypatch.setattr(observation_pool, "PER_VALIDATOR", 3)
    pool, signed = ObservationPool(4, 3), net.record("a")
    for key in net.keys[:3]:
        pool.add(net.observe(key, signed), 0.0)
    for i in range(10):
        pool.add(net.observe(net.keys[0], signed, record=keccak256(b"%d" % i)), 0.0)
    assert [s.observation.validator for s in pool.of(signed.record.digest())] == [k.address for k in net.keys[1:3]]
    assert not pool.enough()
    assert len(pool) == 1 + 3
    assert pool.add(net.observe(net.keys[0], signed), 0.0)
    assert pool.enough() == [signed.record.digest()]


def test_what_is_old_or_decided_is_forgotten(net) -> None:
    pool = ObservationPool(4, 3)
    old, young = net.record("old"), net.record("young")
    for key in net.keys:
        pool.add(net.observe(key, old), 0.0)
        pool.add(net.observe(key, young), 1.0)
    pool.expire(EXPIRY_S)
    assert pool.enough() == [young.record.digest()]
    pool.drop(young.record.digest())
    pool.drop(young.record.digest())
    assert len(pool) == 0
    assert all(not held for held in pool._held.values())
