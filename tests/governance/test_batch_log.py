"""The log of batches: a number and a record are taken once in an epoch, for good."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nsllm.consensus.batch import sign_commit
from nsllm.consensus.errors import GuardError
from nsllm.governance.batch_log import BatchLog
from nsllm.governance.errors import DamageError
from nsllm.ids import Epoch, TimeMs


@pytest.fixture
def reopen(net, tmp_path):
    """Open the log of validator 0 (or of another) anew."""
    opened: list[BatchLog] = []

    def again(by: int = 0) -> BatchLog:
        for log in opened:
            log.close()
        opened[:] = [BatchLog.open(tmp_path / "batches.sqlite", net.network, net.keys[by].address, now_ms=TimeMs(1))]
        return opened[0]

    yield again
    for log in opened:
        log.close()


def test_what_was_put_is_there_after_a_restart(net, reopen) -> None:
    log = reopen()
    assert log.next_number(Epoch(0), TimeMs(0)) == 1
    first = net.batch(net.keys[0], net.record("a"), net.record("b"), number=1)
    second = net.batch(net.keys[0], net.record("c"), abstain=[net.record("d")], number=2)
    log.put(*first)
    log.put(*second)
    log = reopen()
    assert log.next_number(Epoch(0), TimeMs(0)) == 3
    assert log.next_number(Epoch(0), TimeMs(1_000)) == 1_000, "a log that was restored takes no number again"
    assert log.outstanding(Epoch(0), 10) == [first, second]
    assert log.outstanding(Epoch(0), 1) == [second]
    records = [net.record(name).record.digest() for name in "abcde"]
    assert log.fresh(Epoch(0), records) == records[4:]


def test_a_number_or_a_record_is_not_taken_twice(net, reopen) -> None:
    log = reopen()
    log.put(*net.batch(net.keys[0], net.record("a"), abstain=[net.record("d")], number=1))
    for batch in (
        net.batch(net.keys[0], net.record("b"), number=1),
        net.batch(net.keys[0], net.record("a"), net.record("b"), number=2),
        net.batch(net.keys[0], net.record("d"), number=2),
        net.batch(net.keys[0], abstain=[net.record("a")], number=2),
    ):
        with pytest.raises(GuardError, match="refused to commit"):
            log.put(*batch)
    assert log.fresh(Epoch(0), [net.record("b").record.digest()])
    log.put(*net.batch(net.keys[0], net.record("b"), number=7))


def test_what_blocks_settled_is_forgotten_but_no_number_comes_again(net, reopen) -> None:
    log = reopen()
    first = net.batch(net.keys[0], net.record("a"), net.record("b"), number=1)
    log.put(*first)
    log.settled(Epoch(0), [net.record("a").record.digest(), net.record("x").record.digest()])
    assert log.outstanding(Epoch(0), 10) == [first]
    log.settled(Epoch(0), [net.record("b").record.digest()])
    assert log.outstanding(Epoch(0), 10) == []
    assert reopen().next_number(Epoch(0), TimeMs(0)) == 2


def test_what_is_settled_is_forgotten_with_the_next_batch_or_not_at_all(net, reopen) -> None:
    log = reopen()
    log.put(*net.batch(net.keys[0], net.record("a"), number=1))
    settled = [net.record("a").record.digest()]
    with pytest.raises(GuardError):
        log.put(*net.batch(net.keys[0], net.record("b"), number=1), settled)
    assert len(log.outstanding(Epoch(0), 10)) == 1, "the batch was refused, and with it what comes along"
    second = net.batch(net.keys[0], net.record("b"), number=2)
    log.put(*second, settled)
    assert log.outstanding(Epoch(0), 10) == [second]


def test_a_new_epoch_begins_at_one_and_clears_the_old(net, reopen) -> None:
    log = reopen()
    signed, reveal = net.batch(net.keys[0], net.record("a"), number=1)
    log.put(signed, reveal)
    assert log.next_number(Epoch(1), TimeMs(0)) == 1
    later = sign_commit(net.keys[0], net.network, replace(signed.commit, epoch=Epoch(1)))
    log.put(later, replace(reveal, epoch=Epoch(1)))
    assert log.outstanding(Epoch(0), 10) == []
    assert log.next_number(Epoch(0), TimeMs(0)) == 2, "numbers of an old epoch stay taken"


def test_another_validators_log_and_a_damaged_one_are_refused(net, reopen, tmp_path) -> None:
    reopen().put(*net.batch(net.keys[0], net.record("a"), number=1))
    with pytest.raises(GuardError, match="is of validator"):
        reopen(1)
    path = tmp_path / "batches.sqlite"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DamageError, match="restore it from a backup"):
        BatchLog.open(path, net.network, net.keys[0].address, now_ms=TimeMs(1))
    assert path.exists(), "it is not moved aside"
