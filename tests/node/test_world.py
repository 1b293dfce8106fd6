"""What a real peer's world is made of, as far as it can be wrong."""

from __future__ import annotations

import pytest

from nsllm.ids import PeerId
from nsllm.node.errors import ConfigError
from nsllm.node.world import _told

PEER = PeerId("12D3KooWGR9hfzErCLHEhCGXTntMaZoXNg1UYN1Ne58RLBRsG7fF")


def test_addresses_that_can_be_dialled_are_announced_as_they_are() -> None:
    addresses = ("/ip4/192.0.2.7/tcp/4700", "/dns4/peer.example.org/tcp/4700")
    assert _told(addresses, PEER) == addresses
    assert _told((), PEER) == ()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.7:4700", "no multiaddr"),
        ("/ip4/192.0.2.7/tcp/port", "no multiaddr"),
        (f"/ip4/192.0.2.7/tcp/4700/p2p/{PEER}", "names a peer"),
        ("", "does not end"),
    ],
)
def test_what_nobody_could_dial_is_refused(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _told(("/ip4/192.0.2.7/tcp/4700", address), PEER)
    assert repr(address) in str(caught.value)
