"""One question's whole road through simulated peers, and what must not happen on it."""

from __future__ import annotations

import pytest
import trio

from nsllm.governance.verify import verify_receipt
from nsllm.node.errors import EngineError, NotFoundError, UnknownModelError
from nsllm.record import Sampling


def test_an_answer_is_certified_anchored_and_its_receipt_verifies(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        answer = await stage.ask(peer, "How do bridges carry weight?")
        assert answer.started.source.kind == "engine"
        assert answer.finished.publication == "pending"
        await stage.anchored(peer, answer)
        status = await peer.receipt(answer.started.completion_id)
        assert len(status.signers) >= 3
        verify_receipt(status.receipt_json, stage.network.genesis, "anchored")

    on_stage(play)


def test_every_other_peer_serves_it_from_the_cache_with_a_receipt_of_its_own(on_stage) -> None:
    async def play(stage) -> None:
        first, *others = stage.peers
        answer = await stage.ask(first, "How do bridges carry their weight?")
        await stage.anchored(first, answer)
        await trio.sleep(1)
        for peer in others:
            again = await stage.ask(peer, "How do bridges carry their weight?")
            assert again.started.source.kind == "cache"
            assert again.started.source.generator == answer.started.source.generator
            assert again.text == answer.text
            assert again.finished.publication == "certified"
            status = await peer.receipt(again.started.completion_id)
            verify_receipt(status.receipt_json, stage.network.genesis, "anchored")
        hits = [(await peer.status()).cache for peer in others]
        assert sum(row["hits_local"] + row["hits_remote"] for row in hits) == 3
        assert sum(row["hits_remote"] for row in hits) >= 1

    on_stage(play)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(seed=7), Sampling(temperature_micro=0), Sampling(temperature_micro=700_000), Sampling(max_tokens=5)],
)
def test_other_parameters_are_another_question(on_stage, sampling: Sampling) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        await stage.anchored(peer, await stage.ask(peer, "Why is glass clear?"))
        assert (await stage.ask(peer, "Why is glass clear?")).started.source.kind == "cache"
        assert (await stage.ask(peer, "Why is glass clear?", sampling=sampling)).started.source.kind == "engine"
        assert (await stage.ask(peer, "Why is glass clear?", reuse=False)).started.source.kind == "engine"

    on_stage(play, peers=1)


def test_a_private_question_leaves_nothing_outside_the_peer(on_stage) -> None:
    async def play(stage) -> None:
        peer, *others = stage.peers
        await trio.sleep(20)  # until the network is quiet but for heartbeats
        sent: set[str] = set()
        stage.network.space._on_event = lambda event: sent.add(event[4])
        answer = await stage.ask(peer, "What is my secret?", visibility="private")
        assert answer.finished.publication == "private"
        await trio.sleep(60)
        # heartbeats, hellos and the validators' idle questions go on; nothing that could carry an answer does
        assert {label.partition("/1")[0] for label in sent} <= {"", "/nsllm/heartbeat", "/nsllm/hello", "/nsllm/mesh"}
        status = await peer.receipt(answer.started.completion_id)
        assert status.state == "none"
        assert "private" in status.detail
        assert {other.ledger.log_size for other in [peer, *others]} == {0}
        assert (await peer.status()).logs["peer_log_size"] > 0

    on_stage(play)


