"""Governance on a whole simulated network: a fifth validator, another policy, a suspension, all certified."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from nsllm import canonical
from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.node.errors import InvalidRequestError
from nsllm.node.invitation import parse_invite, save_pending
from nsllm.node.service import Wish


async def carry(stage, wish, *approving):
    """The first peer proposes, these approve, and everybody arrives in the next epoch."""
    before, network = stage.peers[0].ledger.validators.epoch, stage.peers[0].parts.context.network_id
    motion = hex0x(await stage.peers[0].propose_motion(wish))
    for peer in approving:
        heard = lambda peer=peer: any(hex0x(t.motion.digest(network)) == motion for t in peer.ledger.motions())  # noqa: E731
        await stage.until(heard)
        await peer.approve_motion(motion[:18])
    await stage.until(lambda: all(peer.ledger.validators.epoch == before + 1 for peer in stage.peers))
    view = await stage.peers[0].governance()
    assert view["waiting"] == []
    assert view["decided"][-1]["motion"] == motion


async def receipt_of(stage, peer, question):
    answer = await stage.ask(peer, question)
    await stage.anchored(peer, answer)
    completion = await peer.receipt(answer.started.completion_id)
    return completion.receipt_json


def test_a_network_that_changes_its_validators_and_its_policy(on_stage) -> None:
    async def play(stage) -> None:
        genesis = stage.peers[0].parts.context.genesis
        newcomer = stage.network.add()
        save_pending(newcomer.settled.config.data_dir, parse_invite(await stage.peers[0].invite()))
        fifth = await stage.network.start(stage.nursery, newcomer.number)
        address = newcomer.settled.identity.address
        await stage.until(lambda: stage.peers[0].ledger.registry.get(address) is not None)
        with pytest.raises(InvalidRequestError, match="only validators"):
            await fifth.propose_motion(Wish("suspend", address=hex0x(stage.peers[1].ledger.validators.members[0])))

        # a fifth validator
        wish = Wish("admit", address=hex0x(address), roles=("contributor", "data", "validator"))
        await carry(stage, wish, *stage.peers[1:3])
        await stage.until(lambda: fifth.parts.agreement.view()["round"] is not None)
        first = await receipt_of(stage, fifth, "How do rivers flow?")
        assert verify_receipt(first, genesis, "anchored").epoch == 1
        assert verify_receipt(first, genesis).validators == 5

        # another policy
        policy = replace(genesis.policy, reuse_min_ppm=1)
        await carry(stage, Wish("policy", policy=canonical.to_json(policy)), *stage.peers[1:3])
        assert {peer.parts.context.policy for peer in stage.peers} == {policy}

        # one suspended: it goes on as a follower, and answers what it is asked
        gone = stage.peers[3]
        await carry(stage, Wish("suspend", address=hex0x(gone.parts.context.address)), *stage.peers[1:3])
        await stage.until(lambda: gone.parts.agreement.view()["round"] is None)
        second = await receipt_of(stage, gone, "Why do leaves fall?")
        report = verify_receipt(second, genesis, "anchored")
        assert (report.epoch, report.validators) == (3, 4)
        assert verify_receipt(first, genesis, "anchored").epoch == 1, "an old receipt holds as before"

        # and is admitted again
        await carry(stage, Wish("admit", address=hex0x(gone.parts.context.address)), *stage.peers[1:3])
        await stage.until(lambda: gone.parts.agreement.view()["round"] is not None)
        await trio.sleep(30)
        assert len({peer.ledger.log_root for peer in stage.peers}) == 1
        assert not [peer.parts.agreement.halted for peer in stage.peers if peer.parts.agreement.halted]

    on_stage(play)


WRONG = {
    "a kind": (Wish("dismiss", address="0x" + "00" * 20), "no motion of kind 'dismiss'"),
    "an address": (Wish("revoke", address="0x12"), "40 hex digits"),
    "nobody": (Wish("revoke", address="0x" + "00" * 20), "is not a member"),
    "a stranger without a peer id": (Wish("admit", address="0x" + "00" * 20, roles=("data",)), "who is it"),
    "a role": (Wish("admit", address="0x" + "00" * 20, roles=("king",), peer_id="p"), "Invalid enum value 'king'"),
    "a policy": (Wish("policy", policy="{}"), "missing required field"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wish_that_cannot_be_is_refused_with_what_to_do(on_stage, name) -> None:
    async def play(stage) -> None:
        wish, reason = WRONG[name]
        peer = stage.peers[0]
        with pytest.raises(InvalidRequestError, match=reason):
            await peer.propose_motion(wish)
        with pytest.raises(InvalidRequestError, match="0 waiting motions"):
            await peer.approve_motion("0x12345678")
        assert (await peer.governance())["waiting"] == []

    on_stage(play, peers=1)


def test_a_motion_outlives_the_restart_of_everybody(on_stage) -> None:
    """Proposed on the first peer, heard by the second only; then all stop, and the others approve after it."""

    async def play(stage) -> None:
        first, second, *_ = stage.peers
        for number in (2, 3):
            stage.network.stop(number)
        wish = Wish("policy", policy=canonical.to_json(replace(first.parts.context.policy, reuse_min_ppm=1)))
        motion = hex0x(await first.propose_motion(wish))
        await stage.until(lambda: bool(second.ledger.motions()))
        await second.approve_motion(motion[:18])
        for number in (0, 1):
            stage.network.stop(number)
        await trio.sleep(1)
        await stage.start(0, 1, 2, 3)
        first, second, third, fourth = stage.peers
        [waiting] = (await second.governance())["waiting"]
        assert (waiting["motion"], len(waiting["approvals"])) == (motion, 2)
        await stage.until(lambda: bool(third.ledger.motions()))
        await third.approve_motion(motion[:18])
        await stage.until(lambda: all(peer.parts.context.policy.reuse_min_ppm == 1 for peer in stage.peers))
        assert (await fourth.governance())["waiting"] == []

    on_stage(play)
