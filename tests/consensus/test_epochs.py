"""Drivers and followers across an epoch's boundary: who goes on, who joins, who leaves, and whose word counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from nsllm.clock import TrioClock
from nsllm.consensus.core import State
from nsllm.consensus.driver import Driver
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import VoteError
from nsllm.consensus.events import PeerBlamed
from nsllm.consensus.follower import Follower
from nsllm.consensus.horizon import Horizon
from nsllm.consensus.inbox import Inbox
from nsllm.consensus.intake import Ahead, Behind, Counted, Intake
from nsllm.consensus.message import HeightCertificate, PolkaCertificate


def in_order(keys):
    return sorted(keys, key=lambda key: key.address)


@pytest.fixture
def town(house, kit):
    """Five keys: the first four validate up to height 2, the last four from height 3 on."""
    town = house(5)
    sets = {2: kit.validators(in_order(town.keys[1:]), epoch=1)}
    town.validators = kit.validators(in_order(town.keys[:4]))
    for peer in town.peers:
        peer.application = kit.Application(town.validators, sets=sets)
    return town


async def follow(town, peer):
    follower = Follower(
        network=bytes(range(32)), application=peer.application, source=SimpleNamespace(fetch=town.fetch),
        observer=peer.events.append, me=peer.address,
    )  # fmt: skip
    await follower.run()


async def live(town, peer):
    """As a peer's agreement does: drive in the epochs that list us, follow in the others."""
    while True:
        if peer.address in peer.application.validators:
            await peer.run()
            if peer.error is not None:
                raise peer.error
        else:
            await follow(town, peer)


async def test_one_joins_one_leaves_and_the_others_go_on(autojump_clock, town):
    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        for peer in town.peers:
            nursery.start_soon(live, town, peer)
        await trio.sleep(0.01)
        town.want(6)
        await town.until_height(6, town.peers)
        epochs = [decided.block.header.epoch for decided in town.peers[0].application.chain]
        assert epochs == [0, 0, 1, 1, 1, 1]
        for peer in town.peers:
            assert peer.application.chain == town.peers[1].application.chain or peer.height == 6
            assert not [event for event in peer.events if isinstance(event, PeerBlamed)], "nobody is to blame"
        last = town.peers[1].application.chain[-1].certificate
        last.check(bytes(range(32)), town.peers[1].application.validators)
        assert town.peers[0].address not in {vote.validator for vote in last.precommits}
        nursery.cancel_scope.cancel()


async def test_who_was_away_over_a_boundary_comes_back(autojump_clock, town):
    away = town.peers[3].address
    town.mesh.drop = lambda sender, to, message: away in (sender, to)
    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        for peer in town.peers:
            nursery.start_soon(live, town, peer)
        await trio.sleep(0.01)
        town.want(5)
        others = [town.peers[i] for i in (1, 2, 4)]
        await town.until_height(5, others)
        assert town.peers[3].height == 0
        town.mesh.drop = lambda sender, to, message: False
        town.want(7)
        await town.until_height(7, [*others, town.peers[3]])
        nursery.cancel_scope.cancel()


async def test_an_announced_height_is_looked_for_and_then_forgotten(autojump_clock, town):
    """Unproved claims cost a few fetches and no more; true ones bring the blocks."""
    fetched = []
    real = town.fetch

    async def fetch(start, count):
        fetched.append(start)
        return await real(start, count)

    town.fetch = fetch
    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        for peer in town.peers[:3]:
            await nursery.start(peer.run)
        town.peers[0].driver.announce(9)
        await trio.sleep(100)
        assert 1 <= len(fetched) <= 6
        nursery.cancel_scope.cancel()


