"""The watch sees a broken promise at the event that breaks it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nsllm.errors import SignatureError
from nsllm.ids import hex0x
from nsllm.node.service import PeerEvent
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.watch import Watch

NETWORK = b"n" * 32
VALIDATORS = SimpleNamespace(digest=lambda: b"v" * 32)
BLOCK = PeerEvent("block", 0, {"height": 1})


def at(height: int, name: bytes, *, holds: bool = True):
    """A peer that committed a block of that name."""

    def check(*_args: object) -> None:
        if not holds:
            raise SignatureError("forged")

    header = SimpleNamespace(height=height, id=lambda: name * 32, validators_hash=b"v" * 32)
    certificate = SimpleNamespace(header=header, check=check)
    return SimpleNamespace(ledger=SimpleNamespace(tip_certificate=certificate, validators=VALIDATORS))


def test_two_blocks_at_one_height_are_no_agreement() -> None:
    watch = Watch(NETWORK)
    watch.event(0, at(1, b"a"), BLOCK)
    watch.event(1, at(1, b"a"), BLOCK)
    watch.event(1, at(2, b"b"), BLOCK)
    watch.check()
    with pytest.raises(InvariantError, match=r"agreement: peer 2 .* at height 2, peer 1"):
        watch.event(2, at(2, b"c"), BLOCK)
    with pytest.raises(InvariantError, match="agreement"):
        watch.check()
    assert watch.blocks == 4


def test_a_certificate_that_does_not_hold_is_seen() -> None:
    with pytest.raises(InvariantError, match=r"peer 3 took block 1: forged"):
        Watch(NETWORK).event(3, at(1, b"a", holds=False), BLOCK)


def test_only_byzantine_validators_may_be_accused() -> None:
    watch = Watch(NETWORK)
    watch.byzantine = frozenset({b"b" * 20})
    watch.event(0, at(1, b"a"), PeerEvent("offence", 0, {"validator": hex0x(b"b" * 20)}))
    with pytest.raises(InvariantError, match="peer 0 accuses the honest validator"):
        watch.event(0, at(1, b"a"), PeerEvent("offence", 0, {"validator": hex0x(b"h" * 20)}))
    assert watch.accusations == 2
