"""Whether a block's scores are what its rows say: computed again, without the code that computes them in a peer."""

from __future__ import annotations

from typing import Final

from nsllm.consensus.block import Block
from nsllm.consensus.observation import MISSING, ScoreLeaf, Subject, unpack_subjects
from nsllm.consensus.settlement import Terms
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import PeerFault
from nsllm.governance.policy import Rubric
from nsllm.governance.settled import settled_body
from nsllm.ids import Address, Digest, NetworkId, hex0x
from nsllm.simulations.errors import InvariantError

MAX_FAULTS_OF: Final = 3
"""One of so many validators beyond the first may be faulty."""

Found = dict[Digest, dict[Address, tuple[int, ...]]]
"""Opened rows by record and validator."""


def check_scores(
    block: Block, network: NetworkId, validators: ValidatorSet, rubric: Rubric, byzantine: frozenset[Address]
) -> int:
    """How many scores stand in a block; each is the lower median of n-f rows or more, and one that honest ones found.

    Args:
        block: decided.
        network: salt of its commitments.
        validators: of its epoch.
        rubric: of its epoch.
        byzantine: validators whose rows may be lies.

    Raises:
        InvariantError: a row of a stranger, a validator twice, too few rows, another median, or one that no two honest
            rows lie around.
    """
    where = f"block {block.header.height}"
    found = _rows(block, validators, len(rubric.dimensions), where)
    terms = Terms(network, validators, rubric.digest(), rubric.dimensions)
    try:
        settled = settled_body(block.body, terms)
    except PeerFault as error:
        raise InvariantError(f"{where} settles nothing: {error.message}") from None
    if settled.scores_root != block.header.scores_root:
        raise InvariantError(f"{where} certifies other scores than its rows give")
    subjects = unpack_subjects(block.body.subjects)
    if len(subjects) != len(settled.leaves):
        raise InvariantError(f"{where} scores {len(settled.leaves)} of {len(subjects)} records")
    for subject, leaf in zip(subjects, settled.leaves, strict=True):
        _check(subject, leaf, found.get(subject.record, {}), validators, rubric, byzantine, where)
    return sum(len(leaf.scores) for leaf in settled.leaves)


def _rows(block: Block, validators: ValidatorSet, dimensions: int, where: str) -> Found:
    found: Found = {}
    for excerpt in block.body.batches:
        commit = excerpt.signed.commit
        if commit.validator not in validators.members:
            raise InvariantError(f"{where} holds rows of {hex0x(commit.validator)}, who does not validate")
        for row in excerpt.opened(dimensions):
            rows = found.setdefault(commit.record_digests[row.position], {})
            if commit.validator in rows:
                raise InvariantError(f"{where} holds two rows of {hex0x(commit.validator)} for one record")
            rows[commit.validator] = tuple(row.ppm)
    return found


def _check(
    subject: Subject,
    leaf: ScoreLeaf,
    rows: dict[Address, tuple[int, ...]],
    validators: ValidatorSet,
    rubric: Rubric,
    byzantine: frozenset[Address],
    where: str,
) -> None:
    members = len(validators.members)
    needed = members - (members - 1) // MAX_FAULTS_OF
    name = f"{where}, record {hex0x(subject.record)[:18]}"
    if len(rows) < needed or leaf.record != subject.record:
        raise InvariantError(f"{name}: scored by {len(rows)} validators, {needed} are needed")
    medians: dict[str, int] = {}
    for number, dimension in enumerate(rubric.dimensions):
        median = sorted(row[number] for row in rows.values())[(len(rows) + 1) // 2 - 1]
        if median == MISSING:
            continue
        medians[dimension] = median
        honest = [row[number] for validator, row in rows.items() if validator not in byzantine]
        if not min(honest) <= median <= max(honest):
            raise InvariantError(
                f"{name}: {dimension} is {median} ppm, honest ones found {min(honest)} to {max(honest)}"
            )
    if {score.name: score.ppm for score in leaf.scores} != medians:
        raise InvariantError(f"{name}: the scores are not the lower medians of its rows")
