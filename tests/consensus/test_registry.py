# ruff: noqa: E501 - tables
"""The member registry and the validator set."""

from __future__ import annotations

import msgspec
import pytest

from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.registry import Member, MemberRegistry, admit
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import SignatureError
from nsllm.ids import PeerId

replace = msgspec.structs.replace


def member(key, *roles):
    return Member(address=key.address, peer_id=PeerId(f"peer{key.address.hex()[:8]}"), roles=roles)


@pytest.fixture
def registry(kit):
    keys = kit.keys(3)
    return MemberRegistry(kit.NETWORK, [member(keys[0], "contributor", "validator"), member(keys[1], "data")])


def test_genesis_members_and_their_roles(kit, registry):
    keys = kit.keys(3)
    assert [m.address for m in registry.members()] == sorted(k.address for k in keys[:2])
    assert [m.address for m in registry.with_role("data")] == [keys[1].address]
    assert registry.validators() == ValidatorSet(epoch=0, members=(keys[0].address,))
    assert registry.by_peer(member(keys[1], "data").peer_id) == registry.get(keys[1].address)
    assert registry.get(keys[2].address) is None
    assert registry.by_peer(PeerId("nobody")) is None


def test_admission(kit, registry):
    keys = kit.keys(3)
    newcomer = member(keys[2], "contributor")
    admission = admit(keys[0], kit.NETWORK, newcomer)
    assert registry.admit(admission)
    assert not registry.admit(admission)
    assert registry.get(keys[2].address) == newcomer
    assert len(registry.validators().members) == 1, "the set is fixed at genesis"


def test_admissions_that_prove_nothing(kit, registry):
    keys = kit.keys(4)
    newcomer = member(keys[3], "data")
    good = admit(keys[0], kit.NETWORK, newcomer)
    with pytest.raises(ConsensusError, match="not a genesis member"):
        registry.admit(admit(keys[2], kit.NETWORK, newcomer))
    with pytest.raises(ConsensusError, match="validator role"):
        registry.admit(admit(keys[0], kit.NETWORK, member(keys[3], "validator")))
    for bad in [
        replace(good, by=keys[1].address),
        replace(good, member=replace(newcomer, slots=1_000_000)),
        replace(good, member=replace(newcomer, peer_id=PeerId("other"))),
        admit(keys[0], bytes(32), newcomer),
    ]:
        with pytest.raises(SignatureError):
            registry.admit(bad)
    assert registry.get(keys[3].address) is None


def test_an_admitted_member_admits_nobody(kit, registry):
    keys = kit.keys(4)
    registry.admit(admit(keys[0], kit.NETWORK, member(keys[2], "contributor")))
    with pytest.raises(ConsensusError, match="not a genesis member"):
        registry.admit(admit(keys[2], kit.NETWORK, member(keys[3], "data")))


@pytest.mark.parametrize(
    ("n", "f", "quorum"), [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5), (10, 3, 7), (100, 33, 67)]
)  # fmt: skip
def test_sizes(n, f, quorum):
    validators = ValidatorSet(epoch=0, members=tuple(i.to_bytes(20, "big") for i in range(n)))
    assert (validators.size, validators.faults, validators.quorum) == (n, f, quorum)
    assert validators.enough_observations == n - f
    assert {validators.proposer(5, r) for r in range(n)} == set(validators.members), "everybody's turn comes"


def test_order_is_part_of_the_set():
    a, b = bytes([1] * 20), bytes([2] * 20)
    for wrong in [(b, a), (a, a)]:
        with pytest.raises(ValueError, match="ascending order"):
            ValidatorSet(epoch=0, members=wrong)
    assert ValidatorSet(epoch=0, members=(a, b)).digest() != ValidatorSet(epoch=1, members=(a, b)).digest()
