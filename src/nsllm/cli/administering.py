"""A running peer's admin side, asked with the admin key of its data folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nsllm.node.config import PeerConfig

ANSWER_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Admin:
    """Where a peer serves, and what opens its admin side."""

    config: PeerConfig
    url: str
    admin_key: str = field(repr=False)

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = ANSWER_S
    ) -> dict[str, Any]:
        """What the peer says.

        Raises:
            UnreachableApiError, RefusedError.
        """
        import trio

        from nsllm.cli.client import Api

        async def ask() -> dict[str, Any]:
            async with Api(self.url, self.config.api.key) as peer:
                return await peer.administer(method, path, self.admin_key, body, timeout_s=timeout_s)

        return trio.run(ask)


def admin_of(data_dir: Path, api: str | None) -> Admin:
    """The peer of a data folder.

    Raises:
        NsllmError: no settings or key there.
    """
    from nsllm.cli.running import api_url, running_url
    from nsllm.node.identity import read_admin_key
    from nsllm.node.settings import load_config

    config = load_config(data_dir)
    admin_key = read_admin_key(config.data_dir)
    return Admin(config, api or running_url(config.data_dir) or api_url(config), admin_key)
