"""The watch sees a broken promise at the event that breaks it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nsllm.consensus.vote import Vote
from nsllm.errors import SignatureError
from nsllm.ids import hex0x
from nsllm.node.views import PeerEvent
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.watch import Watch

NETWORK = b"n" * 32
VALIDATORS = SimpleNamespace(digest=lambda: b"v" * 32)
BLOCK = PeerEvent("block", 0, {"height": 1})


def at(height: int, name: bytes, *, on: bytes = b"", holds: bool = True):
    """A peer that committed a block of that name on another one."""

    def check(*_args: object) -> None:
        if not holds:
            raise SignatureError("forged")

    header = SimpleNamespace(height=height, id=lambda: name * 32, parent=on * 32, validators_hash=b"v" * 32)
    certificate = SimpleNamespace(header=header, check=check)
    return SimpleNamespace(ledger=SimpleNamespace(tip_certificate=certificate, validators=VALIDATORS))


def test_two_blocks_at_one_height_are_no_agreement() -> None:
    watch = Watch(NETWORK)
    watch.event(0, at(1, b"a"), BLOCK)
    watch.event(1, at(1, b"a"), BLOCK)
    watch.event(1, at(2, b"b", on=b"a"), BLOCK)
    watch.check()
    with pytest.raises(InvariantError, match=r"agreement: peer 2 .* at height 2, peer 1"):
        watch.event(2, at(2, b"c", on=b"a"), BLOCK)
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


def test_a_block_stands_on_the_one_below_and_none_is_committed_again() -> None:
    watch = Watch(NETWORK)
    watch.event(0, at(1, b"a"), BLOCK)
    with pytest.raises(InvariantError, match=r"peer 1 committed a block 2 that stands on another than block 1"):
        watch.event(1, at(2, b"b", on=b"x"), BLOCK)
    with pytest.raises(InvariantError, match=r"peer 0 committed block 1 after block 1"):
        watch.event(0, at(1, b"a"), BLOCK)


def vote(by: int, value: bytes | None, *, kind: str = "prevote", height: int = 1) -> Vote:
    return Vote(
        kind=kind,
        epoch=0,
        height=height,
        round=0,
        value=value,
        validator=bytes([by]) * 20,
        signature=b"s" * 65,
    )


def test_an_honest_validator_says_one_thing_in_one_place() -> None:
    watch = Watch(NETWORK)
    one, other = bytes([1]) * 20, bytes([2]) * 20
    for message in (
        vote(1, b"a" * 32),
        vote(1, b"a" * 32),
        vote(1, b"b" * 32, kind="precommit"),
        vote(1, None, height=2),
    ):
        watch.said(1, one, message)
    assert watch.signatures == 4
    watch.said(2, other, vote(1, b"c" * 32))  # passed on, not its own
    watch.check()
    with pytest.raises(InvariantError, match="peer 1 signed two prevotes at height 1, round 0"):
        watch.said(1, one, vote(1, None))
    with pytest.raises(InvariantError, match="two prevotes"):
        watch.check()
