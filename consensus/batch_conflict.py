"""Two commits that no honest validator signs both: the proof of equivocation about observations."""

from __future__ import annotations

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.consensus.batch import BatchCommit, SignedCommit
from nsllm.consensus.errors import EvidenceError
from nsllm.ids import Address, NetworkId, hex0x


class BatchConflict(Value, frozen=True, kw_only=True, tag_field="type", tag="double_batch"):
    """Two signed commits of one validator that contradict each other, in ascending order of their canonical bytes.

    A commit's signature covers all of it, so both stand here whole: about 20 kB for the largest pair.
    """

    first: SignedCommit
    second: SignedCommit

    @property
    def offender(self) -> Address:
        """Who signed both."""
        return self.first.commit.validator

    def check(self, network: NetworkId) -> None:
        """Pass silently if this proves equivocation.

        Raises:
            EvidenceError: the commits agree, or do not stand in canonical order.
            ObservationError: a commit that is malformed.
            SignatureError: the validator did not sign both.
        """
        if canonical.encode(self.first) >= canonical.encode(self.second):
            raise EvidenceError("conflicting batches do not stand in canonical order")
        if not contradict(self.first.commit, self.second.commit):
            raise EvidenceError(f"two batches of {hex0x(self.offender)} that do not contradict each other")
        self.first.check(network)
        self.second.check(network)


def conflict_of(one: SignedCommit, other: SignedCommit) -> BatchConflict:
    """The proof, in canonical order."""
    first, second = sorted((one, other), key=canonical.encode)
    return BatchConflict(first=first, second=second)


def contradict(one: BatchCommit, other: BatchCommit) -> bool:
    """Whether a validator that signed both has equivocated.

    It has if two different batches have one number, if it committed to two different rows for a record, or if it
    observed a record and abstained from it too. Only within an epoch and a rubric: later ones judge anew.
    """
    if (one.validator, one.epoch) != (other.validator, other.epoch) or one == other:
        return False
    if one.number == other.number:
        return True
    if one.rubric != other.rubric:
        return False
    if one.abstained & other.position_of.keys() or other.abstained & one.position_of.keys():
        return True
    both = one.position_of.keys() & other.position_of.keys()
    return any(one.commitment_at(one.position_of[r]) != other.commitment_at(other.position_of[r]) for r in both)
