"""Where the peer of a data folder serves: written down while it runs, whatever flags it was started with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nsllm.node.config import PeerConfig

API_FILE: Final = "api.url"
MAX_URL_BYTES: Final = 512


def api_url(config: PeerConfig) -> str:
    """The address of the API that these settings make, as this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.api.host, config.api.host)  # noqa: S104 - not bound
    return f"http://[{host}]:{config.api.port}" if ":" in host else f"http://{host}:{config.api.port}"


@contextmanager
def running_at(data_dir: Path, url: str) -> Iterator[None]:
    """Other commands find the peer of `data_dir` at `url` while this context is open."""
    from nsllm.files import write_atomic

    path = data_dir / API_FILE
    write_atomic(path, f"{url}\n".encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running_url(data_dir: Path) -> str | None:
    """Where the peer of `data_dir` serves, or served when it was killed; None if it was stopped or never ran."""
    from nsllm.files import read_bounded

    path = data_dir / API_FILE
    if not path.exists():
        return None
    url = read_bounded(path, limit_bytes=MAX_URL_BYTES).decode("ascii", "replace").strip()
    return url if url.startswith("http://") else None
