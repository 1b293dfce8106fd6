"""What can go wrong in governance.

GovernanceError
├── LogError        (PeerFault) a Merkle log or proof that does not hold; a mismatch names both roots
├── ReceiptError    (PeerFault) a receipt that does not verify: names the step and the field
├── SnapshotError   (PeerFault) a snapshot that is not the certified one
├── MotionError     (BlockError) a governance transaction that may not stand in a block
├── PolicyError     a policy or rubric that cannot be used
├── GenesisError    (UsageError) a genesis file that cannot be used
├── ChainError      (OwnFault)  the embedded chain cannot go on
├── ChainRefusal    (BlockError) a block's EVM transactions that honest validators refuse
├── NotAnchoredError a proof was asked for a log size that has no anchor
├── LedgerError     (OwnFault)  the ledger was asked for what it cannot do
├── StorageError    (OwnFault)  a database file is full, locked, or another network's
│   └── DamageError             … is damaged: it can be moved aside and filled again
├── UnscoredError   a record that will have no scores: too many validators abstained
├── MissedError     a record of ours was settled in a block that this peer never had
├── AbstainError    this validator cannot score a record under the rubric in force: it abstains and says why
└── SafetyUnavailableError  (OwnFault)  a safety layer cannot answer: text is withheld until it can (the API's 503)
"""

from __future__ import annotations

from nsllm.consensus.errors import BlockError
from nsllm.errors import NsllmError, OwnFault, PeerFault, UsageError


class GovernanceError(NsllmError):
    """Root of this room's errors."""

    code = "governance_error"


class LogError(GovernanceError, PeerFault):
    """A Merkle log or proof that does not hold."""

    code = "bad_log"


class ReceiptError(GovernanceError, PeerFault):
    """A receipt that does not verify.

    Args:
        message: what was wrong, with both values.
        step: the verification step that failed, as `nsllm.governance.verify.STEPS` names it.
        field: path of the field, such as `certificate.precommits[2]`.
    """

    code = "bad_receipt"

    def __init__(self, message: str, *, hint: str = "", step: str = "", field: str = "") -> None:
        where = f"{step}: {field}: " if step and field else ""
        super().__init__(where + message, hint=hint)
        self.step = step
        self.field = field


class SnapshotError(GovernanceError, PeerFault):
    """A snapshot, or a chunk of one, that is not what a certified header commits to."""

    code = "bad_snapshot"


class MotionError(GovernanceError, BlockError):
    """A governance transaction that may not stand in a block: what it asks for, or who approved it."""

    code = "bad_motion"


class PolicyError(GovernanceError):
    """A policy or rubric that cannot be used."""

    code = "bad_policy"


class GenesisError(GovernanceError, UsageError):
    """A genesis file that cannot be used."""

    code = "bad_genesis"


class ChainError(GovernanceError, OwnFault):
    """The embedded chain cannot go on."""

    code = "chain_error"


class ChainRefusal(GovernanceError, BlockError):  # noqa: N818 - says what we do, not what went wrong
    """A block's EVM transactions are not what honest validators execute: refuse the block."""

    code = "chain_refusal"


class NotAnchoredError(GovernanceError):
    """The chain holds no anchor for that log size: anchors stand at the sizes of anchored headers only."""

    code = "not_anchored"


class LedgerError(GovernanceError, OwnFault):
    """The ledger was asked for what it cannot do here, such as a proposal without a key."""

    code = "ledger_error"


class StorageError(GovernanceError, OwnFault):
    """A database file is full, locked, or another network's; what was being stored was not."""

    code = "storage_error"


class DamageError(StorageError):
    """A database file is damaged: it can be moved aside and filled again."""

    code = "storage_damaged"


class UnscoredError(GovernanceError):
    """A record that will have no scores, because too many validators abstained; a block settled that."""

    code = "unscored"


class MissedError(GovernanceError):
    """A record of ours that was settled in a block which this peer never had."""

    code = "missed"


class AbstainError(GovernanceError):
    """This validator cannot score a record under the rubric in force; the message is the reason to report."""

    code = "abstained"


class SafetyUnavailableError(GovernanceError, OwnFault):
    """A safety layer cannot answer, so nothing passes it: the caller gets a 503 and may retry."""

    code = "safety_unavailable"
