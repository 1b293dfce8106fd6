"""Directed double talk about observations: whoever signs two batches that contradict each other must be found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from nsllm.consensus.batch import Abstention, BatchCommit, SignedCommit, sign_commit
from nsllm.consensus.batch_conflict import BatchConflict, conflict_of
from nsllm.consensus.block import Body
from nsllm.consensus.errors import EvidenceError
from nsllm.consensus.evidence import Evidence, check_evidence, offence_of
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.errors import PeerFault, SignatureError
from nsllm.governance.block_rules import BlockRules
from nsllm.governance.log_entry import evidence_entry
from nsllm.governance.offences import check_offence
from nsllm.ids import ZERO_DIGEST, Address, Digest, Epoch, Height, TimeMs
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import NETWORK, START_MS, make_genesis, make_keys, make_set

ONE, OTHER = (Digest(bytes([byte] * 32)) for byte in (1, 2))
EXPIRES_HEIGHTS: Final = 5
ENDED: Final = Height(10)


def two_batches_are_an_offence() -> None:
    """Two batches of one number; two rows of one record; a row of a record, and an abstention from it."""
    key, validators = make_keys(4)[0], make_set(make_keys(4))
    first = _signed(key, 1, ONE)
    for second in (_signed(key, 1, OTHER), _signed(key, 2, ONE, row=OTHER), _signed(key, 2, abstained=ONE)):
        evidence = conflict_of(first, second)
        _admitted(
            partial(check_evidence, evidence, NETWORK, validators), "two batches that contradict each other convict"
        )
        holds(offence_of(evidence).kind == "double_batch", "two batches that contradict each other are evidence")
        holds(evidence == conflict_of(second, first), "evidence is the same whoever found it")


def innocent_batches_prove_nothing() -> None:
    """Two batches about two records; the same row in two batches; a second batch that somebody else signed."""
    keys = make_keys(4)
    first = _signed(keys[0], 1, ONE)
    check = partial(check_evidence, network=NETWORK, validators=make_set(keys))
    for second in (_signed(keys[0], 2, OTHER), _signed(keys[0], 2, ONE)):
        refused(EvidenceError, partial(check, conflict_of(first, second)), "honest batches convict")
    real = _signed(keys[0], 1, OTHER)
    forged = SignedCommit(commit=real.commit, signature=keys[1].sign(real.commit.digest(NETWORK)))
    refused(SignatureError, partial(check, conflict_of(first, forged)), "a batch convicts whom it names, unsigned")


def evidence_of_batches_expires() -> None:
    """While its epoch goes on it is admitted; after the epoch's end for a while."""
    evidence = _evidence(make_keys(4)[0])
    for ended, height, admitted in (
        (None, 1_000_000, True),
        (ENDED, ENDED + EXPIRES_HEIGHTS, True),
        (ENDED, ENDED + EXPIRES_HEIGHTS + 1, False),
    ):
        check = partial(
            check_offence,
            evidence,
            _Past(ended),
            network=NETWORK,
            height=Height(height),
            expires_heights=EXPIRES_HEIGHTS,
        )
        if admitted:
            _admitted(check, "evidence of batches is admitted in time")
        else:
            refused(EvidenceError, check, "evidence of batches is admitted for ever")


def a_conviction_costs_the_weight() -> None:
    """The block that holds evidence ends the epoch, and its offender validates no more."""
    keys = make_keys(4)
    rules = BlockRules.founding(make_genesis(keys))
    real = _evidence(keys[0])
    body = Body(entries=(evidence_entry(real),))
    outcome = rules.outcome(rules.first_parent(), body, keys[1].address, TimeMs(START_MS + 1))
    after = outcome.change.validators.members if outcome.change is not None else ()
    holds(set(after) == {key.address for key in keys[1:]}, f"{len(after)} of 4 validators go on without the offender")


def _admitted(check: Callable[[], object], what: str) -> None:
    try:
        check()
    except PeerFault as error:
        raise InvariantError(f"{what}: {error}") from None


@dataclass(frozen=True)
class _Past:
    """Of an epoch that ended, or goes on."""

    end: Height | None

    def validators_of(self, epoch: Epoch) -> ValidatorSet:
        return make_set(make_keys(4), epoch)

    def ended(self, _epoch: Epoch) -> Height | None:
        return self.end

    def is_convicted(self, _validator: Address, _epoch: Epoch) -> bool:
        return False


def _evidence(key: MemberKey) -> Evidence:
    found: BatchConflict = conflict_of(_signed(key, 1, ONE), _signed(key, 1, OTHER))
    return found


def _signed(
    key: MemberKey, number: int, record: Digest | None = None, *, row: Digest = ONE, abstained: Digest | None = None
) -> SignedCommit:
    commit = BatchCommit(
        validator=key.address,
        epoch=Epoch(0),
        number=number,
        rubric=ZERO_DIGEST,
        records=b"" if record is None else record,
        commitments=b"" if record is None else row,
        abstentions=() if abstained is None else (Abstention(record=abstained, reason="no encoder"),),
    )
    return sign_commit(key, NETWORK, commit)
