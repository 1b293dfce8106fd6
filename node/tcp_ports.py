"""TCP ports of this machine: found busy before anything starts, chosen below the range of outgoing connections."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from nsllm.node.errors import PortError
from nsllm.p2p.tcp_port import is_free

TRIES: Final = 512
EPHEMERAL_FROM: Final = 32768
"""Linux hands out ports from here on to outgoing connections (ip_local_port_range): a restart could find them taken."""


def any_free(host: str) -> int:
    """A port that the system picks, as for a listener on port 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, ports: Iterable[int], hint: str) -> None:
    """Pass silently if all `ports` are free.

    Raises:
        PortError: names every busy one.
    """
    busy = [port for port in ports if port and not is_free(host, port)]
    if busy:
        names = ", ".join(map(str, busy))
        raise PortError(f"in use on {host}: port {names}", hint=hint)


def choose(host: str, first: int, *, count: int = 1, avoid: Iterable[int] = ()) -> tuple[int, ...]:
    """`count` free ports, looked for from `first` upwards.

    Raises:
        PortError: there are not that many below the ephemeral range.
    """
    taken = set(avoid)
    found: list[int] = []
    for port in range(first, min(first + TRIES, EPHEMERAL_FROM)):
        if len(found) == count:
            break
        if port not in taken and is_free(host, port):
            found.append(port)
    if len(found) < count:
        raise PortError(
            f"{len(found)} of {count} free ports found from {first} on {host}", hint="choose another base port"
        )
    return tuple(found)
