"""An invite lets one more peer in, for good: it publishes, is certified, is remembered. Nobody else gets in with it."""

from __future__ import annotations

import pytest
import trio

from nsllm.consensus.registry import Admission, Member, admit
from nsllm.errors import NsllmError
from nsllm.node.errors import InvalidRequestError
from nsllm.node.invitation import parse_invite, pending_invite, save_pending
from nsllm.p2p.errors import RefusedError
from nsllm.p2p.protocols.join import join
from nsllm.p2p.protocols.submit import Submitter


async def joined(stage):
    """A newcomer with an invite of the first peer, started and admitted."""
    newcomer = stage.network.add()
    folder = newcomer.settled.config.data_dir
    save_pending(folder, parse_invite(await stage.peers[0].invite()))
    peer = await stage.network.start(stage.nursery, newcomer.number)
    await stage.until((folder / "admission").exists)
    return newcomer, peer


def certified_member(peer, newcomer) -> bool:
    return peer.ledger.registry.get(newcomer.settled.identity.address) is not None


def test_a_newcomer_with_an_invite_publishes_and_is_settled(on_stage) -> None:
    async def play(stage) -> None:
        newcomer, peer = await joined(stage)
        folder = newcomer.settled.config.data_dir
        assert pending_invite(folder) is None  # it is used up
        await stage.until(lambda: all(certified_member(other, newcomer) for other in stage.peers))
        assert {other.ledger.log_size for other in stage.network.running()} == {1}  # its admission
        answer = await stage.ask(peer, "How do rivers flow?")
        await stage.anchored(peer, answer)
        await stage.until(lambda: {other.ledger.log_size for other in stage.peers} == {2})
        await trio.sleep(60)
        for other in stage.peers[:4]:
            assert (await stage.ask(other, "How do rivers flow?")).started.source.kind == "cache"
        status = await peer.status()
        assert status.roles == ("contributor", "data")
        assert status.consensus["validating"] is False
        assert status.consensus["round"] is None  # a follower has none: no data, not nought

    on_stage(play)


def test_membership_outlives_restarts_on_both_sides(on_stage) -> None:
    async def play(stage) -> None:
        newcomer, peer = await joined(stage)
        await stage.until(lambda: certified_member(peer, newcomer))
        for number in (0, newcomer.number):
            stage.network.stop(number)
        await trio.sleep(1)
        await stage.start(0, newcomer.number)
        again = newcomer.peer
        assert again is not None
        assert again.parts.membership.notice is None
        answer = await stage.ask(again, "How do rivers flow?")
        await stage.anchored(again, answer)
        assert {other.ledger.log_size for other in stage.peers} <= {1, 2}  # admitted once

    on_stage(play)


def test_a_used_token_lets_nobody_else_in(on_stage) -> None:
    async def play(stage) -> None:
        text = await stage.peers[0].invite()
        first, second = stage.network.add(), stage.network.add()
        for newcomer in (first, second):
            save_pending(newcomer.settled.config.data_dir, parse_invite(text))
        await stage.network.start(stage.nursery, first.number)
        await stage.until((first.settled.config.data_dir / "admission").exists)
        late = await stage.network.start(stage.nursery, second.number)
        await stage.until(lambda: late.parts.membership.notice is not None)
        await trio.sleep(300)
        assert "used already" in late.parts.membership.notice
        assert late.parts.membership.notice in (await late.status()).notices
        assert not certified_member(stage.peers[0], second)
        assert (await late.status()).roles == ()

    on_stage(play)


def test_an_expired_token_lets_nobody_in(on_stage) -> None:
    async def play(stage) -> None:
        book, network = stage.peers[0].parts.membership._book, stage.peers[0]._world.network
        invite = book.create(network.addresses(), ttl_s=60)
        await trio.sleep(61)
        newcomer = stage.network.add()
        save_pending(newcomer.settled.config.data_dir, invite)
        peer = await stage.network.start(stage.nursery, newcomer.number)
        await stage.until(lambda: peer.parts.membership.notice is not None)
        assert "expired" in peer.parts.membership.notice

    on_stage(play, peers=1)


def test_a_stranger_can_neither_submit_nor_invite(on_stage) -> None:
    async def play(stage) -> None:
        stranger = stage.network.add()
        peer = await stage.network.start(stage.nursery, stranger.number)
        with pytest.raises(InvalidRequestError, match="genesis member"):
            await peer.invite()
        answer = await stage.ask(peer, "How do rivers flow?")
        completion = await peer.stores.completions.get(answer.started.completion_id)
        validator = stage.network.peers[0].settled.identity.peer_id
        with pytest.raises(RefusedError, match="members only"):
            await Submitter(peer._world.network).submit(validator, [completion.signed])
        await trio.sleep(120)
        assert {other.ledger.log_size for other in stage.peers} == {0}
        assert (await peer.receipt(answer.started.completion_id)).state == "pending"

    on_stage(play)


@pytest.mark.parametrize(
    ("roles", "slots", "why"),
    [(("validator",), 600, "validator role"), (("contributor",), 1_000_000, "slots")],
)
def test_a_newcomer_cannot_choose_its_own_powers(on_stage, roles, slots, why) -> None:
    async def play(stage) -> None:
        host = stage.peers[0]
        invite = parse_invite(await host.invite())
        stranger = stage.network.add()
        identity = stranger.settled.identity
        peer = await stage.network.start(stage.nursery, stranger.number)
        await stage.until(peer._world.network.connected)
        greedy = Member(address=identity.address, peer_id=identity.peer_id, roles=roles, slots=slots)
        with pytest.raises(RefusedError, match=why):
            await join(
                peer._world.network,
                stage.network.peers[0].settled.identity.peer_id,
                stage.network.genesis.network_id(),
                invite.token.hex(),
                greedy,
                key=identity.member,
            )
        assert not certified_member(host, stranger)

    on_stage(play, peers=1)


def test_an_admission_by_somebody_else_is_worth_nothing(on_stage) -> None:
    async def play(stage) -> None:
        host = stage.peers[0]
        stranger = stage.network.add()
        identity = stranger.settled.identity
        member = Member(address=identity.address, peer_id=identity.peer_id, roles=("contributor", "data"))
        network = stage.network.genesis.network_id()
        forged = admit(identity.member, network, member)
        pretended = Admission(member=member, by=host.parts.context.address, signature=forged.signature)
        for admission in (forged, pretended):
            with pytest.raises(NsllmError):
                host.ledger.add_admission(admission)
        await trio.sleep(30)
        assert host.ledger.log_size == 0

    on_stage(play, peers=1)
