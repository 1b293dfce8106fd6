"""Signs this validator's batches: a commitment and a salt for each row, one signature for all."""

from __future__ import annotations

from collections.abc import Sequence

from nsllm.consensus.batch import (
    Abstention,
    BatchCommit,
    BatchReveal,
    Row,
    SignedCommit,
    pack_rows,
    row_commitments,
    salt_of,
    salt_secret,
    sign_commit,
    unpack_rows,
)
from nsllm.consensus.observation import Subject, pack_subjects, unpack_subjects
from nsllm.consensus.settlement import Terms
from nsllm.crypto import MemberKey
from nsllm.ids import Digest, Epoch
from nsllm.node.own_batches import Opened


class BatchSigner:
    """Makes batches with one member key."""

    def __init__(self, key: MemberKey) -> None:
        self._key = key
        self._secret: tuple[Epoch, bytes] | None = None

    def sign(
        self,
        terms: Terms,
        number: int,
        rows: Sequence[tuple[Subject, tuple[int, ...]]],
        abstentions: Sequence[tuple[Digest, str]],
    ) -> tuple[SignedCommit, list[Opened]]:
        """A batch under `terms`, and its rows as they will be opened.

        Args:
            terms: of the present epoch.
            number: of the batch.
            rows: what was observed, ascending by record.
            abstentions: (record, reason), ascending.
        """
        network, rubric, epoch = terms.network, terms.rubric, terms.validators.epoch
        if self._secret is None or self._secret[0] != epoch:
            self._secret = (epoch, salt_secret(self._key, network, epoch))
        secret, address = self._secret[1], self._key.address
        opened = [
            (subject, Row(position, salt_of(secret, rubric, subject.record), ppm))
            for position, (subject, ppm) in enumerate(rows)
        ]
        commit = BatchCommit(
            validator=address,
            epoch=epoch,
            number=number,
            rubric=rubric,
            records=b"".join([subject.record for subject, _ in opened]),
            commitments=b"".join(row_commitments(network, address, epoch, rubric, opened)),
            abstentions=tuple(Abstention(record=record, reason=reason) for record, reason in abstentions),
        )
        return sign_commit(self._key, network, commit), opened


def reveal_of(commit: BatchCommit, opened: Sequence[Opened]) -> BatchReveal:
    """Rows of a batch as they are sent and stored; ascending by position."""
    return BatchReveal(
        validator=commit.validator,
        epoch=commit.epoch,
        number=commit.number,
        rows=pack_rows([row for _, row in opened]),
        subjects=pack_subjects([subject for subject, _ in opened]),
    )


def opened_by(reveal: BatchReveal, dimensions: int) -> list[Opened]:
    """The rows that `reveal_of` packed.

    Raises:
        ObservationError: see `unpack_rows`.
    """
    return list(zip(unpack_subjects(reveal.subjects), unpack_rows(reveal.rows, dimensions), strict=True))
