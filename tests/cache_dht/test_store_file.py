"""A store's file: a damaged one is moved aside, and the notice says so in the same words whichever store it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsllm.cache_dht import document_store, embedding_store, sealed_store, store
from nsllm.cache_dht.errors import StoreError
from nsllm.cache_dht.store_file import StoreFile, connect_store
from nsllm.clock import SystemClock
from nsllm.databases import ON_DISK

FILES = (store.FILE, sealed_store.FILE, embedding_store.FILE, document_store.FILE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(file: StoreFile, tmp_path: Path) -> None:
    path = tmp_path / "it.sqlite"
    path.write_bytes(b"no database" * 1000)
    connection, notice = connect_store(path, file, SystemClock(), ON_DISK)
    (aside,) = tmp_path.glob("it.sqlite.damaged-*")
    assert notice is not None
    assert notice.startswith(f"{file.name} store was damaged (file is not a database); moved to {aside.name}, ")
    assert notice.endswith(file.comes_back)
    assert connection.execute(f"SELECT count(*) FROM {file.table}").fetchone() == (0,)
    assert aside.read_bytes() == b"no database" * 1000
    connection.close()
    again, notice = connect_store(path, file, SystemClock(), ON_DISK)
    assert notice is None
    again.close()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_folder_that_is_not_there_is_an_error_that_names_the_store(file: StoreFile, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"cannot open {file.name} store .*nowhere"):
        connect_store(tmp_path / "nowhere" / "it.sqlite", file, SystemClock(), ON_DISK)
