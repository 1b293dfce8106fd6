"""What the API says of one record's standing, and of its removal by those who held it. Plain values, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nsllm import canonical
from nsllm.governance.ledger import Ledger
from nsllm.ids import Digest, Height, hex0x
from nsllm.node.removals import HolderRow


async def standing_view(ledger: Ledger, record: Digest) -> dict[str, Any]:
    """Certified or not, revoked or not, as of this peer's last block; a retraction with its proof."""
    notice = await ledger.proofs.retraction(record)
    proof = await ledger.proofs.scores(record)
    known = "certified" if proof is not None else "unknown"
    return {
        "object": "record",
        "record": hex0x(record),
        "state": "revoked" if notice is not None else known,
        "height": ledger.height,
        "certified_height": proof[2].header.height if proof is not None else None,
        "revoked_height": notice.proof.height if notice is not None else None,
        "retraction": canonical.to_json(notice) if notice is not None else None,
    }


def removals_view(record: Digest, retracted: Height | None, rows: Sequence[HolderRow]) -> dict[str, Any]:
    """Which members have signed that they removed it; `complete` if all that store records have."""
    return {
        "object": "removals",
        "record": hex0x(record),
        "revoked_height": retracted,
        "complete": retracted is not None and all(row.verdict == "removed" for row in rows),
        "holders": [
            {
                "holder": hex0x(row.holder),
                "verdict": row.verdict,
                "detail": row.detail,
                "height": row.statement.removal.height if row.statement is not None else None,
                "time_ms": row.statement.removal.time_ms if row.statement is not None else None,
                "statement": canonical.to_json(row.statement) if row.statement is not None else None,
            }
            for row in rows
        ],
    }
