"""What can go wrong in governance.

GovernanceError
├── LogError        (PeerFault) a Merkle log or proof that does not hold; a mismatch names both roots
├── ReceiptError    (PeerFault) a receipt that does not verify: names the step and the field
├── PolicyError     a policy or rubric that cannot be used
├── GenesisError    (UsageError) a genesis file that cannot be used
└── ChainError      (OwnFault)  the embedded chain cannot go on
"""

from __future__ import annotations

from nsllm.errors import NsllmError, OwnFault, PeerFault, UsageError


class GovernanceError(NsllmError):
    """Root of this room's errors."""

    code = "governance_error"


class LogError(GovernanceError, PeerFault):
    """A Merkle log or proof that does not hold."""

    code = "bad_log"


class ReceiptError(GovernanceError, PeerFault):
    """A receipt that does not verify."""

    code = "bad_receipt"


class PolicyError(GovernanceError):
    """A policy or rubric that cannot be used."""

    code = "bad_policy"


class GenesisError(GovernanceError, UsageError):
    """A genesis file that cannot be used."""

    code = "bad_genesis"


class ChainError(GovernanceError, OwnFault):
    """The embedded chain cannot go on."""

    code = "chain_error"
