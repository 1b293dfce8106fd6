# ruff: noqa: E501 - tables
"""The member registry and the validator set."""

from __future__ import annotations

import msgspec
import pytest

from nsllm.consensus.attendance import Attendance
from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.registry import Member, MemberRegistry, RegistryState, admit
from nsllm.consensus.validators import ValidatorSet
from nsllm.errors import SignatureError
from nsllm.ids import PeerId

replace = msgspec.structs.replace


def member(key, *roles):
    return Member(address=key.address, peer_id=PeerId(f"peer{key.address.hex()[:8]}"), roles=roles)


@pytest.fixture
def registry(kit):
    keys = kit.keys(3)
    return MemberRegistry(
        kit.NETWORK, RegistryState.of([member(keys[0], "contributor", "validator"), member(keys[1], "data")])
    )


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


def test_admissions_by_and_of_those_in_bad_standing(kit, registry):
    keys = kit.keys(3)
    admission = admit(keys[0], kit.NETWORK, member(keys[2], "contributor"))
    founding = registry.state
    for state, reason in [
        (founding.with_weight(keys[0].address, 0), "suspended or revoked"),
        (founding.without(keys[0].address), "suspended or revoked"),
        (founding.with_member(admission.member).without(keys[2].address), "membership was revoked"),
    ]:
        registry.state = state
        with pytest.raises(ConsensusError, match=reason):
            registry.admit(admission)
        assert registry.state is state
    with pytest.raises(ConsensusError, match="a weight"):
        registry.check(admit(keys[0], kit.NETWORK, replace(admission.member, weight=2)))


def test_changes_are_values_and_every_one_shows_in_the_digest(kit, registry):
    keys = kit.keys(3)
    start = registry.state
    one = keys[0].address
    states = [
        start,
        start.with_member(member(keys[2], "data")),
        start.with_member(replace(member(keys[1], "data"), slots=7)),
        start.with_weight(one, 0),
        start.without(one),
        start.with_absent([one]),
        start.with_absent([one]).without(one),
    ]
    assert len({state.digest(kit.NETWORK) for state in states[:-1]}) == len(states) - 1
    assert states[-1] == states[4], "who is revoked is not absent besides"
    assert start.digest(kit.NETWORK) != start.digest(bytes(32))
    assert start.with_absent([one]).with_member(start.get(one)) == start
    assert start.with_attendance(Attendance.begin(3, 4)).digest(kit.NETWORK) != start.digest(kit.NETWORK)
    assert start.with_attendance(Attendance()) is start
    assert start.with_absent([one]).count_appointed() == start.count_appointed() == start.count_validators()
    assert start.with_weight(keys[2].address, 3) == start
    revoked = start.without(one)
    assert revoked.revoked == (one,)
    assert revoked.with_member(member(keys[0], "contributor", "validator")) == start


def test_who_validates(kit, registry):
    start, one = registry.state, kit.keys(3)[0].address
    assert start.validators(3) == ValidatorSet(epoch=3, members=(one,))
    for state in [start.with_weight(one, 0), start.without(one), start.with_absent([one])]:
        assert not state.is_eligible(one)
        assert state.validators(3) is None
    assert start.with_weight(one, 9).validators(0) == start.validators(0), "weight above 0 counts as one vote"


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


def test_two_quorums_share_an_honest_validator():
    """For every n; 2f+1 does not give that."""

    def shares_an_honest_one(quorum, n, f):
        return 2 * quorum - n >= f + 1

    for n in range(1, 40):
        validators = ValidatorSet(epoch=0, members=tuple(bytes([i] * 20) for i in range(n)))
        assert shares_an_honest_one(validators.quorum, n, validators.faults)
        assert validators.quorum <= n - validators.faults, "the honest can decide alone"
    unsafe = [n for n in range(4, 33) if not shares_an_honest_one(2 * ((n - 1) // 3) + 1, n, (n - 1) // 3)]
    assert len(unsafe) == 19
