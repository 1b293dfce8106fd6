"""Counters come back after a restart; a damaged file costs learning, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsllm.cache_dht import observation_store as module
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.observations import BINS
from nsllm.ids import Address

OWN = Address(bytes(20))


def counts(value: int) -> tuple[int, ...]:
    return (value,) * (2 * BINS)


def test_counters_are_kept(tmp_path: Path) -> None:
    store = ObservationStore.open(tmp_path / "o.sqlite")
    store.keep(OWN, [(b"here", counts(1)), (b"there", counts(2))])
    store.keep(OWN, [(b"here", counts(3))])
    store.close()
    again = ObservationStore.open(tmp_path / "o.sqlite").load()
    assert set(again.rows()) == {(OWN, b"here", counts(3)), (OWN, b"there", counts(2))}


def test_those_that_changed_longest_ago_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLACES", 3)
    store = ObservationStore.open(None)
    for number in range(10):
        store.keep(OWN, [(bytes([number]), counts(number))])
    assert {place for _, place, _ in store.load().rows()} >= {bytes([9]), bytes([8]), bytes([7])}
    assert len(list(store.load().rows())) <= 4


def test_others_never_take_the_room_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLACES", 3)
    store = ObservationStore.open(None)
    store.keep(OWN, [(b"mine", counts(1))])
    for number in range(10):
        store.keep(Address(bytes([9]) * 20), [(bytes([number]), counts(number))], own=False)
    kept = {place for _, place, _ in store.load().rows()}
    assert b"mine" in kept
    assert kept - {b"mine"} == {bytes([7]), bytes([8]), bytes([9])}


def test_what_changed_is_told_in_its_order() -> None:
    store = ObservationStore.open(None)
    store.keep(OWN, [(b"a", counts(1)), (b"b", counts(1))])
    store.keep(OWN, [(b"c", counts(1))])
    store.keep(Address(bytes([9]) * 20), [(b"theirs", counts(5))], own=False)
    store.keep(OWN, [(b"a", counts(2))])
    assert [(place, change) for place, _, change in store.since(OWN, 0, 10)] == [(b"b", 1), (b"c", 2), (b"a", 4)]
    assert store.since(OWN, 2, 10) == ((b"a", counts(2), 4),)
    assert len(store.since(OWN, 0, 2)) == 2
    assert store.since(OWN, 4, 10) == ()


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "o.sqlite").write_bytes(b"no database" * 1000)
    store = ObservationStore.open(tmp_path / "o.sqlite")
    assert list(store.load().rows()) == []
    store.keep(OWN, [(b"here", counts(1))])
    assert (tmp_path / "o.sqlite.damaged").exists()


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open observations"):
        ObservationStore.open(tmp_path / "none" / "o.sqlite")
