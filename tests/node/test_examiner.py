"""A validator's desk: bounded for everybody and for each, fair in turns, abstaining aloud, repeating itself seldom."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from nsllm import canonical
from nsllm.consensus.observation import DimensionScore
from nsllm.errors import EncodingError
from nsllm.governance.errors import AbstainError, BlockError
from nsllm.node import examiner as module
from nsllm.node.examiner import Examiner


class FakeLedger:
    def __init__(self) -> None:
        self.done: set[bytes] = set()
        self.observations: list[tuple[float, object]] = []
        self.refuse: Exception | None = None

    def is_certified(self, record: bytes) -> bool:
        return record in self.done

    def add_observation(self, signed) -> bool:
        if self.refuse is not None:
            raise self.refuse
        self.observations.append((trio.current_time(), signed))
        return True


class Desk:
    def __init__(self, cast) -> None:
        self.ledger = FakeLedger()
        self.sent: list[tuple[float, bytes, bytes]] = []
        self.dues = 0
        self.scored: list[str] = []
        self.takes_s = 0.1
        self.fails: Exception | None = None
        self.cast = cast
        rubric = cast.context.policy.rubric
        self.examiner = Examiner(
            context=cast.context,
            scorer=SimpleNamespace(rubric=rubric, observe=self.observe),
            ledger=self.ledger,
            share=lambda to, payload: self.sent.append((trio.current_time(), to, payload)),
            due=self.due,
        )

    def due(self) -> None:
        self.dues += 1

    async def observe(self, record):
        await trio.sleep(self.takes_s)
        if self.fails is not None:
            raise self.fails
        self.scored.append(record.request.question())
        return tuple(DimensionScore(name=name, ppm=500_000) for name in self.cast.context.policy.rubric.dimensions)


@pytest.fixture
async def desk(cast, autojump_clock, nursery) -> Desk:
    desk = Desk(cast)
    nursery.start_soon(desk.examiner.run)
    return desk


async def test_a_record_is_scored_once_and_shared_with_the_other_validators(cast, autojump_clock, desk) -> None:
    signed = cast.record()
    assert desk.examiner.accept(signed) is None
    assert desk.examiner.accept(signed) is None
    await trio.sleep(1)
    assert desk.scored == ["why?"]
    assert [to for _, to, _ in desk.sent] == [a for a in cast.context.validators.members if a != cast.context.address]
    assert desk.dues == 1
    assert desk.examiner.waiting() == 1
    assert desk.examiner.release(signed.record.digest()) == signed
    assert desk.examiner.waiting() == 0
    assert desk.examiner.release(signed.record.digest()) is None


async def test_observations_go_out_again_ever_more_seldom_until_the_record_is_certified(
    cast, autojump_clock, desk
) -> None:
    signed = cast.record()
    desk.examiner.accept(signed)
    await trio.sleep(60)
    times = sorted({round(at) for at, _, _ in desk.sent})
    assert times == [0, 4, 8, 16, 26, 36, 46, 56]
    assert len(desk.ledger.observations) == len(times)  # our own pool may have dropped it too
    desk.ledger.done.add(signed.record.digest())
    await trio.sleep(60)
    assert len({round(at) for at, _, _ in desk.sent}) == len(times)
    assert desk.examiner.waiting() == 0


async def test_what_goes_out_again_at_once_is_bounded(cast, autojump_clock, desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "RESEND_AT_ONCE", 4)
    desk.takes_s = 0.0
    for number in range(20):
        desk.examiner.accept(cast.record(f"question {number}", by=number % 4))
    await trio.sleep(1)
    before = len(desk.sent)
    await trio.sleep(4)  # two ticks
    assert len(desk.sent) - before <= 2 * 4 * 3
    await trio.sleep(30)
    assert len({payload for at, _, payload in desk.sent if at > 1}) == 20  # nobody is forgotten


async def test_a_record_that_nobody_certifies_leaves_the_desk(cast, autojump_clock, desk) -> None:
    desk.examiner.accept(cast.record())
    await trio.sleep(module.GIVE_UP_S + 5)
    assert desk.examiner.waiting() == 0


async def test_the_desk_is_bounded_and_one_generator_cannot_fill_it(cast, autojump_clock, desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "GENERATOR_LIMIT", 5)
    monkeypatch.setattr(module, "DESK_LIMIT", 8)
    flood = [desk.examiner.accept(cast.record(f"flood {number}", by=1)) for number in range(10)]
    assert flood[:5] == [None] * 5
    assert all("of your records" in reason for reason in flood[5:])
    others = [desk.examiner.accept(cast.record(f"other {number}", by=2)) for number in range(4)]
    assert others[:3] == [None] * 3
    assert "waiting already" in others[3]
    assert desk.examiner.waiting() == 8
    rejected = [event for event in cast.told if event.kind == "record_rejected"]
    assert len(rejected) == 6
    await trio.sleep(1)
    # turns: the others' records were not scored after the flood
    assert desk.scored[:6] == ["flood 0", "other 0", "flood 1", "other 1", "flood 2", "other 2"]
    for number in range(5):
        desk.examiner.release(cast.record(f"flood {number}", by=1).record.digest())
    assert desk.examiner.accept(cast.record("flood again", by=1)) is None


async def test_the_desk_holds_so_many_bytes(cast, autojump_clock, desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "DESK_BYTES", 5_000)
    assert desk.examiner.accept(cast.record("a", text="x" * 2_500)) is None
    assert "waiting already" in desk.examiner.accept(cast.record("b", text="x" * 2_500))
    desk.examiner.release(cast.record("a", text="x" * 2_500).record.digest())
    assert desk.examiner.accept(cast.record("b", text="x" * 2_500)) is None


async def test_records_that_were_certified_meanwhile_take_no_room(cast, autojump_clock, desk) -> None:
    """A desk whose records are certified by others before we score them goes on taking new ones."""
    desk.takes_s = 1_000.0
    for number in range(3 * module.GENERATOR_LIMIT):
        signed = cast.record(f"question {number}")
        assert desk.examiner.accept(signed) is None
        desk.examiner.release(signed.record.digest())
    assert desk.examiner.waiting() == 0


async def test_a_forged_record_is_refused(cast, autojump_clock, desk) -> None:
    signed = cast.record()
    forged = type(signed)(record=cast.record(text="something else").record, signature=signed.signature)
    assert "signed by" in desk.examiner.accept(forged)
    assert desk.examiner.waiting() == 0


@pytest.mark.parametrize("how", ["abstains", "hangs", "contradicts the rules"])
async def test_a_validator_that_cannot_score_abstains_aloud_and_goes_on(cast, autojump_clock, desk, how: str) -> None:
    if how == "abstains":
        desk.fails = AbstainError("the rubric's encoder is 02, this peer has 03")
    elif how == "hangs":
        desk.takes_s = module.SCORE_DEADLINE_S + 1
    else:
        desk.ledger.refuse = BlockError("other dimensions")
    desk.examiner.accept(cast.record("first"))
    await trio.sleep(module.SCORE_DEADLINE_S + 5)
    (abstained,) = [event for event in cast.told if event.kind == "abstained"]
    wanted = {"abstains": "encoder", "hangs": "too slow", "contradicts the rules": "other dimensions"}[how]
    assert wanted in abstained.fields["reason"]
    assert desk.sent == []
    assert desk.examiner.waiting() == 0
    desk.fails, desk.takes_s, desk.ledger.refuse = None, 0.1, None
    desk.examiner.accept(cast.record("second"))
    await trio.sleep(1)
    assert "second" in desk.scored
    assert desk.sent


async def test_only_its_validator_may_bring_an_observation(cast, autojump_clock, desk) -> None:
    desk.examiner.accept(cast.record())
    await trio.sleep(1)
    payload = desk.sent[0][2]
    other = next(a for a in cast.context.validators.members if a != cast.context.address)
    with pytest.raises(EncodingError, match="sent by"):
        desk.examiner.hear(other, payload)
    with pytest.raises(EncodingError):
        desk.examiner.hear(other, b"junk")
    dues = desk.dues
    desk.examiner.hear(cast.context.address, payload)
    assert desk.dues == dues + 1
    assert canonical.encode(desk.ledger.observations[-1][1]) == payload
