"""What a peer says of a record now: asked for by whoever has a receipt that may be older than a revocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsllm.governance.genesis import Genesis


@dataclass(frozen=True, slots=True)
class Standing:
    """One peer's answer."""

    url: str
    height: int
    """Of its last block."""
    revoked_height: int | None
    """Proved from the genesis; None is the peer's word alone."""

    def line(self) -> str:
        """For people."""
        said = (
            "not revoked, on its word"
            if self.revoked_height is None
            else f"revoked at height {self.revoked_height}, proved"
        )
        return f"asked {self.url}, as of its height {self.height}: {said}"


def ask_standing(url: str, key: str, record: str, genesis: Genesis) -> Standing:
    """Ask the peer at `url` about a record (`0x…`); a revocation counts with its proof only.

    Raises:
        UnreachableApiError, RefusedError: no answer, or one about something else.
        ReceiptError: what the peer gave does not prove the revocation.
    """
    import trio

    from nsllm.cli.client import Api
    from nsllm.cli.errors import RefusedError
    from nsllm.governance.retraction import verify_notice
    from nsllm.ids import Digest

    async def ask() -> dict[str, Any]:
        async with Api(url, key) as api:
            return await api.get(f"/v1/records/{record}")

    found = trio.run(ask)
    notice, height = found.get("retraction"), found.get("height")
    if found.get("record") != record or not isinstance(height, int):
        raise RefusedError(f"the peer at {url} answered about something else")
    if notice is None:
        return Standing(url, height, None)
    return Standing(url, height, verify_notice(str(notice), Digest(bytes.fromhex(record[2:])), genesis))
