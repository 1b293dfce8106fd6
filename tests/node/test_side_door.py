"""What is ready is served to whoever was refused for want of time; looking for it costs a bounded part of the time."""

from __future__ import annotations

import pytest
import trio

from nsllm.governance.validator import Validator
from nsllm.node import side_door as module
from nsllm.node.chat import ChatCommand
from nsllm.node.door import Door
from nsllm.node.engine.slots import Slots
from nsllm.node.errors import OverloadedError
from nsllm.node.federated_cache import FederatedCache
from nsllm.record import Message, Sampling
from nsllm.simulations.standin import StandInEngine

QUESTION = "Why do tides rise and fall along the coast?"
LIKE = "why do tides rise and fall along the coast"
OTHER = "Who built the first lighthouse of the harbour?"
TOXIC = "you fucking stupid piece of shit, i will kill you, die you worthless idiot"


@pytest.fixture(autouse=True)
def no_audits(monkeypatch) -> None:
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT", 0.0)
    monkeypatch.setattr("nsllm.cache_dht.reuse.AUDIT_STRANGER", 0.0)


@pytest.fixture
def overload(monkeypatch):
    """From now on every newcomer would wait an hour."""
    return lambda: monkeypatch.setattr(Door, "wait_s", lambda _self: 3600.0)


async def _answered(stage, peer, **how):
    first = await stage.ask(peer, QUESTION, visibility="public", **how)
    await stage.anchored(peer, first)
    return first


def test_repeats_and_like_questions_are_served_by_a_full_peer_and_nothing_is_generated(
    on_stage, overload, monkeypatch
) -> None:
    async def play(stage) -> None:
        first = await _answered(stage, stage.peers[0])
        overload()
        monkeypatch.setattr(StandInEngine, "_stream", None)
        for peer in stage.peers:
            await trio.sleep(60)
            exact = await stage.ask(peer, QUESTION, visibility="public")
            assert (exact.started.source.match, exact.text) == ("exact", first.text)
            like = await stage.ask(peer, LIKE, visibility="public")
            assert (like.started.source.match, like.text) == ("semantic", first.text)
            with pytest.raises(OverloadedError):
                await stage.ask(peer, OTHER, visibility="public")

    on_stage(play)


def test_a_full_engine_queue_costs_no_hit_that_a_holder_was_about_to_give(on_stage, monkeypatch) -> None:
    async def play(stage) -> None:
        peer = stage.peers[1]
        first = await _answered(stage, stage.peers[0])
        await trio.sleep(60)
        await peer.stores.records.erase(await peer.stores.records.digests())

        def full(self, messages, sampling):
            raise Slots(1, 0)._overloaded()

        monkeypatch.setattr(StandInEngine, "_stream", full)
        answer = await stage.ask(peer, QUESTION, visibility="public")
        assert (answer.started.source.match, answer.text) == ("exact", first.text)

    on_stage(play)


def test_what_must_be_generated_is_refused_without_a_look(on_stage, overload, monkeypatch) -> None:
    async def play(stage) -> None:
        (peer,) = stage.peers
        await _answered(stage, peer)
        overload()
        monkeypatch.setattr(FederatedCache, "local", None)
        for how in ({"reuse": False}, {"sampling": Sampling(temperature_micro=700_000)}):
            with pytest.raises(OverloadedError):
                await stage.ask(peer, QUESTION, visibility="public", **how)

    on_stage(play, peers=1)


def test_a_ready_answer_is_withheld_from_a_question_that_does_not_pass(on_stage, overload, monkeypatch) -> None:
    async def play(stage) -> None:
        (peer,) = stage.peers
        await _answered(stage, peer)
        overload()
        check = Validator.check_input

        async def toxic(self, _question, vector, policy):
            return await check(self, TOXIC, vector, policy)

        monkeypatch.setattr(Validator, "check_input", toxic)
        with pytest.raises(OverloadedError):
            await stage.ask(peer, QUESTION, visibility="public")

    on_stage(play, peers=1)


def test_a_flood_of_new_questions_is_embedded_a_quarter_of_the_time(on_stage, overload, monkeypatch) -> None:
    embed, spent_s = StandInEngine.embed, 0.0

    async def slowly(self, texts):
        nonlocal spent_s
        began_s = trio.current_time()
        await trio.sleep(0.1)
        found = await embed(self, texts)
        spent_s += trio.current_time() - began_s
        return found

    async def play(stage) -> None:
        (peer,) = stage.peers
        overload()
        monkeypatch.setattr(StandInEngine, "embed", slowly)
        refused = 0

        async def ask(number: int) -> None:
            nonlocal refused
            with pytest.raises(OverloadedError):
                await stage.ask(peer, f"What is the name of river number {number}?", visibility="public")
            refused += 1

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(600):
                nursery.start_soon(ask, number)
                await trio.sleep(0.05)
        assert refused == 600
        took_s = trio.current_time() - began_s
        assert 0.1 * took_s < spent_s < 0.3 * took_s

    on_stage(play, peers=1)


def test_a_client_that_floods_takes_no_hit_from_another(on_stage, overload, monkeypatch) -> None:
    embed = StandInEngine.embed

    async def slowly(self, texts):
        await trio.sleep(0.3)
        return await embed(self, texts)

    async def play(stage) -> None:
        (peer,) = stage.peers
        await _answered(stage, peer)
        overload()
        monkeypatch.setattr(StandInEngine, "embed", slowly)

        async def flood(number: int) -> None:
            with pytest.raises(OverloadedError):
                await stage.ask(peer, f"What is the name of river number {number}?", visibility="public")

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(flood, number)
                await trio.sleep(0.05)
                if number % 20 == 10:
                    events = _Events()
                    command = ChatCommand(
                        model="default",
                        messages=(Message(role="user", content=f"{LIKE}{'?' * (number // 20)}"),),
                        sampling=Sampling(),
                        visibility="public",
                        client="another",
                    )
                    await peer.answer(command, events)
                    assert events.heard[0].source.match == "semantic"

    on_stage(play, peers=1)


class _Events:
    def __init__(self):
        self.heard = []

    def send_nowait(self, event):
        self.heard.append(event)

    async def send(self, event):
        self.heard.append(event)


def test_so_many_look_at_once_and_a_look_that_hangs_is_a_refusal(on_stage, overload, monkeypatch) -> None:
    async def play(stage) -> None:
        (peer,) = stage.peers
        await _answered(stage, peer)
        overload()
        looks = 0

        async def hangs(self, _key):
            nonlocal looks
            looks += 1
            await trio.sleep_forever()

        monkeypatch.setattr(FederatedCache, "local", hangs)

        async def ask() -> None:
            with pytest.raises(OverloadedError):
                await stage.ask(peer, QUESTION, visibility="public")

        with trio.fail_after(module.LOOK_S + 1):
            async with trio.open_nursery() as nursery:
                for _ in range(3 * module.AT_ONCE):
                    nursery.start_soon(ask)
        assert looks == module.AT_ONCE

    on_stage(play, peers=1)
