"""What is due when, and what is forgotten by being taken."""

import math

import pytest

from nsllm.consensus.agenda import Agenda, Duty
from nsllm.consensus.inputs import TimedOut
from nsllm.consensus.message import PolkaCertificate
from nsllm.consensus.timeouts import Timeouts
from nsllm.ids import Round

TIMEOUTS = Timeouts()
CERTIFICATE = PolkaCertificate(votes=())


@pytest.fixture
def agenda() -> Agenda:
    """Of a height that began at 100 and asked the application."""
    agenda = Agenda(TIMEOUTS)
    agenda.begin(100.0, ahead=False)
    assert agenda.take(100.0, ahead=False) is Duty.ASK
    return agenda


def test_nothing_is_due_before_its_moment(agenda) -> None:
    assert agenda.take(100.0, ahead=False) is None
    assert agenda.next_at(ahead=False) == 100.0 + TIMEOUTS.idle_s
    agenda.arm("prevote", Round(2), 100.0)
    due = 100.0 + TIMEOUTS.of("prevote", 2)
    assert agenda.next_at(ahead=False) == due
    assert agenda.take(due - 0.001, ahead=False) is None
    assert agenda.take(due, ahead=False) == TimedOut(step="prevote", round=Round(2))
    assert agenda.take(due, ahead=False) is None, "a timer fires once"


def test_the_most_urgent_comes_first(agenda) -> None:
    agenda.relay(CERTIFICATE, 100.0)
    agenda.arm("propose", Round(0), 100.0)
    agenda.arm("precommit", Round(0), 100.0)
    agenda.ask()
    taken = []
    for _ in range(6):
        taken.append(agenda.take(1000.0, ahead=True))
        if taken[-1] is Duty.FETCH:
            agenda.fetch_later(1000.0)
        if taken[-1] is Duty.RESEND:
            agenda.resend(1000.0)
    assert [each.step if isinstance(each, TimedOut) else each for each in taken] == [
        "precommit",
        "propose",
        Duty.FETCH,
        Duty.ASK,
        Duty.RESEND,
        CERTIFICATE,
    ]


def test_a_fetch_is_due_only_while_others_are_ahead(agenda) -> None:
    late = 100.0 + TIMEOUTS.grace_s
    assert agenda.take(late, ahead=False) is None
    assert agenda.take(late, ahead=True) is Duty.FETCH
    assert agenda.take(late, ahead=True) is Duty.FETCH, "until it is put down anew"
    agenda.fetch_later(late)
    assert agenda.take(late, ahead=True) is None
    agenda.fetch_by(0.0)
    assert agenda.take(late, ahead=True) is Duty.FETCH, "somebody says a height is decided: no later than that"
    agenda.fetch(late, patient=True)
    assert agenda.next_at(ahead=True) == late + TIMEOUTS.grace_s


def test_an_answer_is_asked_for_again(agenda) -> None:
    agenda.ask_again(5.0, 100.0)
    agenda.ask_again(7.0, 100.0)
    assert agenda.next_at(ahead=False) == 105.0
    assert agenda.take(105.0, ahead=False) is Duty.ASK
    agenda.ask()
    assert agenda.next_at(ahead=False) == -math.inf


def test_a_height_takes_no_timers_or_relays_of_the_one_before(agenda) -> None:
    agenda.arm("propose", Round(0), 100.0)
    agenda.relay(CERTIFICATE, 100.0)
    agenda.begin(100.5, ahead=True)
    assert agenda.timers == 0
    assert [agenda.take(101.0, ahead=True), agenda.take(101.0, ahead=False)] == [Duty.FETCH, Duty.ASK]
    assert agenda.take(101.0, ahead=False) is None


def test_after_a_restart_we_ask_and_say_again_at_once() -> None:
    agenda = Agenda(TIMEOUTS)
    assert agenda.next_at(ahead=True) == math.inf
    agenda.resume(50.0)
    assert [agenda.take(50.0, ahead=True), agenda.take(50.0, ahead=True)] == [Duty.ASK, Duty.RESEND]


def test_a_decision_is_fresh_for_half_a_resend(agenda) -> None:
    assert not agenda.is_fresh(100.0)
    agenda.decided(100.0)
    assert agenda.is_fresh(100.0 + TIMEOUTS.resend_s / 2 - 0.001)
    assert not agenda.is_fresh(100.0 + TIMEOUTS.resend_s / 2)
