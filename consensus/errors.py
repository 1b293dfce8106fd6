"""What can go wrong in agreement.

ConsensusError
├── CertificateError    (PeerFault) a certificate that does not prove what it claims
├── BlockError          (PeerFault) a block that honest validators must refuse
├── VoteError           (PeerFault) a vote or proposal that is malformed or not its signer's
├── EvidenceError       (PeerFault) evidence that proves nothing
├── ObservationError    (PeerFault) an observation that is malformed, stale or not its signer's
├── GuardError          (OwnFault)  the signer guard refused to sign: it would contradict what was signed before
├── WalError            (OwnFault)  the write-ahead log is damaged beyond its torn tail
└── DivergenceError     (OwnFault)  our state differs from what a quorum certified: this validator halts
"""

from __future__ import annotations

from nsllm.errors import NsllmError, OwnFault, PeerFault


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


class GuardError(ConsensusError, OwnFault):
    """The signer guard refused to sign: it would contradict what was signed before."""

    code = "guard_refused"


class WalError(ConsensusError, OwnFault):
    """The write-ahead log is damaged beyond its torn tail."""

    code = "wal_damaged"


class DivergenceError(ConsensusError, OwnFault):
    """Our state differs from what a quorum certified: this validator halts."""

    code = "diverged"
