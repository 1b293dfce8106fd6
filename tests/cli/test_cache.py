"""`nsllm cache export | import`: through the running peer, to a file and from it; damage is named."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDS = {bytes([n]) * 32: bytes([n]) * 60 for n in range(1, 101)}
REFUSED = bytes([50]) * 60


class FakeAdmin:
    """A peer's admin side with a store of such records."""

    def __init__(self, stored: dict[bytes, bytes]) -> None:
        self.stored = stored
        self.requests = 0

    def ask(self, method, path, body=None, *, timeout_s=0.0):
        self.requests += 1
        if method == "GET":
            query = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
            after = bytes.fromhex(query.get("after", "0x")[2:])
            rows = sorted(row for row in self.stored.items() if row[0] > after)[: int(query["limit"])]
            return {
                "network": "0x" + "07" * 32,
                "records": len(self.stored),
                "data": [{"record": f"0x{d.hex()}", "certified": base64.b64encode(b).decode()} for d, b in rows],
                "next": f"0x{rows[-1][0].hex()}" if len(rows) == int(query["limit"]) else None,
            }
        told = []
        for text in body["records"]:
            found = base64.b64decode(text)
            if found == REFUSED:
                told.append({"record": None, "outcome": "refused", "reason": "its certificate is another's"})
                continue
            digest = found[:32]
            told.append({"record": None, "outcome": "known" if digest in self.stored else "stored", "reason": ""})
            self.stored[digest] = found
        return {"data": told}


@pytest.fixture
def admin(monkeypatch) -> FakeAdmin:
    admin = FakeAdmin(dict(RECORDS))
    monkeypatch.setattr("nsllm.cli.administering.admin_of", lambda _data_dir, _api: admin)
    return admin


@pytest.fixture
def failing(nsllm: Callable) -> Callable:
    def call(*args: object, status: int):
        said = nsllm(*args)
        assert said.status == status
        return said

    return call


def test_what_is_exported_is_imported_elsewhere(
    nsllm: Callable, failing: Callable, admin: FakeAdmin, tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    said = nsllm("cache", "export", file, "--json").json()
    assert (said["records"], said["bytes"]) == (100, file.stat().st_size)
    assert list(tmp_path.iterdir()) == [file]
    admin.stored.clear()
    said = failing("cache", "import", file, "--json", status=1).json()
    assert (said["stored"], said["known"]) == (99, 0)
    assert said["refused"] == [{"line": 51, "record": "0x" + "32" * 32, "reason": "its certificate is another's"}]
    assert admin.stored == {digest: body for digest, body in RECORDS.items() if body != REFUSED}
    again = failing("cache", "import", file, status=1)
    assert "0 records stored, 99 known, 1 refused" in again.err
    assert "line 51" in again.err


def test_a_damaged_file_loses_only_what_is_damaged(
    nsllm: Callable, failing: Callable, admin: FakeAdmin, tmp_path: Path
) -> None:
    file = tmp_path / "records.jsonl"
    nsllm("cache", "export", file)
    lines = file.read_bytes().split(b"\n")
    lines[10] = lines[10][:-9] + b"\x00" + lines[10][-8:]
    file.write_bytes(b"\n".join(lines[:90]))
    admin.stored.clear()
    said = failing("cache", "import", file, "--json", status=1).json()
    assert said["stored"] == 87
    assert [(row["line"], row["record"]) for row in said["refused"]] == [
        (11, "0x" + "0a" * 32),
        (51, "0x" + "32" * 32),
        (90, None),
    ]


def test_an_existing_file_is_kept_and_a_foreign_one_refused(
    nsllm: Callable, failing: Callable, admin: FakeAdmin, tmp_path: Path
) -> None:
    file = tmp_path / "records.sqlite"
    file.write_bytes(b"SQLite format 3\0")
    assert "is there already" in failing("cache", "export", file, status=2).err
    assert "no file of records" in failing("cache", "import", file, status=2).err
    assert file.read_bytes() == b"SQLite format 3\0"
    assert "cannot read" in failing("cache", "import", tmp_path / "missing", status=2).err
    assert "cannot write" in failing("cache", "export", tmp_path / "missing" / "file", status=2).err
    assert "device" in failing("cache", "export", "/dev/null", "--force", status=2).err
    assert len(admin.stored) == 100
    nsllm("cache", "export", file, "--force")
    assert file.read_bytes().startswith(b'{"format":"nsllm-records/1"')
