"""A running peer's address, as other commands find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsllm.cli.running import api_url, running_at, running_url
from nsllm.node.config import ApiConfig, PeerConfig


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9001"),
        ("0.0.0.0", "http://127.0.0.1:9001"),
        ("::", "http://[::1]:9001"),
        ("::1", "http://[::1]:9001"),
        ("localhost", "http://localhost:9001"),
    ],
)
def test_the_address_is_one_that_this_machine_reaches(tmp_path: Path, host: str, url: str) -> None:
    config = PeerConfig(data_dir=tmp_path, api=ApiConfig(host=host, port=9001, key="a key of many characters"))
    assert api_url(config) == url


def test_a_running_peer_is_found_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    assert running_url(tmp_path) is None
    with running_at(tmp_path, "http://127.0.0.1:9001"):
        assert running_url(tmp_path) == "http://127.0.0.1:9001"
        assert (tmp_path / "api.url").stat().st_mode & 0o777 == 0o600
    assert running_url(tmp_path) is None


def test_anything_but_an_address_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "api.url").write_bytes(b"file:///etc/passwd\xff\n")
    assert running_url(tmp_path) is None
