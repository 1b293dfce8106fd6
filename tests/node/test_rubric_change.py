"""Another rubric by motion: decided in one epoch, in force in the next, in the running processes of those that can."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from nsllm import canonical
from nsllm.governance.ports import JUDGED_TOKENS, Likelihood
from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.node.service import Wish
from nsllm.simulations.standin import StandInEngine, stand_in_digest

OTHER = stand_in_digest("another scorer")


class Judges(StandInEngine):
    """A stand-in that has another scorer loaded, or not yet; that one finds everything likelier."""

    def __init__(self, *, loaded: bool, other: bool = False) -> None:
        super().__init__()
        self.loaded = loaded
        self._other = other

    def judging(self, scorer):
        if scorer == OTHER:
            return Judges(loaded=True, other=True) if self.loaded else None
        return super().judging(scorer)

    async def likelihoods(self, items, *, most_tokens=JUDGED_TOKENS):
        told = await super().likelihoods(items, most_tokens=most_tokens)
        shift = 0.5 if self._other else 0.0
        return [Likelihood(one.mean_logprob + shift, one.tokens, one.head_logprob + shift) for one in told]


def test_validators_switch_scorers_while_they_run_and_one_without_the_model_says_so(on_stage) -> None:
    async def play(stage) -> None:
        engines = [Judges(loaded=number != 3) for number in range(4)]
        stage.network.engines.update(enumerate(engines))
        await stage.start(0, 1, 2, 3)
        first, *others = stage.peers
        last = others[-1]
        told: list[tuple[str, dict[str, object]]] = []
        last.parts.context.events.tap(lambda event: told.append((event.kind, dict(event.fields))))
        before = await scored(stage, first, "How do tides work?")

        policy = first.parts.context.policy
        rubric = replace(policy.rubric, scorer_model=OTHER)
        wish = Wish("policy", policy=canonical.to_json(replace(policy, rubric=rubric)))
        motion = hex0x(await first.propose_motion(wish))
        for peer in others[:2]:
            await stage.until(lambda peer=peer: bool(peer.ledger.motions()))
            await peer.approve_motion(motion[:18])
        await stage.until(lambda: all(peer.ledger.validators.epoch == 1 for peer in stage.peers))

        lacks = f"the rubric's scorer model is {OTHER.hex()[:16]}, which is not loaded here"
        notice = f"this validator abstains from every score: {lacks}"
        assert notice in (await last.status()).notices
        assert ("rubric_changed", {"rubric": hex0x(rubric.digest()), "lacks": lacks}) in told
        after = await scored(stage, first, "How do rivers flow?")
        assert (before.rubric, after.rubric) == (policy.rubric.digest(), rubric.digest())
        assert len(after.observers) == 3
        standing = first.ledger.observations.standings()[last.parts.context.address]
        assert (standing.abstained, standing.reason) == (1, lacks)
        assert not [peer for peer in stage.peers[:3] if notice in (await peer.status()).notices]

        engines[3].loaded = True  # as `nsllm model load` does
        again = await scored(stage, last, "How do clouds form?")
        assert last.parts.context.address in again.observers
        assert notice not in (await last.status()).notices
        assert [peer.parts.context.policy.rubric for peer in stage.peers] == [rubric] * 4

    on_stage(play, start=())


def test_a_record_on_the_desk_when_the_rubric_changes_is_scored_under_the_new_one(on_stage) -> None:
    """Half of the validators cannot score under the old rubric, so that nothing is certified before the change."""

    async def play(stage) -> None:
        engines = [Judges(loaded=True) for _ in range(4)]
        for engine in engines[2:]:
            engine.judging = lambda scorer: Judges(loaded=True, other=True) if scorer == OTHER else None
        stage.network.engines.update(enumerate(engines))
        await stage.start(0, 1, 2, 3)
        first, *others = stage.peers
        policy = first.parts.context.policy
        rubric = replace(policy.rubric, scorer_model=OTHER)
        wish = Wish("policy", policy=canonical.to_json(replace(policy, rubric=rubric)))
        motion = hex0x(await first.propose_motion(wish))
        for peer in others[:2]:
            await stage.until(lambda peer=peer: bool(peer.ledger.motions()))
        await others[0].approve_motion(motion[:18])
        for peer in stage.peers:
            peer.ledger._pending.pool.each_ready = list  # no block settles it as unscored meanwhile
        answer = await stage.ask(first, "How do tides work?")
        await stage.until(lambda: all(peer.parts.examiner.waiting() == 1 for peer in stage.peers))
        await trio.sleep(2)
        await others[1].approve_motion(motion[:18])
        await stage.anchored(first, answer)
        completion = await first.stores.completions.get(answer.started.completion_id)
        proof = await first.ledger.proofs.of(completion.signed.record.digest())
        assert proof.leaf.rubric == rubric.digest()
        assert len(proof.leaf.observers) >= 3

    on_stage(play, start=())


async def scored(stage, peer, question):
    answer = await stage.ask(peer, question)
    await stage.anchored(peer, answer)
    completion = await peer.receipt(answer.started.completion_id)
    assert verify_receipt(completion.receipt_json, peer.parts.context.genesis, "anchored").validators == 4
    signed = (await peer.stores.completions.get(answer.started.completion_id)).signed
    proof = await peer.ledger.proofs.of(signed.record.digest())
    return proof.leaf
