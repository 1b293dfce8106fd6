# ruff: noqa: E501 - tables
"""Every arm of the core, as rows: who we are, what happened, what the last step made it want. n=4, f=1, quorum 3.

At height 1 the proposers of rounds 0, 1, 2, 3 are validators 1, 2, 3, 0.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.consensus import core
from nsllm.consensus.core import Step
from nsllm.consensus.inputs import VoteReceived, decode_input, encode_input
from nsllm.consensus.tally import MAX_ROUNDS_AHEAD
from nsllm.consensus.vote import Choice

LOCK_A = "start; prop 0 A; pv 12 0 A"
"""Validator 0 has prevoted, seen the polka of round 0 and locked A."""
NEXT = "; pc 12 0 nil; to precommit 0"
"""Round 0 ends without a decision."""

ROWS = [
    # lines, me, script, wanted
    ("10 nothing before the start", 0, "prop 0 A; pv 123 0 A; pc 123 0 A", []),
    ("10-21 not the proposer", 0, "start", ["timer propose 0"]),
    ("14-18 the proposer, no valid value", 1, "start", ["timer propose 0", "build 0"]),
    ("18-19 the value is built", 1, "start; built 0 A", ["propose 0 A", "prevote 0 A"]),
    ("18 an answer too late", 1, "start; to propose 0; built 0 A", []),
    ("18 built twice", 1, "start; built 0 A; built 0 B", []),
    ("15-16 the proposer has a valid value", 2, LOCK_A.replace("12", "13") + "; pc 13 0 nil; to precommit 0",
     ["relay RoundCertificate 0 of 3", "timer propose 1", "propose 1 A after 0 by 3", "prevote 1 A"]),
    ("22-24 a valid new proposal", 0, "start; prop 0 A", ["prevote 0 A"]),
    ("22-26 an invalid new proposal", 0, "start; prop! 0 A", ["prevote 0 nil"]),
    ("22 only in step propose", 0, "start; to propose 0; prop 0 A", []),
    ("22 a proposal before the start counts at the start", 0, "prop 0 A; start", ["timer propose 0", "prevote 0 A"]),
    ("22 a proposal of a coming round waits", 0, "start; prop 1 A", []),
    ("23 locked on it", 0, LOCK_A + NEXT + "; prop 1 A", ["prevote 1 A"]),
    ("23 locked on another", 0, LOCK_A + NEXT + "; prop 1 B", ["prevote 1 nil"]),
    ("28 a claimed polka that we have not seen", 0, "start; pc 123 0 nil; to precommit 0; prop 1 A 0", []),
    ("28-30 proposed again with its polka", 0, "start; to propose 0; pc 123 0 nil; to precommit 0; prop 1 A 0; polka 0 A 123",
     ["prevote 1 A"]),
    ("28 the polka of its own round does not count", 0, "start; pc 123 0 nil; to precommit 0; prop 1 A 1; polka 1 A 123", []),
    ("29 a later polka frees the lock", 0,
     LOCK_A + NEXT + "; prop 1 B; pv 123 1 B; pc 123 1 nil; to precommit 1; prop 2 B 1", ["prevote 2 B"]),
    ("29-32 an earlier polka does not", 0,
     "start; to propose 0; pc 123 0 nil; to precommit 0; prop 1 A; pv 12 1 A; pc 12 1 nil; to precommit 1; polka 0 B 123; prop 2 B 0",
     ["prevote 2 nil"]),
    ("29 refused by the application", 0, "start; pc 123 0 nil; to precommit 0; polka 0 A 123; prop! 1 A 0", ["prevote 1 nil"]),
    ("34 three prevotes for different things", 0, "start; prop 0 A; pv 1 0 B; pv 2 0 nil", ["timer prevote 0"]),
    ("34 once only", 0, "start; prop 0 A; pv 1 0 B; pv 2 0 nil; pv 3 0 nil", []),
    ("34 not before our own prevote", 0, "start; pv 1 0 B; pv 2 0 nil; pv 3 0 A", []),
    ("36-41 the polka locks and is relayed", 0, LOCK_A, ["precommit 0 A", "relay PolkaCertificate 0 of 3"]),
    ("36 two prevotes are none", 0, "start; prop 0 A; pv 1 0 A", []),
    ("36 the proposal comes last", 0, "start; to propose 0; pv 123 0 A; prop 0 A",
     ["precommit 0 A", "relay PolkaCertificate 0 of 3"]),
    ("36 not for what the application refuses", 0, "start; prop! 0 A; pv 1 0 A; pv 2 0 A; pv 3 0 A", []),
    ("42-43 valid, not locked, after the precommit", 0, "start; to propose 0; pv 12 0 nil; prop 0 A; pv 3 0 A", []),
    ("44-46 a polka for nil", 0, "start; prop! 0 A; pv 1 0 nil; pv 2 0 nil", ["precommit 0 nil"]),
    ("44 only in step prevote", 0, "start; pv 123 0 nil", []),
    ("47 three precommits for anything", 0, "start; prop 0 A; pc 1 0 A; pc 2 0 nil; pc 3 0 nil", ["timer precommit 0"]),
    ("47 once only", 0, "start; pc 123 0 nil; pc 0 0 nil", []),
    ("49-54 a quorum of precommits", 0, LOCK_A + "; pc 12 0 A", ["decide 0 A"]),
    ("49 of a round that is over", 0, LOCK_A + NEXT + "; pc 3 0 A; pc 1 1 A; pc 1 0 A", ["accuse double_vote"]),
    ("49 before the proposal", 0, "start; pc 123 0 A; prop 0 A", ["decide 0 A"]),
    ("49 of an earlier round", 0, "start; prop 0 A; pc 1 0 A; pc 2 0 nil; pc 0 0 A; to precommit 0; pc 3 0 A", ["decide 0 A"]),
    ("50 a quorum overrules our verdict", 0, "start; prop! 0 A; pc 123 0 A", ["decide 0 A"]),
    ("49 never across rounds", 0, "start; prop 0 A; pc 1 0 A; pc 2 1 A; pc 3 2 A", ["timer propose 1"]),
    ("55-56 f+1 in a later round", 0, "start; pv 1 2 nil; pc 2 2 nil", ["timer propose 2"]),
    ("55 one is not enough", 0, "start; pv 1 2 nil; pc 1 3 nil", []),
    ("55 f+1 in different later rounds enter the lower one", 0, "start; pv 1 3 nil; pc 2 2 nil", ["timer propose 2"]),
    ("55 a far round", 0, "start; pv 1 900 nil; pv 2 800 nil", ["timer propose 800"]),
    ("55 we propose there", 0, "start; pv 1 3 nil; pv 2 3 nil", ["timer propose 3", "build 3"]),
    ("57-60 propose timeout", 0, "start; to propose 0", ["prevote 0 nil"]),
    ("58 stale", 0, "start; prop 0 A; to propose 0", []),
    ("61-64 prevote timeout", 0, "start; to propose 0; pv 1 0 A; pv 2 0 nil; to prevote 0", ["precommit 0 nil"]),
    ("62 stale", 0, LOCK_A + "; to prevote 0", []),
    ("65-67 precommit timeout", 0, "start; pc 123 0 nil; to precommit 0", ["relay RoundCertificate 0 of 3", "timer propose 1"]),
    ("66 stale", 0, "start; pc 123 0 nil; to precommit 0; to precommit 0", []),
    ("65 never armed", 0, "start; to precommit 0", []),
    ("start twice", 0, "start; start", []),
    ("after the decision nothing counts", 0, LOCK_A + "; pc 12 0 A; pc 3 0 A", []),
    ("38 what a precommit locked is not forgotten", 0, "start; pc 1 0 A; pv 1 1 B", ["accuse amnesia"]),
    ("38 nor claimed before it was there", 0, "start; pv 1 1 B@0B; pc 1 0 A", ["accuse amnesia"]),
    ("40 a later lock replaces it", 0, "start; pc 1 0 A; pv 1 2 B@1B", []),
    ("amnesia is reported once", 0, "start; pc 1 0 A; pv 1 1 B; pv 1 1 A@0A", []),
    ("two prevotes that differ in the lock only", 0, "start; pv 1 1 A; pv 1 1 A@0A", ["accuse double_vote"]),
    ("equivocation is reported once", 0, "start; pv 1 0 A; pv 1 0 B", ["accuse double_vote"]),
    ("and not again", 0, "start; pv 1 0 A; pv 1 0 B; pv 1 0 C", []),
    ("the second vote does not count", 0, "start; prop 0 A; pv 1 0 B; pv 1 0 A; pv 2 0 A", ["timer prevote 0"]),
    ("but a polka counts as a whole", 0, "start; prop 0 A; pv 1 0 B; polka 0 A 123",
     ["accuse double_vote", "precommit 0 A", "relay PolkaCertificate 0 of 4"]),
    ("a polka of too few is single votes", 0, "start; prop 0 A; pv 1 0 B; polka 0 A 12", ["accuse double_vote", "timer prevote 0"]),
    ("a second proposal of a round is reported", 0, "start; prop 0 A; prop 0 B", ["accuse double_proposal"]),
    ("and counts once honest votes ask for it", 0, "start; prop 0 A; pc 123 0 B; prop 0 B", ["accuse double_proposal", "decide 0 B"]),
]  # fmt: skip


@pytest.mark.parametrize(("me", "script", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_arms(kit, me, script, wanted):
    assert kit.Bench(me=me).run(script) == wanted


def test_nil_never_unlocks(kit):
    bench = kit.Bench()
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 123 1 nil; pc 123 1 nil; to precommit 1")
    assert bench.state.round == 2
    assert bench.state.locked == Choice(round=0, value=bench.value("A"))
    assert bench.run("prop 2 B") == ["prevote 2 nil"]


def test_a_polka_seen_late_is_proposed_later(kit):
    """Lines 42-43 and 16: validator 3 did not lock A, but proposes it when its turn comes."""
    bench = kit.Bench(me=3)
    bench.run("start; to propose 0; pv 12 0 nil; prop 0 A; pv 12 0 A")
    assert bench.state.locked is None
    bench.run("polka 0 A 012")
    assert (bench.state.locked, bench.state.valid) == (None, Choice(round=0, value=bench.value("A")))
    assert "propose 2 A after 0 by 3" in bench.run("pv 0 2 nil; pv 1 2 nil")


@pytest.mark.parametrize(("count", "me"), [(1, 0), (2, 1), (3, 1)])
def test_without_faults_tolerated(kit, count, me):
    """n of 1, 2, 3: f is 0; one alone decides at once, two and three with a quorum of two."""
    bench = kit.Bench(count=count, me=me)
    effects = bench.run("start; built 0 A")
    if count == 1:
        assert effects == ["propose 0 A", "prevote 0 A", "precommit 0 A", "relay PolkaCertificate 0 of 1", "decide 0 A"]
    else:
        assert bench.run("pv 0 0 A; pc 0 0 A") == ["decide 0 A"]
    bench.decided.certificate.check(kit.NETWORK, bench.validators)


def test_the_certificate_of_a_decision_checks(kit):
    bench = kit.Bench()
    bench.run(LOCK_A + "; pc 12 0 A")
    bench.decided.certificate.check(kit.NETWORK, bench.validators)
    assert bench.state.step is Step.DECIDED


def test_missing_names_the_block_that_a_quorum_has(kit):
    bench = kit.Bench()
    assert core.missing(bench.state) is None
    bench.run("start; pv 123 0 A")
    assert core.missing(bench.state) == (0, bench.value("A"))
    bench.run("prop 0 A")
    assert core.missing(bench.state) is None
    bench.run("pc 123 0 nil; to precommit 0; pc 123 0 B; pc 1 1 B")
    bench.run("pc 3 1 C; pc 2 1 C; pc 1 1 C")
    assert core.missing(bench.state) is None, "an equivocator and two others are no quorum"


def test_what_is_stored_is_bounded(kit):
    """One validator that votes everything everywhere leaves a bounded trace."""
    bench = kit.Bench()
    bench.run("start")
    for round_ in range(60):
        for name in "ABCDEFGH":
            bench.feed(VoteReceived(vote=bench.vote("1", "prevote", round_, name)))
    votes = sum(len(v) for voters in bench.state.tally.slots.values() for v in voters.values())
    assert votes == MAX_ROUNDS_AHEAD + 1
    assert len(bench.state.tally.far) == 1
    assert bench.state.round == 0


def test_old_proposals_are_forgotten_but_not_the_valid_one(kit):
    bench = kit.Bench()
    bench.run(LOCK_A)
    for round_ in range(6):
        bench.run(f"prop {round_ + 1} {'BCDEFG'[round_]}")
        bench.run(f"pc 123 {round_} nil; to precommit {round_}")
    assert bench.state.round == 6
    assert bench.value("A") in bench.state.candidates
    assert len(bench.state.candidates) <= 4


def test_every_pair_of_state_and_input_is_defined(kit):
    scripts = ["", "start", "start; prop 0 A", LOCK_A, LOCK_A + "; pc 12 0 A", LOCK_A + NEXT]
    events = ["start", "prop 0 A", "prop! 1 B", "built 0 C", "pv 1 0 A", "pc 1 0 A", "polka 0 A 123", "to propose 0",
              "to prevote 0", "to precommit 0"]  # fmt: skip
    for script in scripts:
        for event in events:
            bench = kit.Bench()
            bench.run(script)
            bench.run(event)
            before = bench.state
            bench.run(event)
            assert bench.state.round >= before.round, "rounds never fall"


tokens = st.lists(
    st.one_of(
        st.sampled_from(["prop 0 A", "prop 1 A", "prop 1 B", "prop 1 A 0", "prop 2 B 1", "prop! 2 C", "start"]),
        st.builds("pv {} {} {}".format, st.integers(1, 3), st.integers(0, 2), st.sampled_from(["A", "B", "nil"])),
        st.builds("pc {} {} {}".format, st.integers(1, 3), st.integers(0, 2), st.sampled_from(["A", "B", "nil"])),
        st.builds("to {} {}".format, st.sampled_from(["propose", "prevote", "precommit"]), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(script=tokens)
def test_laws_of_one_validator(kit, script):
    """Whatever comes: one vote a slot, a precommit only after its polka, a lock kept until a later polka frees it."""
    bench = kit.Bench()
    votes: dict[tuple[str, int], str] = {}
    lock: tuple[int, str] | None = None
    for line in ["start", *script]:
        for text in bench.run(line):
            words = text.split()
            if words[0] not in {"prevote", "precommit"}:
                continue
            kind, round_, name = words[0], int(words[1]), words[2]
            assert (kind, round_) not in votes, "voted twice"
            votes[kind, round_] = name
            tally = bench.state.tally
            if kind == "precommit" and name != "nil":
                assert tally.count("prevote", round_, bench.value(name)) >= 3
                lock = (round_, name)
            if kind == "prevote" and name != "nil" and lock is not None and lock[1] != name:
                later = [r for r in range(lock[0], round_) if tally.count("prevote", r, bench.value(name)) >= 3]
                assert later, "prevoted against the lock"
    if bench.decided is not None:
        round_, value = bench.decided.certificate.round, bench.decided.block.header.id()
        assert bench.state.tally.count("precommit", round_, value) >= 3


def test_input_encoding_round_trips(kit):
    bench = kit.Bench()
    lines = ["start", "to propose 3", "pv 1 0 A", "prop 0 A", "prop! 1 B", "polka 0 A 123", "built 0 B"]
    for event in (event for line in lines for event in bench.events(line)):
        assert decode_input(encode_input(event)) == event