def test_withheld_input_is_cut_with_a_reason_and_logged(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        answer = await stage.ask(peer, "you fucking stupid piece of shit, i will kill you, die you worthless idiot")
        assert answer.finished.finish_reason == "content_filter"
        assert answer.finished.publication == "withheld"
        assert "toxicity" in answer.finished.detail
        assert answer.text == ""
        await trio.sleep(1)
        assert (await peer.status()).logs["peer_log_size"] > 0
        assert peer.ledger.log_size == 0

    on_stage(play, peers=1)


def test_an_incoherent_answer_is_given_but_not_published(on_stage, monkeypatch) -> None:
    from nsllm.governance.ports import Likelihood
    from nsllm.simulations import standin

    monkeypatch.setattr(standin, "_likelihood", lambda _messages, _text: Likelihood(-12.0, 10, -12.0))

    async def play(stage) -> None:
        peer = stage.peers[0]
        answer = await stage.ask(peer, "How do tides work?")
        assert answer.text
        assert answer.finished.publication == "unpublished"
        assert "coherence" in answer.finished.detail
        assert (await peer.receipt(answer.started.completion_id)).state == "none"

    on_stage(play, peers=1)


def test_what_is_not_there_is_named(on_stage) -> None:
    async def play(stage) -> None:
        peer = stage.peers[0]
        with pytest.raises(UnknownModelError, match="gpt-9"):
            await stage.ask(peer, "hello", model="gpt-9")
        with pytest.raises(NotFoundError, match="chatcmpl-x"):
            await peer.receipt("chatcmpl-x")

    on_stage(play, peers=1)


def test_an_engine_that_fails_in_mid_answer_is_told_to_the_caller(on_stage, monkeypatch) -> None:
    from nsllm.simulations.standin import StandInEngine

    stream = StandInEngine._stream

    async def breaking(self, messages, sampling):
        count = 0
        async for piece in stream(self, messages, sampling):
            yield piece
            count += 1
            if count == 3:
                raise EngineError("the model worker died", hint="ask again")

    monkeypatch.setattr(StandInEngine, "_stream", breaking)

    async def play(stage) -> None:
        with pytest.raises(EngineError, match="worker died"):
            await stage.ask(stage.peers[0], "How do tides work?")
        assert stage.peers[0].readiness().ready

    on_stage(play, peers=1)


def test_leaving_the_stream_stops_the_generation(on_stage) -> None:
    from nsllm.node.chat import ChatCommand
    from nsllm.record import Message

    async def play(stage) -> None:
        peer = stage.peers[0]
        command = ChatCommand(
            model="default", messages=(Message(role="user", content="a b c d"),), sampling=Sampling(), visibility=None
        )
        async with peer.chat(command) as events:
            await events.receive()
        assert (await peer.status()).engine.active == 0
        assert peer.ledger.log_size == 0

    on_stage(play, peers=1)


def test_three_of_four_go_on_and_the_fourth_catches_up(on_stage) -> None:
    async def play(stage) -> None:
        stage.network.stop(3)
        await trio.sleep(1)
        peer = stage.peers[0]
        for number in range(3):
            await stage.anchored(peer, await stage.ask(peer, f"How do rivers flow in part {number}?"))
        height = peer.ledger.height
        await stage.start(3)
        back = stage.network.peers[3].peer
        await stage.until(lambda: back.ledger.height >= height)
        assert back.ledger.log_root == peer.ledger.log_root

    on_stage(play)


def test_a_peer_that_restarts_publishes_what_was_pending_and_keeps_its_receipts(on_stage) -> None:
    async def play(stage) -> None:
        for number in (1, 2, 3):
            stage.network.stop(number)
        await trio.sleep(1)
        answer = await stage.ask(stage.peers[0], "How does bread rise?")
        assert (await stage.peers[0].receipt(answer.started.completion_id)).state == "pending"
        stage.network.stop(0)
        await trio.sleep(1)
        await stage.start(0, 1, 2, 3)
        await stage.anchored(stage.network.peers[0].peer, answer)

    on_stage(play)


def test_holders_get_a_record_although_its_generator_died(on_stage) -> None:
    async def play(stage) -> None:
        generator = stage.peers[0]
        answer = await stage.ask(generator, "How do planets move?")
        await stage.until(lambda: stage.peers[1].ledger.log_size == 1 or stage.peers[2].ledger.log_size == 1)
        stage.network.stop(0)
        assert answer.finished.publication == "pending"
        await trio.sleep(120)
        sources = [(await stage.ask(peer, "How do planets move?")).started.source.kind for peer in stage.peers]
        assert sources == ["cache"] * 3

    on_stage(play)


@pytest.mark.parametrize("held", [False, True], ids=["of a model elsewhere", "of a model that validators have"])
def test_an_answer_without_token_ids_is_counted_as_told_and_its_receipt_says_so(on_stage, monkeypatch, held) -> None:
    from dataclasses import replace

    from nsllm.node.engine.port import Done, Piece
    from nsllm.simulations.standin import StandInEngine

    stream = StandInEngine._stream

    async def without_ids(self, messages, sampling):
        async for item in stream(self, messages, sampling):
            match item:
                case Piece():
                    yield replace(item, token_ids=())
                case Done():
                    yield replace(item, prompt_token_ids=(), counted=(31, 17))

    monkeypatch.setattr(StandInEngine, "_stream", without_ids)
    monkeypatch.setattr(StandInEngine, "holds", lambda _self, _model: held)

    async def play(stage) -> None:
        first, *others = stage.peers
        answer = await stage.ask(first, "How do bridges carry weight?")
        assert answer.text.startswith("How do bridges carry weight?")
        assert (answer.finished.prompt_tokens, answer.finished.completion_tokens) == (31, 17)
        await stage.anchored(first, answer)
        status = await first.receipt(answer.started.completion_id)
        report = verify_receipt(status.receipt_json, stage.network.genesis, "anchored")
        (found,) = (finding for finding in report.findings if finding.field == "token_ids")
        assert (found.value, found.standing) == ("unknown", "claimed")
        again = await stage.ask(others[0], "How do bridges carry weight?")
        if held:  # whoever has the model can say what it said: without that the answer is worth nothing
            assert again.started.source.kind == "engine"
        else:
            assert (again.started.source.kind, again.text) == ("cache", answer.text)
            assert (again.finished.prompt_tokens, again.finished.completion_tokens) == (0, 0)

    on_stage(play)


def test_validators_score_with_the_scorer_not_with_the_text_model(on_stage, monkeypatch) -> None:
    from dataclasses import replace

    from nsllm.ids import Digest
    from nsllm.simulations.standin import StandInEngine

    info = StandInEngine.info

    def elsewhere(self):
        plain = info(self)
        text = replace(plain.text, name="big", digest=Digest(bytes(32)), upstream=True, context_tokens=None)
        return replace(plain, text=text, scorer=plain.text)

    monkeypatch.setattr(StandInEngine, "info", elsewhere)

    async def play(stage) -> None:
        peer = stage.peers[0]
        answer = await stage.ask(peer, "How do bridges carry weight?")
        assert answer.started.model == "big"
        await stage.anchored(peer, answer)

    on_stage(play, peers=1)
