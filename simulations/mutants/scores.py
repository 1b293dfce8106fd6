"""Directed liars about scores: f of the observations are theirs, and the result must stay among the honest ones."""

from __future__ import annotations

from functools import partial
from typing import Final

from nsllm.consensus.batch import (
    Abstention,
    BatchCommit,
    Excerpt,
    Row,
    pack_rows,
    row_commitment,
    salt_of,
    sign_commit,
)
from nsllm.consensus.errors import ObservationError
from nsllm.consensus.observation import Subject, agree, pack_subjects
from nsllm.consensus.settlement import Terms, check_openings, settle
from nsllm.crypto import MemberKey
from nsllm.ids import ZERO_DIGEST, Digest, Epoch
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import NETWORK, make_keys, make_set

RECORD: Final = Digest(bytes([9] * 32))


def liars_do_not_move_a_score() -> None:
    """As many observations as a score needs, f of them as low or as high as can be, chosen by a leader."""
    honest = [500_000 + 10_000 * i for i in range(13)]
    for size in range(1, 14):
        validators = make_set(make_keys(size))
        enough, liars = validators.enough_observations, validators.faults
        for lie in (0, 1_000_000):
            truthful = honest[: enough - liars]
            said = zip(validators.members, [*truthful, *[lie] * liars], strict=False)
            leaf = agree(_subject(make_keys(1)[0]), ZERO_DIGEST, ("quality",), [(who, (ppm,)) for who, ppm in said])
            agreed = leaf.scores[0].ppm
            holds(
                min(truthful) <= agreed <= max(truthful),
                f"{liars} of {size} validators give {agreed} ppm, honest ones {truthful}",
            )


def a_score_needs_enough_observers() -> None:
    """Two of four validators observe a record, then three."""
    keys = make_keys(4)
    batches = sorted((_observing(key) for key in keys[:3]), key=_place)
    holds(settle(_subjects(), b"", batches, _terms(keys)).leaves, "three of four settle a score")
    refused(
        ObservationError, partial(settle, _subjects(), b"", batches[:2], _terms(keys)), "two of four settle a score"
    )


def a_row_is_what_was_committed_to() -> None:
    """A validator opens another integer than it committed to."""
    keys = make_keys(4)
    check_openings(_subjects(), [_observing(keys[0])], _terms(keys))
    other = _observing(keys[0], shown_ppm=1_000_000)
    refused(ObservationError, partial(check_openings, _subjects(), [other], _terms(keys)), "a score was changed")


def one_abstention_settles_nothing() -> None:
    """One of four abstains, then two."""
    keys = make_keys(4)
    batches = sorted((_abstaining(key) for key in keys[:2]), key=_place)
    holds(settle(b"", RECORD, batches, _terms(keys)).unscored, "two of four leave a record unscored")
    refused(ObservationError, partial(settle, b"", RECORD, batches[:1], _terms(keys)), "one of four forbids a score")


def _terms(keys: list[MemberKey]) -> Terms:
    return Terms(NETWORK, make_set(keys), ZERO_DIGEST, ("quality",))


def _subject(key: MemberKey) -> Subject:
    return Subject(RECORD, key.address, ZERO_DIGEST)


def _subjects() -> bytes:
    return pack_subjects([_subject(make_keys(1)[0])])


def _place(excerpt: Excerpt) -> tuple[bytes, int]:
    return excerpt.signed.commit.validator, excerpt.signed.commit.number


def _observing(key: MemberKey, *, shown_ppm: int = 500_000) -> Excerpt:
    """A batch of one record, committed to with 500,000 ppm."""
    subject, salt = _subject(make_keys(1)[0]), salt_of(b"secret", ZERO_DIGEST, RECORD)
    hidden = row_commitment(NETWORK, key.address, Epoch(0), ZERO_DIGEST, subject, Row(0, salt, (500_000,)))
    commit = BatchCommit(
        validator=key.address, epoch=Epoch(0), number=1, rubric=ZERO_DIGEST, records=RECORD, commitments=hidden
    )
    return Excerpt(signed=sign_commit(key, NETWORK, commit), rows=pack_rows([Row(0, salt, (shown_ppm,))]))


def _abstaining(key: MemberKey) -> Excerpt:
    commit = BatchCommit(
        validator=key.address,
        epoch=Epoch(0),
        number=1,
        rubric=ZERO_DIGEST,
        records=b"",
        commitments=b"",
        abstentions=(Abstention(record=RECORD, reason="no encoder"),),
    )
    return Excerpt(signed=sign_commit(key, NETWORK, commit), rows=b"")
