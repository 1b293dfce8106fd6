"""Batches: one signature for many hidden rows, each opened by itself, none of any use to another validator."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.consensus.batch import (
    MAX_BATCH_RECORDS,
    Abstention,
    BatchCommit,
    Excerpt,
    Row,
    check_row,
    check_rows,
    opens,
    pack_rows,
    row_bytes,
    row_commitment,
    salt_of,
    salt_secret,
    sign_commit,
    split_rows,
    unpack_rows,
)
from nsllm.consensus.batch_conflict import BatchConflict, conflict_of, contradict
from nsllm.consensus.errors import EvidenceError, ObservationError
from nsllm.consensus.evidence import MAX_EVIDENCE_BYTES
from nsllm.consensus.observation import MISSING, Subject
from nsllm.consensus.observation_message import (
    MAX_OBSERVATION_BYTES,
    Commit,
    decode_observation,
    encode_observation,
)
from nsllm.errors import EncodingError, SignatureError

replace = msgspec.structs.replace
RUBRIC = b"\x04" * 32


def subject(i: int) -> Subject:
    return Subject(bytes([i]) * 32, b"\x02" * 20, b"\x03" * 32)


def row(position: int, *ppm: int) -> Row:
    return Row(position, bytes([position]) * 16, ppm or (5, 7))


def batch(kit, key, *subjects, rows=None, **changes) -> BatchCommit:
    rows = rows or [row(i) for i in range(len(subjects))]
    hidden = (row_commitment(kit.NETWORK, key.address, 0, RUBRIC, s, r) for s, r in zip(subjects, rows, strict=True))
    fields = {
        "validator": key.address,
        "epoch": 0,
        "number": 1,
        "rubric": RUBRIC,
        "records": b"".join(s.record for s in subjects),
        "commitments": b"".join(hidden),
    }
    return BatchCommit(**{**fields, **changes})


def abstain(*records: int) -> tuple[Abstention, ...]:
    return tuple(Abstention(record=bytes([i]) * 32, reason="no encoder") for i in records)


def test_a_signature_binds_everything(kit):
    key, other = kit.keys(2)
    signed = sign_commit(key, kit.NETWORK, batch(kit, key, subject(1), abstentions=abstain(9)))
    signed.check(kit.NETWORK)
    with pytest.raises(SignatureError):
        signed.check(bytes(32))
    for name, value in [
        ("validator", other.address), ("epoch", 1), ("number", 2), ("rubric", bytes(32)), ("records", bytes(32)),
        ("commitments", bytes(32)), ("abstentions", abstain(8)),
    ]:  # fmt: skip
        with pytest.raises(SignatureError):
            replace(signed, commit=replace(signed.commit, **{name: value})).check(kit.NETWORK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": bytes(31)}, "not a multiple of 32"),
        ({"commitments": bytes(32)}, "2 records, 32 bytes of commitments"),
        ({"records": b"\x02" * 32 + b"\x01" * 32}, "ascending order"),
        ({"records": b"\x01" * 64}, "ascending order"),
        ({"records": b"", "commitments": b""}, "speaks of 0 records"),
        ({"abstentions": abstain(5, 4)}, "ascending order"),
        ({"abstentions": abstain(1)}, "that it abstains from"),
        ({"abstentions": abstain(*range(3, 3 + MAX_BATCH_RECORDS - 1))}, "speaks of 65 records, 1 to 64"),
    ],
)
def test_columns_that_do_not_fit_together(kit, change, message):
    (key,) = kit.keys(1)
    signed = sign_commit(key, kit.NETWORK, replace(batch(kit, key, subject(1), subject(2)), **change))
    with pytest.raises(ObservationError, match=message):
        signed.check(kit.NETWORK)


def test_a_row_opens_its_commitment_and_no_other(kit):
    key, other = kit.keys(2)
    commit = batch(kit, key, subject(1), subject(2))
    for position in (0, 1):
        check_row(commit, kit.NETWORK, subject(position + 1), row(position))
    wrong = [
        (subject(1), row(0, 5, 8)), (subject(1), Row(0, bytes([9]) * 16, (5, 7))), (subject(2), row(0)),
        (Subject(subject(1).record, b"\x09" * 20, b"\x03" * 32), row(0)),
        (Subject(subject(1).record, b"\x02" * 20, b"\x09" * 32), row(0)), (subject(3), row(2)),
    ]  # fmt: skip
    for about, opened in wrong:
        with pytest.raises(ObservationError):
            check_row(commit, kit.NETWORK, about, opened)
    copied = replace(commit, validator=other.address)
    with pytest.raises(ObservationError, match="not what was committed to"):
        check_row(copied, kit.NETWORK, subject(1), row(0))
    for change in ({"epoch": 1}, {"rubric": bytes(32)}):
        with pytest.raises(ObservationError, match="not what was committed to"):
            check_row(replace(commit, **change), kit.NETWORK, subject(1), row(0))


def test_rows_are_judged_together_as_one_by_one(kit):
    commit = batch(kit, kit.keys(1)[0], subject(1), subject(2), subject(3))
    right = [(subject(position + 1), row(position)) for position in range(3)]
    for some in ([], right, right[1:], right[::2]):
        assert opens(commit, kit.NETWORK, some)
        check_rows(commit, kit.NETWORK, some)
    for wrong, message in (
        ((subject(2), row(1, 5, 8)), "row 1 is not what was committed to"),
        ((subject(3), row(1)), "row 1 is not of"),
        ((subject(2), row(3)), "row 3 is not of"),
    ):
        some = [right[0], wrong, (subject(9), row(9))]
        assert not opens(commit, kit.NETWORK, some)
        with pytest.raises(ObservationError, match=message):
            check_rows(commit, kit.NETWORK, some)


@given(
    rows=st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.tuples(*[st.integers(0, 10**6)] * 3)), max_size=64)
)
def test_rows_come_back_as_they_went_in(rows):
    made = tuple(Row(position, salt, ppm) for position, (salt, ppm) in enumerate(rows))
    column = pack_rows(made)
    assert unpack_rows(column, 3) == made
    assert split_rows(column, 3) == [(each.position, pack_rows([each])) for each in made]
    assert len(column) == len(made) * row_bytes(3)


def test_an_excerpt_of_rows_is_the_one_that_is_read_from_their_column(kit):
    key = kit.keys(1)[0]
    signed = sign_commit(key, kit.NETWORK, batch(kit, key, subject(1)))
    rows = (row(0), row(3, 7, MISSING))
    excerpt = Excerpt.of(signed, rows)
    read = Excerpt(signed=signed, rows=pack_rows(rows))
    assert excerpt == read
    assert excerpt.opened(2) == read.opened(2) == rows
    assert Excerpt.of(signed, ()).opened(2) == ()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pack_rows([row(0)])[:-1], "not a multiple of 26"),
        (pack_rows([row(0), row(0)]), "row 0 after row 0"),
        (pack_rows([row(1), row(0)]), "row 0 after row 1"),
        (pack_rows([row(0, 5, 1_000_001)]), "the most is 1000000"),
    ],
)
def test_rows_that_are_none(column, message):
    with pytest.raises(ObservationError, match=message):
        unpack_rows(column, 2)
    if "the most" not in message:
        with pytest.raises(ObservationError, match=message):
            split_rows(column, 2)


def test_salts_are_the_same_after_a_restart_and_differ_otherwise(kit):
    key, other = kit.keys(2)
    secret = salt_secret(key, kit.NETWORK, 0)
    assert secret == salt_secret(key, kit.NETWORK, 0)
    others = [salt_secret(other, kit.NETWORK, 0), salt_secret(key, kit.NETWORK, 1), salt_secret(key, bytes(32), 0)]
    assert len({secret, *others}) == 4
    salts = {
        salt_of(s, rubric, bytes([i]) * 32)
        for s in (secret, others[0])
        for rubric in (RUBRIC, bytes(32))
        for i in (1, 2)
    }
    assert len(salts) == 8


def test_what_contradicts_what(kit):
    key, other = kit.keys(2)
    first = batch(kit, key, subject(1), subject(2))
    same_row = batch(kit, key, subject(2), rows=[row(1)], number=2)
    other_row = batch(kit, key, subject(2), rows=[Row(0, bytes([1]) * 16, (5, 8))], number=2)
    assert not contradict(first, first)
    assert not contradict(first, same_row), "the same integers again, after a log was lost"
    assert not contradict(first, batch(kit, key, subject(3), number=2))
    assert not contradict(first, batch(kit, other, subject(2), number=1))
    assert not contradict(first, replace(other_row, epoch=1))
    assert not contradict(first, replace(other_row, rubric=bytes(32)))
    for second in (
        other_row,
        batch(kit, key, subject(3)),
        batch(kit, key, subject(3), number=2, abstentions=abstain(2)),
    ):
        assert contradict(first, second)
        assert contradict(second, first)


def test_the_proof_of_an_equivocation_is_one_value_and_checks_itself(kit):
    key, other = kit.keys(2)
    one, two = (sign_commit(key, kit.NETWORK, batch(kit, key, subject(i))) for i in (1, 2))
    proof = conflict_of(one, two)
    assert proof == conflict_of(two, one)
    assert proof.offender == key.address
    proof.check(kit.NETWORK)
    with pytest.raises(EvidenceError, match="canonical order"):
        BatchConflict(first=proof.second, second=proof.first).check(kit.NETWORK)
    with pytest.raises(EvidenceError, match="canonical order"):
        conflict_of(one, one).check(kit.NETWORK)
    innocent = sign_commit(key, kit.NETWORK, batch(kit, key, subject(2), number=2))
    with pytest.raises(EvidenceError, match="do not contradict"):
        conflict_of(one, innocent).check(kit.NETWORK)
    forged = replace(two, signature=sign_commit(other, kit.NETWORK, two.commit).signature)
    with pytest.raises(SignatureError):
        conflict_of(one, forged).check(kit.NETWORK)


def test_the_largest_messages_fit_and_longer_ones_are_not_read(kit):
    (key,) = kit.keys(1)
    reasons = tuple(Abstention(record=bytes([i]) * 32, reason="x" * 80) for i in range(MAX_BATCH_RECORDS))
    largest = [
        sign_commit(key, kit.NETWORK, batch(kit, key, abstentions=reasons, number=i)) for i in (2**62, 2**62 - 1)
    ]
    payload = encode_observation(Commit(signed=largest[0]))
    assert len(payload) < MAX_OBSERVATION_BYTES
    assert decode_observation(payload).signed == largest[0]
    assert len(canonical.encode(conflict_of(*largest))) < MAX_EVIDENCE_BYTES
    with pytest.raises(EncodingError, match="the limit is"):
        decode_observation(bytes(MAX_OBSERVATION_BYTES + 1))
    with pytest.raises(EncodingError):
        decode_observation(encode_observation(Commit(signed=largest[0]))[:-1])


@pytest.mark.parametrize("reason", ["", "x" * 81, "line\nbreak", "umlaut ä", "end\n"])
def test_a_reason_is_short_and_printable(reason):
    value = Abstention(record=bytes(32), reason=reason)
    with pytest.raises(EncodingError):
        canonical.decode(canonical.encode(value), Abstention, limit_bytes=1000)
