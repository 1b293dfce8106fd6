"""A validator's desk: bounded for everybody and for each, fair in turns, abstaining aloud, repeating itself seldom."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
from msgspec.structs import replace

from nsllm.consensus.observation import Subject
from nsllm.governance.errors import AbstainError
from nsllm.governance.hybrid_score import Observed
from nsllm.node import examiner as module
from nsllm.node.errors import EngineError
from nsllm.node.examiner import Examiner


class FakeLedger:
    def __init__(self) -> None:
        self.done: set[bytes] = set()

    def is_settled(self, record: bytes) -> bool:
        return record in self.done


class FakeCommitter:
    def __init__(self) -> None:
        self.rows: list[tuple[object, tuple[int, ...]]] = []
        self.abstentions: list[tuple[bytes, str]] = []
        self.held: set[bytes] = set()

    def observed(self, subject, ppm, *, more) -> None:
        self.rows.append((subject, ppm))

    def abstained(self, record: bytes, reason: str, *, more) -> None:
        self.abstentions.append((record, reason))

    def holds(self, record: bytes) -> bool:
        return record in self.held


class Desk:
    def __init__(self, cast) -> None:
        self.ledger = FakeLedger()
        self.committer = FakeCommitter()
        self.scored: list[str] = []
        self.takes_s = 0.1
        self.fails: list[Exception] = []
        self.cast = cast
        self.lacks: str | None = None
        self.under: list[object] = []
        self.together: list[list[str]] = []
        self.hangs = self.breaks = self.unread = ""
        """Questions of records that cannot be scored."""
        self.examiner = Examiner(
            context=cast.context,
            scorer=SimpleNamespace(observe=self.observe, lacks=lambda _rubric: self.lacks),
            ledger=self.ledger,
            committer=self.committer,
        )

    async def observe(self, records, rubric):
        self.under += [rubric] * len(records)
        questions = [record.request.question() for record in records]
        self.together.append(questions)
        await trio.sleep(self.takes_s * len(records) if self.hangs not in questions else 2 * module.SCORE_DEADLINE_S)
        if self.fails:
            raise self.fails.pop(0)
        if self.breaks in questions:
            raise EngineError("this one breaks the worker")
        self.scored += questions
        row = Observed((500_000,) * len(self.cast.context.policy.rubric.dimensions), {"computation": "not loaded here"})
        return [AbstainError("cannot be read") if question == self.unread else row for question in questions]


@pytest.fixture
async def desk(cast, autojump_clock, nursery) -> Desk:
    desk = Desk(cast)
    nursery.start_soon(desk.examiner.run)
    return desk


async def test_a_record_is_scored_once_and_handed_to_the_committer(cast, autojump_clock, desk) -> None:
    signed = cast.record()
    assert desk.examiner.accept(signed) is None
    assert desk.examiner.accept(signed) is None
    await trio.sleep(1)
    assert desk.scored == ["why?"]
    subject = Subject(signed.record.digest(), signed.record.generator, cast.key())
    assert desk.committer.rows == [(subject, (500_000,) * len(cast.context.policy.rubric.dimensions))]
    assert desk.examiner.waiting() == 1
    assert desk.examiner.release(signed.record.digest()) == signed
    assert desk.examiner.waiting() == 0
    assert desk.examiner.release(signed.record.digest()) is None


async def test_what_was_committed_to_before_a_restart_is_not_scored_again(cast, autojump_clock, desk) -> None:
    signed = cast.record()
    desk.committer.held.add(signed.record.digest())
    assert desk.examiner.accept(signed) is None
    await trio.sleep(1)
    assert desk.scored == []
    assert desk.examiner.waiting() == 1


async def test_what_others_settled_leaves_the_desk(cast, autojump_clock, desk) -> None:
    signed = cast.record()
    desk.examiner.accept(signed)
    await trio.sleep(1)
    desk.ledger.done.add(signed.record.digest())
    await trio.sleep(module.SWEEP_S)
    assert desk.examiner.waiting() == 0


async def test_a_record_that_nobody_certifies_leaves_the_desk(cast, autojump_clock, desk) -> None:
    desk.examiner.accept(cast.record())
    await trio.sleep(module.GIVE_UP_S + 2 * module.SWEEP_S)
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


async def test_records_that_were_certified_meanwhile_take_no_room(cast, autojump_clock, desk, monkeypatch) -> None:
    """A desk whose records are certified by others before we score them goes on taking new ones."""
    monkeypatch.setattr(module, "GENERATOR_LIMIT", 16)
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


@pytest.mark.parametrize("how", ["lacks the rubric's encoder", "hangs", "fails again and again"])
async def test_a_validator_that_cannot_score_abstains_aloud_and_goes_on(cast, autojump_clock, desk, how: str) -> None:
    if how == "hangs":
        desk.takes_s = module.SCORE_DEADLINE_S + 1
    elif how == "fails again and again":
        desk.fails = [EngineError("the worker in somebody's folder died")] * module.TRIES
    else:
        desk.fails = [AbstainError("the rubric's encoder is 02, this peer has 03")]
    signed = cast.record("first")
    desk.examiner.accept(signed)
    await trio.sleep(module.SCORE_DEADLINE_S + 5)
    (abstained,) = [event for event in cast.told if event.kind == "abstained"]
    [(record, reason)] = desk.committer.abstentions
    assert (record, reason) == (signed.record.digest(), abstained.fields["reason"])
    wanted = {"hangs": "too slow", "fails again and again": EngineError.code}
    assert reason == wanted.get(how, "the rubric's encoder is 02, this peer has 03")
    assert desk.committer.rows == []
    assert desk.examiner.accept(signed) is None, "offered again, it is not looked at again"
    desk.takes_s = 0.1
    desk.examiner.accept(cast.record("second"))
    await trio.sleep(1)
    assert desk.scored == ["second"]
    assert len(desk.committer.rows) == 1


async def test_an_engine_that_fails_once_is_asked_again(cast, autojump_clock, desk) -> None:
    desk.fails = [EngineError("starting again")]
    desk.examiner.accept(cast.record())
    await trio.sleep(5)
    assert desk.scored == ["why?"]
    assert desk.committer.abstentions == []


async def test_a_record_of_another_day_is_not_scored(cast, autojump_clock, desk) -> None:
    """Whether it was scored before may be forgotten by then; the clock may be that much off, either way."""
    signed = cast.record()
    now = cast.context.clock.now_ms()
    for away_ms, taken in ((0, True), (module.MAX_AGE_MS + 1000, False), (-module.MAX_AGE_MS - 1000, False)):
        desk.examiner._context = SimpleNamespace(
            **{name: getattr(cast.context, name) for name in ("is_validator", "network_id", "events", "registry")},
            retracted_at=cast.context.retracted_at,
            clock=SimpleNamespace(now_ms=lambda away_ms=away_ms: signed.record.created_ms + away_ms),
        )
        reason = desk.examiner._refusal(signed)
        assert (reason is None) == taken
        assert taken or "away from our clock" in reason
    assert abs(now - signed.record.created_ms) < module.MAX_AGE_MS


async def test_another_rubric_puts_everything_on_the_desk_in_line_again(
    cast, autojump_clock, desk, monkeypatch
) -> None:
    """One record is scored, one is being scored, one waits: all three are scored under the rubric that is in force."""
    monkeypatch.setattr(module, "MOST_TOGETHER", 1)
    records = [cast.record(name) for name in "abc"]
    for signed in records:
        desk.examiner.accept(signed)
    await trio.sleep(1.5 * desk.takes_s)
    assert len(desk.committer.rows) == 1
    policy = cast.context.standing.policy
    rubric = replace(policy.rubric, scorer_model=bytes(32))
    cast.context.standing.policy = replace(policy, rubric=rubric)
    desk.lacks = "the rubric's scorer model is 00, which is not loaded here"
    desk.examiner.follow()
    desk.examiner.follow()
    assert [event.fields["lacks"] for event in cast.told if event.kind == "rubric_changed"] == [desk.lacks]
    assert desk.examiner.lacks() == desk.lacks
    await trio.sleep(1)
    subjects = [subject.record for subject, _ in desk.committer.rows]
    assert len(subjects) == 4
    assert subjects[0] in subjects[1:]
    assert set(subjects[1:]) == {signed.record.digest() for signed in records}
    assert desk.under == [policy.rubric] * 2 + [rubric] * 3


async def test_an_abstention_under_a_rubric_that_is_no_more_is_not_said(cast, autojump_clock, desk) -> None:
    desk.fails = [AbstainError("the rubric's scorer model is 00, which is not loaded here")]
    desk.examiner.accept(cast.record())
    await trio.sleep(0.5 * desk.takes_s)
    policy = cast.context.standing.policy
    cast.context.standing.policy = replace(policy, rubric=replace(policy.rubric, scorer_model=bytes(32)))
    desk.examiner.follow()
    await trio.sleep(1)
    assert desk.committer.abstentions == []
    assert len(desk.committer.rows) == 1


async def test_what_waits_is_scored_together_as_far_as_that_is_quick(cast, autojump_clock, desk) -> None:
    """The first go shows how long a record takes; from then on as many are taken as `TOGETHER_S` allows."""
    desk.takes_s = module.TOGETHER_S / 2.5
    for number in range(40):
        assert desk.examiner.accept(cast.record(f"question {number}")) is None
    await trio.sleep(3)
    sizes = [len(questions) for questions in desk.together]
    assert sizes == [1, *[3] * 13]
    assert desk.scored == [f"question {number}" for number in range(40)]


@pytest.mark.parametrize("how", ["hangs", "breaks", "unread"])
async def test_a_record_that_cannot_be_scored_costs_no_other(cast, autojump_clock, desk, how: str) -> None:
    setattr(desk, how, "b")
    desk.takes_s = module.TOGETHER_S / 10
    for name in ("first", *"abc"):
        desk.examiner.accept(cast.record(name))
    await trio.sleep(4 * module.SCORE_DEADLINE_S)
    assert desk.together[:2] == [["first"], ["a", "b", "c"]]
    assert all(len(questions) == 1 for questions in desk.together[2:]), "each by itself"
    scored = {subject.record for subject, _ in desk.committer.rows}
    assert scored == {cast.record(name).record.digest() for name in ("first", "a", "c")}
    [(record, reason)] = desk.committer.abstentions
    assert record == cast.record("b").record.digest()
    assert reason == {"hangs": "too slow", "breaks": EngineError.code, "unread": "cannot be read"}[how]
    assert desk.together.count(["b"]) == {"hangs": 1, "breaks": module.TRIES, "unread": 0}[how]