@pytest.fixture
def desk(kit):
    """One validator's intake at height 3 of epoch 1, where the keys 1 to 4 validate."""
    keys = kit.keys(5)
    validators = kit.validators(in_order(keys[1:]), epoch=1)
    horizon = Horizon(validators, keys[1].address)
    intake = Intake(
        network=kit.NETWORK, validators=validators, application=kit.Application(validators), clock=TrioClock(1),
        horizon=horizon,
    )  # fmt: skip
    state = State(validators=validators, me=keys[1].address, height=3)

    async def admit(body):
        return await intake.admit(state, kit.NETWORK, keys[2].address, body, checked=False)

    return SimpleNamespace(keys=keys, validators=validators, admit=admit, horizon=horizon)


@pytest.mark.parametrize("kind", ["prevote", "precommit"])
@pytest.mark.parametrize(
    ("height", "epoch", "outcome"),
    [
        (3, 1, Counted), (3, 0, VoteError), (3, 2, VoteError),  # at our height: our epoch only
        (2, 0, Behind), (2, 1, Behind),  # below: whoever says so is behind
        (4, 0, VoteError),  # an old epoch above a later one
        (4, 2, Ahead), (9, 3, Ahead),  # a later one: nothing we could check
    ],
)  # fmt: skip
async def test_votes_count_in_their_own_epoch_only(kit, desk, kind, height, epoch, outcome):
    vote = kit.vote(desk.keys[2], kind, bytes(32), height=height, epoch=epoch)
    if outcome is VoteError:
        with pytest.raises(VoteError, match=f"of epoch {epoch}"):
            await desk.admit(vote)
    else:
        assert isinstance(await desk.admit(vote), outcome)
    assert desk.horizon.decided == 0


async def test_a_former_validators_vote_counts_for_nothing(kit, desk):
    with pytest.raises(VoteError, match="not a validator of epoch 1"):
        await desk.admit(kit.vote(desk.keys[0], "precommit", bytes(32), height=3, epoch=1))
    votes = tuple(kit.vote(key, "prevote", bytes(32), height=3, epoch=0) for key in desk.keys[:3])
    with pytest.raises(VoteError, match="of epoch 0"):
        await desk.admit(PolkaCertificate(votes=votes))


async def test_a_certificate_of_a_later_epoch_is_a_claim(kit, desk):
    later = kit.validators(in_order(desk.keys[:2]), epoch=2)
    decided = kit.certify(desk.keys[:2], kit.block(later, 7, proposer=desk.keys[0].address))
    assert await desk.admit(HeightCertificate(certificate=decided.certificate)) == Ahead(7)
    assert desk.horizon.certificate is None


def test_the_inbox_keeps_what_those_who_stay_have_sent():
    inbox = Inbox([b"a", b"b"])
    for sender in (b"a", b"b", b"c"):
        inbox.put(sender, b"1")
    inbox.admit_only([b"b", b"c"])
    assert len(inbox) == 1
    assert not inbox.put(b"a", b"2")
    assert inbox.put(b"c", b"3")
    assert [inbox.take() for _ in range(3)] == [(b"b", b"1"), (b"c", b"3"), None]


def test_every_part_of_a_change_is_in_its_digest(kit):
    keys = kit.keys(4)
    changes = [
        EpochChange(validators=kit.validators(keys, epoch=epoch), policy_digest=policy)
        for epoch in (1, 2)
        for policy in (bytes(32), b"\1" * 32)
    ]
    changes.append(EpochChange(validators=kit.validators(keys[:3], epoch=1), policy_digest=bytes(32)))
    assert len({change.digest() for change in changes}) == len(changes)


async def test_a_driver_that_kept_the_old_set_would_be_seen(autojump_clock, town, monkeypatch):
    monkeypatch.setattr(Driver, "_enter", first_time_only(Driver._enter))
    async with trio.open_nursery() as nursery:
        await nursery.start(town.mesh.run)
        for peer in town.peers:
            nursery.start_soon(live, town, peer)
        await trio.sleep(0.01)
        town.want(4)
        await trio.sleep(60)
        assert max(peer.height for peer in town.peers) == 2, "the old set decides nothing any more"
        nursery.cancel_scope.cancel()


def first_time_only(real):
    entered = set()

    def enter(driver, validators):
        if id(driver) not in entered:
            entered.add(id(driver))
            real(driver, validators)

    return enter
