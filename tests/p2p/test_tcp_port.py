"""Free and taken TCP ports."""

from __future__ import annotations

import os
import socket

import pytest

from nsllm.p2p import tcp_port
from nsllm.p2p.tcp_port import is_free

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def test_a_listener_takes_its_port(port):
    assert is_free(HOST, port)
    with socket.create_server((HOST, port)):
        assert not is_free(HOST, port)
        assert not is_free("0.0.0.0", port)
    assert is_free(HOST, port)


def test_a_connection_that_lingers_is_no_hindrance(port):
    with socket.create_server((HOST, port)) as server, socket.create_connection((HOST, port)):
        accepted, _ = server.accept()
        accepted.close()  # first, so that TIME_WAIT stays on this side
    assert is_free(HOST, port)


def test_a_process_that_starts_meanwhile_does_not_keep_the_port(port, monkeypatch):
    """Between fork and exec a child of another thread holds every socket that we have open."""
    copies: list[int] = []

    class Forked(socket.socket):
        def __exit__(self, *ended: object) -> None:
            copies.append(os.dup(self.fileno()))
            super().__exit__(*ended)

    monkeypatch.setattr(tcp_port.socket, "socket", Forked)
    assert is_free(HOST, port)
    monkeypatch.undo()
    try:
        with socket.create_server((HOST, port)):
            pass
    finally:
        for copy in copies:
            os.close(copy)
