"""What a block's batches settle: for each record a score leaf, or that it stays unscored. Pure: all find the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import lt

from nsllm.consensus.batch import Excerpt, Row, check_rows
from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import ScoreLeaf, Subject, Unscored, agree, unpack_digests, unpack_subjects
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address, Digest, NetworkId, hex0x, short


@dataclass(frozen=True, slots=True)
class Settlement:
    """Scores, and records that cannot be scored; each ascending by record."""

    leaves: tuple[ScoreLeaf, ...]
    unscored: tuple[Unscored, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which a block's batches are judged."""

    network: NetworkId
    validators: ValidatorSet
    rubric: Digest
    dimensions: tuple[str, ...]


def settle(subjects: bytes, unscored: bytes, batches: Sequence[Excerpt], terms: Terms) -> Settlement:
    """Scores of the records in `subjects` and the proof that those in `unscored` have none.

    Args:
        subjects: column of the scored records' subjects, ascending by record.
        unscored: column of record digests, ascending.
        batches: ascending by (validator, number); every row opens its commitment.
        terms: of the epoch.

    Raises:
        ObservationError: out of order, a row that opens nothing, a validator twice about one record, too few
            observations or abstentions, or a batch that says nothing about these records.
    """
    scored = {subject.record: subject for subject in _ascending(unpack_subjects(subjects))}
    without = unpack_digests(unscored)
    if not _ascend(without) or not scored.keys().isdisjoint(without):
        raise ObservationError("unscored records stand in ascending order, once, and are not scored too")
    rows: dict[Digest, list[tuple[Address, tuple[int, ...]]]] = {record: [] for record in scored}
    abstainers: dict[Digest, list[Address]] = {record: [] for record in without}
    _check_order(batches)
    for excerpt in batches:
        _count(excerpt, scored, rows, abstainers, terms)
    enough, faults = terms.validators.enough_observations, terms.validators.faults
    for record, found in rows.items():
        if len(found) < enough:
            raise ObservationError(f"record {hex0x(record)} has {len(found)} observations, {enough} are needed")
    for record, by in abstainers.items():
        if len(set(by)) <= faults:
            raise ObservationError(f"record {hex0x(record)} has {len(set(by))} abstentions, over {faults} are needed")
    return Settlement(
        leaves=tuple(agree(subject, terms.rubric, terms.dimensions, rows[r]) for r, subject in scored.items()),
        unscored=tuple(
            Unscored(record=record, rubric=terms.rubric, abstainers=tuple(sorted(set(by))))
            for record, by in abstainers.items()
        ),
    )


def open_rows(excerpt: Excerpt, scored: dict[Digest, Subject], dimensions: int) -> list[tuple[Subject, Row]]:
    """The excerpt's rows with what each is about.

    Raises:
        ObservationError: malformed, or of a record that the block does not score.
    """
    records = excerpt.signed.commit.record_digests
    try:
        return [(scored[records[row[0]]], row) for row in excerpt.opened(dimensions)]
    except (IndexError, KeyError):
        raise _of_no_record(excerpt, scored, dimensions) from None


def _of_no_record(excerpt: Excerpt, scored: dict[Digest, Subject], dimensions: int) -> ObservationError:
    """Names the first row that is not of a record which the block scores."""
    commit, rows = excerpt.signed.commit, excerpt.opened(dimensions)
    records = commit.record_digests
    beyond = [row.position for row in rows if row.position >= len(records) or records[row.position] not in scored]
    name = f"batch {commit.number} of {hex0x(commit.validator)}"
    return ObservationError(f"{name}: row {beyond[0]} is of no record that the block scores")


def check_openings(subjects: bytes, batches: Sequence[Excerpt], terms: Terms) -> None:
    """Pass silently if every row opens its commitment.

    Raises:
        ObservationError: names batch and row.
    """
    if not batches:
        return
    scored = {subject.record: subject for subject in unpack_subjects(subjects)}
    for excerpt in batches:
        check_rows(excerpt.signed.commit, terms.network, open_rows(excerpt, scored, len(terms.dimensions)))


def _count(
    excerpt: Excerpt,
    scored: dict[Digest, Subject],
    rows: dict[Digest, list[tuple[Address, tuple[int, ...]]]],
    abstainers: dict[Digest, list[Address]],
    terms: Terms,
) -> None:
    commit, opened = excerpt.signed.commit, excerpt.opened(len(terms.dimensions))
    records, validator = commit.record_digests, commit.validator
    try:
        for position, _, ppm in opened:
            found = rows[records[position]]
            if found and found[-1][0] == validator:
                raise ObservationError(f"{hex0x(validator)} observes {short(records[position])} in two batches")
            found.append((validator, ppm))
    except (IndexError, KeyError):
        raise _of_no_record(excerpt, scored, len(terms.dimensions)) from None
    relevant = [record for record in commit.abstained if record in abstainers]
    for record in relevant:
        abstainers[record].append(commit.validator)
    if not opened and not relevant:
        name = f"batch {commit.number} of {hex0x(commit.validator)}"
        raise ObservationError(f"{name} says nothing about the block's records")


def _ascending(subjects: tuple[Subject, ...]) -> tuple[Subject, ...]:
    if not _ascend([subject.record for subject in subjects]):
        raise ObservationError("scored records do not stand in ascending order, each once")
    return subjects


def _check_order(batches: Sequence[Excerpt]) -> None:
    places = [(excerpt.signed.commit.validator, excerpt.signed.commit.number) for excerpt in batches]
    if places != sorted(set(places)):
        raise ObservationError("batches do not stand in ascending order of validator and number, each once")


def _ascend(records: Sequence[Digest]) -> bool:
    """Does each stand once, in ascending order?"""
    return all(map(lt, records, records[1:]))
