"""What can go wrong in agreement.

ConsensusError
├── CertificateError    (PeerFault) a certificate that does not prove what it claims
├── BlockError          (PeerFault) a block that honest validators must refuse
│   └── OmissionError               … in the first round: it leaves out observations, or takes in copied ones
├── VoteError           (PeerFault) a vote or proposal that is malformed or not its signer's
├── EvidenceError       (PeerFault) evidence that proves nothing
├── ObservationError    (PeerFault) an observation that is malformed, stale or not its signer's
│   └── BatchEquivocationError  … is one of two that contradict each other; carries the proof
├── GuardError          (OwnFault)  the signer guard refused to sign: it would contradict what was signed before
├── WalError            (OwnFault)  the write-ahead log is damaged beyond its torn tail
├── PrunedError                 blocks that were kept once and are no more: there is a snapshot instead
└── DivergenceError     (OwnFault)  our state differs from what a quorum certified: this validator halts
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsllm.errors import NsllmError, OwnFault, PeerFault
from nsllm.ids import hex0x

if TYPE_CHECKING:
    from nsllm.consensus.batch_conflict import BatchConflict
    from nsllm.ids import Height


class ConsensusError(NsllmError):
    """Root of this room's errors."""

    code = "consensus_error"


class CertificateError(ConsensusError, PeerFault):
    """A certificate that does not prove what it claims."""

    code = "bad_certificate"


class BlockError(ConsensusError, PeerFault):
    """A block that honest validators must refuse."""

    code = "bad_block"


class VoteError(ConsensusError, PeerFault):
    """A vote or proposal that is malformed or not its signer's."""

    code = "bad_vote"


class EvidenceError(ConsensusError, PeerFault):
    """Evidence that proves nothing."""

    code = "bad_evidence"


class ObservationError(ConsensusError, PeerFault):
    """An observation that is malformed, stale or not its signer's."""

    code = "bad_observation"


class BatchEquivocationError(ObservationError):
    """Observations by a validator that signed two batches which contradict each other.

    Args:
        conflict: the proof.
    """

    code = "observation_equivocation"

    def __init__(self, conflict: BatchConflict) -> None:
        numbers = sorted({conflict.first.commit.number, conflict.second.commit.number})
        super().__init__(f"{hex0x(conflict.offender)} contradicts itself in its batches {numbers}")
        self.conflict = conflict


class OmissionError(BlockError):
    """A first proposal that leaves out observations which its proposer must have had, or takes in what it must not."""

    code = "observations_left_out"


class GuardError(ConsensusError, OwnFault):
    """The signer guard refused to sign: it would contradict what was signed before."""

    code = "guard_refused"


class WalError(ConsensusError, OwnFault):
    """The write-ahead log is damaged beyond its torn tail."""

    code = "wal_damaged"


class PrunedError(ConsensusError):
    """Blocks that were kept once and are no more: a snapshot stands in their place.

    Args:
        kept_from: height of the oldest block that is left.
    """

    code = "pruned"

    def __init__(self, kept_from: Height) -> None:
        super().__init__(f"blocks below {kept_from} are pruned", hint="take a snapshot, or ask a peer that keeps all")
        self.kept_from = kept_from


class DivergenceError(ConsensusError, OwnFault):
    """Our state differs from what a quorum certified: this validator halts."""

    code = "diverged"
