"""One record on its way to a score: who is late, when a row may be opened, when the record is due."""

from __future__ import annotations

import pytest

from nsllm.consensus.batch import Row
from nsllm.consensus.observation import Subject
from nsllm.governance.record_case import COPIED_AFTER_S, TIMELY_S, WAIT_FOR_ALL_S, Opened, Place, RecordCase

A, B, C, D = (bytes([i]) * 20 for i in range(1, 5))
SUBJECT = Subject(bytes(32), bytes(20), bytes(32))
LIE = Subject(bytes(32), b"\x09" * 20, bytes(32))


def case_of(story: str) -> RecordCase:
    """Of four validators: A commits (`cA@0.1`), opens (`o`), opens with a lie of whose it is (`l`), abstains (`a`)."""
    case = RecordCase(3, 1)
    for word in story.split():
        what, who = word[0], {"A": A, "B": B, "C": C, "D": D}[word[1]]
        at_s = float(word[3:])
        if what == "c":
            case.commit(who, Place(1, at_s))
        elif what == "a":
            case.abstain(who, 1, at_s)
        else:
            case.open(who, Opened(SUBJECT if what == "o" else LIE, Row(0, bytes(16), (1,)), b"", at_s))
    return case


@pytest.mark.parametrize(
    ("story", "now", "may"),
    [
        ("cA@0 cB@0", 9.0, False),
        ("cA@0 cB@0 cC@1", 1.0, False),
        ("cA@0 cB@0 cC@1", 1.0 + WAIT_FOR_ALL_S, True),
        ("cA@0 cB@0 cC@1 cD@1.1", 1.1, True),
        ("cA@0 cB@0 cC@1 aD@0", 1.0, True),
        ("aA@0 aB@0 aC@0 aD@0", 9.0, False),
        ("cA@0 cB@0 cC@1 oA@1 oB@1 oC@1", 1.0, True),
    ],
)
def test_a_row_is_shown_once_enough_and_all_or_for_long_enough_have_committed(story, now, may) -> None:
    assert case_of(story).may_open(now) is may


def test_whoever_commits_after_others_waited_and_opened_is_late_and_does_not_count() -> None:
    case = case_of("cA@0 cB@0 cC@0 oA@0.3 cD@0.5 oB@0.5 oD@0.5")
    assert case.late == {D: pytest.approx(0.2)}
    assert set(case.agreeing()) == {A, B}
    assert not case.ready
    case.open(C, Opened(SUBJECT, Row(0, bytes(16), (1,)), b"", 0.6))
    assert case.ready
    assert case.due_in_s(0.6) == 0.0, "nobody waits for who is late"


def test_a_commit_whose_link_is_slower_than_that_of_an_opened_row_is_not_late() -> None:
    """Whoever opened before the wait for all was over had heard everybody."""
    case = case_of("cA@0 cB@0 cC@0 oA@0.01 oB@0.01 cD@0.02 oD@0.02 oC@0.02")
    assert not case.late
    assert set(case.agreeing()) == {A, B, C, D}


def test_the_first_commits_are_never_late_because_who_lacks_them_has_missed_some() -> None:
    """A restarted validator hears commits and opened rows of one sender after the other."""
    case = case_of("cA@0 oA@0 cB@5 oB@5 cC@9 oC@9")
    assert not case.late
    assert set(case.agreeing()) == {A, B, C}


@pytest.mark.parametrize(
    ("story", "now", "due"),
    [
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1", 1.1, WAIT_FOR_ALL_S - 0.1),
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1", 2.0, 0.0),
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1 oD@1", 1.0, 0.0),
        ("cA@0 cB@0 cC@0 oA@1 oB@1 oC@1", 1.0, 0.0),
        ("cA@0 cB@0 cC@0 oA@0.1 oB@0.1 oC@0.1", 0.1, WAIT_FOR_ALL_S - 0.1),
        ("cA@0 cB@0 cC@0 aD@0.1 oA@0.1 oB@0.1 oC@0.1", 0.1, 0.0),
        ("cA@0 cB@0 cC@0 cD@0 lD@1 oA@1 oB@1 oC@1", 1.0, 0.0),
    ],
)
def test_a_ready_record_waits_for_those_that_spoke_in_time_or_still_may(story, now, due) -> None:
    case = case_of(story)
    assert case.ready
    assert case.due_in_s(now) == pytest.approx(due)


def test_a_liar_about_the_generator_does_not_count_with_the_others() -> None:
    case = case_of("cA@0 cB@0 cC@0 cD@0 lA@1 oB@1 oC@1")
    assert not case.ready
    case.open(D, Opened(SUBJECT, Row(0, bytes(16), (1,)), b"", 2.0))
    assert set(case.agreeing()) == {B, C, D}
    assert case.enough_opened_s == 2.0


def test_abstentions_of_more_than_f_settle_that_there_is_no_score() -> None:
    case = case_of("aA@1 cB@1")
    assert not case.ready
    case.abstain(C, 1, 2.0)
    assert case.ready
    assert (case.hopeless_s, case.due_in_s(2.0), case.due_at_s()) == (2.0, 0.0, 2.0)
    case.forget(C)
    assert not case.ready
    assert not case.empty
    case.forget(A)
    case.forget(B)
    assert case.empty


@pytest.mark.parametrize(
    ("story", "timely"),
    [
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1 oD@1", True),
        (f"cA@0 cB@0 cC@0 cD@{TIMELY_S} oA@1 oB@1 oC@1 oD@{1 + TIMELY_S}", True),
        (f"cA@0 cB@0 cC@0 cD@{TIMELY_S + 0.01} oA@1 oB@1 oC@1 oD@1", False),
        (f"cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1 oD@{1.01 + TIMELY_S}", False),
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1", False),
        ("cA@0 cB@0 cC@0 cD@0 oA@1 oB@1 oC@1 lD@1", False),
        ("cA@0 cB@0 cC@0 oA@1 cD@1 oB@1 oC@1 oD@1", False),
    ],
)
def test_whom_an_honest_proposer_must_have_had(story, timely) -> None:
    assert case_of(story).timely(D) is timely


@pytest.mark.parametrize(
    ("story", "now", "copied"),
    [
        ("cA@0 cB@0 cC@0 oA@1 cD@1.5", 9.0, False),
        (f"cA@0 cB@0 cC@0 oA@1 cD@{1.1 + COPIED_AFTER_S}", 9.0, True),
        ("cA@0 cB@0 cC@0 oA@1", 1.5, False),
        ("cA@0 cB@0 cC@0 oA@1", 1.1 + COPIED_AFTER_S, True),
        ("cA@0 cB@0 oA@1", 9.0, False),
        ("cA@0 cB@0 cC@0", 9.0, False),
        ("cA@0 cB@0 cC@0 cD@0 oA@1", 9.0, False),
    ],
)
def test_whose_row_no_honest_proposer_takes_in(story, now, copied) -> None:
    assert case_of(story).copied(D, now) is copied
