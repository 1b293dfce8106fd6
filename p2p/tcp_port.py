"""Whether a TCP port of this machine has a listener."""

from __future__ import annotations

import socket


def is_free(host: str, port: int) -> bool:
    """Whether a listener could bind `port` on `host` now; True for port 0.

    Binds and does not listen. A process that another thread starts at this moment holds a copy of the probe until it
    executes its program (fork(2), execve(2)): a listening copy would keep the port from us for that long.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As listeners do: a connection that lingers in TIME_WAIT is no hindrance, another listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
