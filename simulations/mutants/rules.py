"""Directed adversaries against the core: each makes one rule of the paper matter. They return if it holds."""

from __future__ import annotations

from typing import Final

from nsllm.consensus.core import Step
from nsllm.consensus.vote import Choice
from nsllm.ids import Round
from nsllm.simulations.mutants.bench import Bench
from nsllm.simulations.mutants.holds import holds

LOCK_A: Final = "start; prop 0 A; pv 12 0 A"
NEXT: Final = "; pc 12 0 nil; to precommit 0"


def two_quorums_share_an_honest_validator() -> None:
    """Six validators, f = 1: two groups of 2f+1 = 3 could decide twice; a quorum is 4."""
    bench = Bench(6)
    bench.run("start; prop 0 A; pc 12 0 A")
    holds(bench.run("pc 3 0 A") != ["decide 0 A"] and bench.decided is None, "three of six decide nothing")
    holds(bench.run("pc 4 0 A") == ["decide 0 A"], "four of six decide")


def a_precommit_needs_a_polka() -> None:
    """Two of four prevotes are none."""
    bench = Bench()
    holds(bench.run("start; prop 0 A; pv 1 0 A") == [], "two prevotes are no polka")
    holds("precommit 0 A" in bench.run("pv 2 0 A"), "three are")


def a_lock_is_respected() -> None:
    """Locked on A, offered B."""
    holds(Bench().run(LOCK_A + NEXT + "; prop 1 B") == ["prevote 1 nil"], "a locked validator prevotes nil")


def nil_does_not_unlock() -> None:
    """Locked on A, a polka for nil, then offered B."""
    bench = Bench()
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 123 1 nil; pc 123 1 nil; to precommit 1")
    holds(bench.run("prop 2 B") == ["prevote 2 nil"], "a polka for nil frees no lock")


def a_valid_round_is_proved() -> None:
    """Locked on A, a proposer claims a polka for B that nobody saw."""
    bench = Bench()
    bench.run(LOCK_A + NEXT + "; pc 123 1 nil; to precommit 1")
    holds(bench.run("prop 2 B 1") == [], "a claimed polka is waited for")


def a_valid_round_is_not_before_the_lock() -> None:
    """Locked on A in round 1, shown a genuine polka for B of round 0."""
    bench = Bench()
    bench.run("start; to propose 0; pc 123 0 nil; to precommit 0; prop 1 A; pv 12 1 A; pc 12 1 nil; to precommit 1")
    holds(bench.run("polka 0 B 123; prop 2 B 0") == ["prevote 2 nil"], "an older polka frees no lock")


def a_later_valid_round_frees_the_lock() -> None:
    """Locked on A in round 0, shown a polka for B of round 1: else agreement could wait for ever."""
    bench = Bench()
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 12 1 B; to prevote 1; pc 12 1 nil; to precommit 1; polka 1 B 123")
    locked = bench.state.locked
    holds(locked is not None and locked.value == bench.value("A"), "the lock is on A still")
    holds(bench.run("prop 2 B 1") == ["prevote 2 B"], "a later polka frees the lock")


def a_valid_value_is_proposed_again() -> None:
    """A proposer that has seen a polka."""
    said = Bench(me=2).run(LOCK_A.replace("12", "13") + "; pc 13 0 nil; to precommit 0")
    holds("propose 1 A after 0 by 3" in said, "what may have been decided is proposed again, with its polka")


def precommits_count_in_one_round() -> None:
    """One in each of three rounds."""
    bench = Bench()
    bench.run("start; prop 0 A; pc 1 0 A; pc 2 1 A; pc 3 2 A")
    holds(bench.decided is None, "precommits of different rounds decide nothing")


def precommits_count_for_one_value() -> None:
    """Two for A, one for B."""
    bench = Bench()
    bench.run("start; prop 0 A; pc 1 0 A; pc 2 0 A; pc 3 0 B")
    holds(bench.decided is None, "precommits for different values decide nothing")


def a_second_vote_does_not_count() -> None:
    """An equivocator votes for B, then for A."""
    bench = Bench()
    bench.run("start; prop 0 A; pv 1 0 B; pv 1 0 A; pv 2 0 A")
    holds(bench.state.locked is None, "one validator's second vote makes no polka")


def equivocation_is_reported() -> None:
    """Two prevotes in one slot."""
    said = Bench().run("start; pv 1 0 A; pv 1 0 B")
    holds(said == ["accuse double_vote"], "two votes of one slot are reported")


def amnesia_is_reported() -> None:
    """A precommit, and a later prevote that states no lock; in either order."""
    holds(Bench().run("start; pc 1 0 A; pv 1 1 nil") == ["accuse amnesia"], "a forgotten lock is reported")
    holds(Bench().run("start; pv 1 1 B; pc 1 0 A") == ["accuse amnesia"], "a forgotten lock is reported")


def honest_votes_are_no_amnesia() -> None:
    """Prevote and precommit in one round, later the lock stated."""
    bench = Bench()
    bench.run("start; pv 1 1 A; pv 1 0 A; pv 1 2 A@1A; pc 1 1 A; pc 1 0 nil")
    holds(bench.evidence == [], "an honest validator is not accused")


def prevotes_state_the_lock() -> None:
    """In each round after the lock, whatever the prevote is for."""
    bench = Bench()
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 123 1 nil; pc 123 1 nil; to precommit 1; to propose 2")
    bench.run("pc 123 2 nil; to precommit 2; prop 3 A 0")
    held = Choice(round=Round(0), value=bench.blocks["A"].header.id())
    states = [(vote.round, vote.lock, vote.valid_round) for vote in bench.votes if vote.kind == "prevote"]
    holds(states == [(0, None, None), (1, held, None), (2, held, None), (3, held, 0)], "prevotes state their lock")


def one_cannot_pull_us_ahead() -> None:
    """One Byzantine validator votes in round 7."""
    bench = Bench()
    bench.run("start; pv 3 7 nil")
    holds(bench.state.round == 0, "f validators do not make us leave a round")


def more_than_f_pull_us_ahead() -> None:
    """Two validators are in round 7."""
    bench = Bench()
    bench.run("start; pv 3 7 nil; pv 2 7 nil")
    holds(bench.state.round == 7, "f+1 validators in a later round are followed")


def the_application_is_heard() -> None:
    """It refuses the block."""
    holds(Bench().run("start; prop! 0 A") == ["prevote 0 nil"], "a refused block gets no prevote")


def refused_blocks_are_not_locked() -> None:
    """All others prevote a block that our application refuses."""
    bench = Bench()
    bench.run("start; prop! 0 A; pv 123 0 A")
    holds(bench.state.locked is None, "a refused block is not locked")


def a_lock_is_relayed() -> None:
    """Direct streams do not gossip: the polka goes with the precommit."""
    holds("relay PolkaCertificate 0 of 3" in Bench().run(LOCK_A), "the polka that we lock on is relayed")


def a_left_round_is_relayed() -> None:
    """And the precommits with which we leave."""
    said = Bench().run("start; pc 123 0 nil; to precommit 0")
    holds("relay RoundCertificate 0 of 3" in said, "the precommits that let us go are relayed")


def late_timers_are_ignored() -> None:
    """A timer of round 0 fires in round 1."""
    bench = Bench()
    bench.run("start; pc 123 0 nil; to precommit 0; to propose 0")
    holds(bench.state.step is Step.PROPOSE, "a timer of an earlier round changes nothing")
