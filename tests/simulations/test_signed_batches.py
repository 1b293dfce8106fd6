"""Batches on disks: whoever committed to two that contradict each other is found, wherever the two stand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from nsllm.consensus.batch import (
    Abstention,
    BatchCommit,
    BatchReveal,
    Excerpt,
    Row,
    SignedCommit,
    pack_rows,
    row_commitment,
    sign_commit,
)
from nsllm.consensus.observation import Subject
from nsllm.crypto import MemberKey
from nsllm.governance.batch_log import BatchLog
from nsllm.ids import Digest, Epoch, NetworkId, TimeMs
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.signatures import Signatures
from nsllm.simulations.signed_batches import SignedBatches

NETWORK = NetworkId(b"\7" * 32)
HONEST, LIAR = (MemberKey(bytes([number]) * 32) for number in (1, 2))
RUBRIC = Digest(b"\4" * 32)


def subject(number: int) -> Subject:
    return Subject(Digest(bytes([number]) * 32), HONEST.address, Digest(b"\3" * 32))


def batch(
    *records: int, number: int = 1, ppm: int = 5, epoch: int = 0, abstain: tuple[int, ...] = (), key: MemberKey = LIAR
) -> tuple[SignedCommit, BatchReveal]:
    subjects = [subject(record) for record in records]
    rows = [Row(at, bytes([record]) * 16, (ppm, 7)) for at, record in enumerate(records)]
    commit = BatchCommit(
        validator=key.address,
        epoch=Epoch(epoch),
        number=number,
        rubric=RUBRIC,
        records=b"".join(one.record for one in subjects),
        commitments=b"".join(
            row_commitment(NETWORK, key.address, Epoch(epoch), RUBRIC, one, row)
            for one, row in zip(subjects, rows, strict=True)
        ),
        abstentions=tuple(Abstention(record=Digest(bytes([each]) * 32), reason="no encoder") for each in abstain),
    )
    reveal = BatchReveal(
        validator=key.address,
        epoch=Epoch(epoch),
        number=number,
        rows=pack_rows(rows),
        subjects=b"".join(one.pack() for one in subjects),
    )
    return sign_commit(key, NETWORK, commit), reveal


def home(folder: Path, *batches: tuple[SignedCommit, BatchReveal], key: MemberKey = LIAR) -> Path:
    """A validator's folder, written as its committer writes it."""
    place = folder / "consensus"
    place.mkdir(parents=True)
    log = BatchLog.open(place / "batches.sqlite", NETWORK, key.address, now_ms=TimeMs(1))
    for each in batches:
        log.put(*each)
    log.close()
    return place


def test_honest_batches_are_found_honest_also_at_a_second_look(tmp_path):
    mine = batch(1, 2, key=HONEST), batch(3, number=2, abstain=(4,), key=HONEST)
    place = home(tmp_path, *mine, key=HONEST)
    found = SignedBatches(NETWORK)
    for _ in range(2):
        found.add_left(place, HONEST.address, "its log")
        found.add([mine[0][0]], "block 1")
    found.add([batch(1, key=LIAR)[0], batch(1, ppm=6, epoch=1, key=HONEST)[0]], "block 2")
    assert (len(found), found.liars) == (4, set())
    found.add_left(tmp_path / "nowhere", HONEST.address, "no log")


@pytest.mark.parametrize(
    "other",
    [
        batch(9),  # one number, another batch
        batch(1, number=2, ppm=6),  # another row of a record
        batch(2, number=2, abstain=(1,)),  # it abstains from what it has observed
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_that_contradict_each_other_convict(tmp_path, other, turned):
    one = batch(1)
    logged, told = (other, one) if turned else (one, other)
    folder = tmp_path / "peer-1"
    home(folder, logged)
    found = Signatures(NETWORK)
    found.add_left(folder, LIAR.address)
    with pytest.raises(InvariantError, match=r"batch \d in the batches of peer-1 and batch \d in block 7 of peer-0"):
        found.add_batches([Excerpt(signed=told[0], rows=b"")], "block 7 of peer-0")
    found = Signatures(NETWORK, frozenset({LIAR.address}))
    found.add_batches([Excerpt(signed=told[0], rows=b"")], "block 7 of peer-0")
    found.add_left(folder, LIAR.address)
    assert (found.liars, len(found)) == ({LIAR.address}, 2)


def test_what_nobody_signed_convicts_nobody_but_its_keeper():
    signed, _ = batch(1)
    forged = replace(signed, commit=replace(signed.commit, number=9))
    with pytest.raises(InvariantError, match="block 3"):
        SignedBatches(NETWORK, frozenset({LIAR.address})).add([forged], "block 3")


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((batch(1)[0], batch(1, ppm=6)[1]), "not what was committed to"),
        ((batch(1)[0], batch(1, number=2)[1]), "rows of another one"),
        ((batch(1)[0], replace(batch(1)[1], rows=b"")), "cut short|1 records and 0 rows|multiple"),
        ((batch(1)[0], replace(batch(1)[1], subjects=subject(2).pack())), "is not of"),
        (batch(1, key=HONEST), "holds a batch of"),
    ],
)
def test_a_log_that_cannot_open_its_batches_is_found(tmp_path, kept, message):
    place = home(tmp_path, kept)
    with pytest.raises(InvariantError, match=message):
        SignedBatches(NETWORK).add_left(place, LIAR.address, "its log")


def test_anothers_log_is_found(tmp_path):
    with pytest.raises(InvariantError, match="its log is that of"):
        SignedBatches(NETWORK).add_left(home(tmp_path), HONEST.address, "its log")


@pytest.mark.parametrize("whole", [True, False])
def test_the_log_of_a_killed_validator_is_read_as_it_is(tmp_path, whole):
    place = tmp_path / "consensus"
    place.mkdir()
    log = BatchLog.open(place / "batches.sqlite", NETWORK, LIAR.address, now_ms=TimeMs(1))
    log.put(*batch(1))
    left = tmp_path / "left"
    left.mkdir()
    for file in place.iterdir():
        if whole or not file.name.endswith("-shm"):
            shutil.copy(file, left)
    log.close()
    found = SignedBatches(NETWORK)
    before = {file.name: file.read_bytes() for file in left.iterdir() if not file.name.endswith("-shm")}
    found.add_left(left, LIAR.address, "its log")
    assert len(found) == 1
    assert before == {file.name: file.read_bytes() for file in left.iterdir() if not file.name.endswith("-shm")}
