"""Settings of the HTTP side: where it listens, who may ask, and the bounds on what is asked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from nsllm.node.config import DEFAULT_PORT, is_loopback
from nsllm.node.errors import ConfigError

MIN_KEY_CHARS = 16


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How the API listens and what it accepts; checked when it is made.

    Raises:
        ConfigError: a bind beyond loopback without a key, or a value out of range.
    """

    host: str = "127.0.0.1"
    """IP address (or `localhost`) to listen on."""
    port: int = DEFAULT_PORT
    """0 lets the system choose; `ApiServer.run` tells which."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer key for inference and reading; required beyond loopback, at least 16 characters."""
    admin_key: str | None = field(default=None, repr=False)
    """The data folder's admin key; None: no admin endpoint can be used."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may name besides loopback (and, beyond loopback, IP addresses)."""
    max_body_bytes: int = 9 * 1024 * 1024
    """Room for attachments of 6 MiB in base64 (`nsllm.node.attachments.attached`)."""
    body_timeout_s: float = 30.0
    """A request body that takes longer is refused with 408."""
    chat_queue_events: int = 64
    """Chat events in flight to one client before its generation waits."""
    page_queue_events: int = 256
    """Page events in flight to one client before the oldest go."""
    heartbeat_s: float = 15.0
    """A comment line goes to a streaming client that has got nothing for so long: proxies cut idle connections."""
    max_event_clients: int = 32
    event_keepalive_s: float = 15.0
    """A comment line goes to an idle `/events` client this often."""
    receipt_wait_max_s: float = 60.0
    """Longest `timeout_s` of a receipt's long poll."""
    stop_timeout_s: float = 0.5
    """How long handlers may take to end at shutdown before they are cancelled; the whole stop stays below 1 s."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} is not in 0..65535")
        if self.host != "localhost" and not _is_address(self.host):
            raise ConfigError(
                f"host {self.host!r} is not an IP address", hint="use 127.0.0.1, ::1, 0.0.0.0 or an interface's address"
            )
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes {self.max_body_bytes} is below 1024")
        if self.api_key is not None and (
            len(self.api_key) < MIN_KEY_CHARS or not self.api_key.isascii() or not self.api_key.isprintable()
        ):
            raise ConfigError(
                f"the API key of {len(self.api_key)} characters cannot be used",
                hint=f"choose at least {MIN_KEY_CHARS} printable ASCII characters",
            )
        if not self.loopback and self.api_key is None:
            raise ConfigError(
                f"will not listen on {self.host} without an API key: anybody who reaches it could ask, and read",
                hint="set an API key, or listen on 127.0.0.1",
            )

    @property
    def loopback(self) -> bool:
        """True if only this machine reaches the address."""
        return is_loopback(self.host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
