# ruff: noqa: E501 - tables
"""Mutants: each rule that agreement rests on is broken once, and a directed adversary must show the damage.

A mutant is a text change of a module's source; the scenario passes on the original and fails on the mutant. Random
schedules kill few of these, so they are not asked to.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

import nsllm.consensus.core
import nsllm.consensus.guard
import nsllm.consensus.observation
import nsllm.consensus.replay
import nsllm.consensus.tally
import nsllm.consensus.validators
import nsllm.consensus.vote
from nsllm.consensus.errors import GuardError
from nsllm.consensus.inputs import ProposalReceived, Start, TimedOut, VoteReceived, encode_input
from nsllm.consensus.observation import DimensionScore, Observation

LOCK_A = "start; prop 0 A; pv 12 0 A"
NEXT = "; pc 12 0 nil; to precommit 0"


@pytest.fixture
def mutated(monkeypatch):
    """`mutated(module, old, new)`: the module with one text replaced, findable by its name while the test runs."""

    def mutate(original: types.ModuleType, old: str, new: str) -> types.ModuleType:
        source = Path(original.__file__).read_text()
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times"
        module = types.ModuleType(original.__name__.replace(".", "_") + "_mutant")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
        return module

    return mutate


# Scenarios: each returns silently if the rule holds.


def quorum_is_safe(kit, core):
    """n=6, f=1: two groups of 3 = 2f+1 could decide twice; a quorum is 4."""
    bench = kit.Bench(core, count=6)
    bench.run("start; prop 0 A; pc 12 0 A")
    assert bench.run("pc 3 0 A") != ["decide 0 A"]
    assert bench.decided is None
    assert bench.run("pc 4 0 A") == ["decide 0 A"]


def nil_does_not_unlock(kit, core):
    bench = kit.Bench(core)
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 123 1 nil; pc 123 1 nil; to precommit 1")
    assert bench.run("prop 2 B") == ["prevote 2 nil"]


def precommit_needs_a_polka(kit, core):
    bench = kit.Bench(core)
    assert bench.run("start; prop 0 A; pv 1 0 A") == []
    assert "precommit 0 A" in bench.run("pv 2 0 A")


def lock_is_respected(kit, core):
    bench = kit.Bench(core)
    assert bench.run(LOCK_A + NEXT + "; prop 1 B") == ["prevote 1 nil"]


def valid_round_is_proved(kit, core):
    """Locked on A, a Byzantine proposer claims a polka for B that nobody saw."""
    bench = kit.Bench(core)
    bench.run(LOCK_A + NEXT + "; pc 123 1 nil; to precommit 1")
    assert bench.run("prop 2 B 1") == []


def valid_round_is_after_the_lock(kit, core):
    bench = kit.Bench(core)
    bench.run("start; to propose 0; pc 123 0 nil; to precommit 0; prop 1 A; pv 12 1 A; pc 12 1 nil; to precommit 1")
    assert bench.run("polka 0 B 123; prop 2 B 0") == ["prevote 2 nil"]


def valid_round_frees_the_lock(kit, core):
    bench = kit.Bench(core)
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 12 1 B; to prevote 1; pc 12 1 nil; to precommit 1; polka 1 B 123")
    assert bench.state.locked.value == bench.value("A")
    assert bench.run("prop 2 B 1") == ["prevote 2 B"]


def valid_value_is_proposed(kit, core):
    """A proposer that forgets what may have been decided proposes something else."""
    bench = kit.Bench(core, me=2)
    effects = bench.run(LOCK_A.replace("12", "13") + "; pc 13 0 nil; to precommit 0")
    assert "propose 1 A after 0 by 3" in effects


def precommits_count_in_one_round(kit, core):
    bench = kit.Bench(core)
    bench.run("start; prop 0 A; pc 1 0 A; pc 2 1 A; pc 3 2 A")
    assert bench.decided is None


def precommits_count_for_one_value(kit, core):
    bench = kit.Bench(core)
    bench.run("start; prop 0 A; pc 1 0 A; pc 2 0 A; pc 3 0 B")
    assert bench.decided is None


def a_second_vote_does_not_count(kit, core):
    bench = kit.Bench(core)
    bench.run("start; prop 0 A; pv 1 0 B; pv 1 0 A; pv 2 0 A")
    assert bench.state.locked is None


def equivocation_is_reported(kit, core):
    assert kit.Bench(core).run("start; pv 1 0 A; pv 1 0 B") == ["accuse double_vote"]


def amnesia_is_reported(kit, core):
    assert kit.Bench(core).run("start; pc 1 0 A; pv 1 1 nil") == ["accuse amnesia"]
    assert kit.Bench(core).run("start; pv 1 1 B; pc 1 0 A") == ["accuse amnesia"]


def prevoting_and_precommitting_is_no_amnesia(kit, core):
    bench = kit.Bench(core)
    bench.run("start; pv 1 1 A; pv 1 0 A; pv 1 2 A@1A; pc 1 1 A; pc 1 0 nil")
    assert bench.evidence == []


def prevotes_state_the_lock(kit, core):
    bench = kit.Bench(core)
    bench.run(LOCK_A + NEXT + "; prop 1 B; pv 123 1 nil; pc 123 1 nil; to precommit 1; to propose 2")
    bench.run("pc 123 2 nil; to precommit 2; prop 3 A 0")
    held = nsllm.consensus.vote.Choice(round=0, value=bench.value("A"))
    states = [(v.round, v.lock, v.valid_round) for v in bench.votes if v.kind == "prevote"]
    assert states == [(0, None, None), (1, held, None), (2, held, None), (3, held, 0)]


def one_cannot_drag_us_ahead(kit, core):
    bench = kit.Bench(core)
    bench.run("start; pv 3 7 nil")
    assert bench.state.round == 0


def f_plus_1_pull_us_ahead(kit, core):
    bench = kit.Bench(core)
    bench.run("start; pv 3 7 nil; pv 2 7 nil")
    assert bench.state.round == 7


def the_application_is_heard(kit, core):
    assert kit.Bench(core).run("start; prop! 0 A") == ["prevote 0 nil"]


def refused_blocks_are_not_locked(kit, core):
    bench = kit.Bench(core)
    bench.run("start; prop! 0 A; pv 123 0 A")
    assert bench.state.locked is None


def polka_is_relayed(kit, core):
    assert "relay PolkaCertificate 0 of 3" in kit.Bench(core).run(LOCK_A)


def round_is_relayed(kit, core):
    assert "relay RoundCertificate 0 of 3" in kit.Bench(core).run("start; pc 123 0 nil; to precommit 0")


def late_timeouts_are_ignored(kit, core):
    bench = kit.Bench(core)
    bench.run("start; pc 123 0 nil; to precommit 0; to propose 0")
    assert bench.state.step.name == "PROPOSE"


CORE_MUTANTS = [
    ("quorum of 2f+1", "return self.validators.quorum", "return 2 * self.validators.faults + 1", quorum_is_safe),
    ("quorum of 2f", "return self.validators.quorum", "return 2 * self.validators.faults", precommit_needs_a_polka),
    ("unlock on nil", 'return replace(state, step=Step.PRECOMMIT), (SignVote("precommit", state.round, None),)\n\n\ndef _wait_prevotes',
     'return replace(state, locked=None, step=Step.PRECOMMIT), (SignVote("precommit", state.round, None),)\n\n\ndef _wait_prevotes',
     nil_does_not_unlock),
    ("precommit on f+1 prevotes", 'for value in state.tally.leaders("prevote", state.round, state.quorum):\n        candidate',
     'for value in state.tally.leaders("prevote", state.round, state.honest):\n        candidate', precommit_needs_a_polka),
    ("prevote against the lock", "free = locked is None or locked.value == value", "free = True", lock_is_respected),
    ("valid round taken on trust", "        if not proved:\n            return None\n", "", valid_round_is_proved),
    ("any polka frees the lock", "locked is None or locked.round <= earlier or", "True or", valid_round_is_after_the_lock),
    ("no polka frees the lock", "locked.round <= earlier or locked.value == value", "locked.value == value",
     valid_round_frees_the_lock),
    ("valid value forgotten", "    if state.valid is None:\n", "    if True:\n", valid_value_is_proposed),
    ("verdict ignored", "vote = value if free and state.candidates[value].valid else None", "vote = value if free else None",
     the_application_is_heard),
    ("lock on a refused block", "if candidate is None or not candidate.valid:", "if candidate is None:",
     refused_blocks_are_not_locked),
    ("skip on one validator", "state.tally.reached_by(state.honest)", "state.tally.reached_by(1)", one_cannot_drag_us_ahead),
    ("never skip", "    _skip,\n", "", f_plus_1_pull_us_ahead),
    ("polka not relayed", 'return after, (SignVote("precommit", state.round, value), Relay(proof))',
     'return after, (SignVote("precommit", state.round, value),)', polka_is_relayed),
    ("round certificate not relayed", "return after, (proof, *effects)", "return after, effects", round_is_relayed),
    ("lock not stated", 'SignVote("prevote", state.round, vote, locked, proof)', 'SignVote("prevote", state.round, vote, None, proof)',
     prevotes_state_the_lock),
    ("lock not stated at a timeout", 'SignVote("prevote", round_, None, state.locked)', 'SignVote("prevote", round_, None)',
     prevotes_state_the_lock),
    ("valid round not stated", 'SignVote("prevote", state.round, vote, locked, proof)', 'SignVote("prevote", state.round, vote, locked)',
     prevotes_state_the_lock),
    ("stale timeouts fire", "    if round_ != state.round:\n        return state, ()\n    match timer", "    match timer",
     late_timeouts_are_ignored),
]  # fmt: skip

TALLY_MUTANTS = [
    ("precommits counted across rounds", "slot: Slot = (vote.kind, vote.round)",
     'slot: Slot = (vote.kind, vote.round if vote.kind == "prevote" else Round(0))', precommits_count_in_one_round),
    ("votes counted whatever their value", "        return tuple(sorted(value for value, count in counts.items() if count >= enough))",
     "        return tuple(sorted(counts)) if sum(counts.values()) >= enough else ()", precommits_count_for_one_value),
    ("a second vote counts", "if before and (not certified or counted or len(before) > 1):", "if len(before) > 1:",
     a_second_vote_does_not_count),
    ("equivocation not reported", "evidence = double_vote(before[0], vote) if before else self._amnesia(vote)",
     "evidence = None if before else self._amnesia(vote)", equivocation_is_reported),
    ("amnesia not reported", "evidence = double_vote(before[0], vote) if before else self._amnesia(vote)",
     "evidence = double_vote(before[0], vote) if before else None", amnesia_is_reported),
    ("the round's own prevote taken for amnesia", "else vote.round < round_)", "else vote.round <= round_)",
     prevoting_and_precommitting_is_no_amnesia),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "scenario"), [m[1:] for m in CORE_MUTANTS], ids=[m[0] for m in CORE_MUTANTS])
def test_core_mutants_are_killed(kit, mutated, old, new, scenario):
    scenario(kit, nsllm.consensus.core)
    with pytest.raises(AssertionError):
        scenario(kit, mutated(nsllm.consensus.core, old, new))


@pytest.mark.parametrize(("old", "new", "scenario"), [m[1:] for m in TALLY_MUTANTS], ids=[m[0] for m in TALLY_MUTANTS])
def test_tally_mutants_are_killed(kit, mutated, old, new, scenario):
    tally = mutated(nsllm.consensus.tally, old, new)
    core = mutated(nsllm.consensus.core, "from nsllm.consensus.tally import", f"from {tally.__name__} import")
    scenario(kit, nsllm.consensus.core)
    with pytest.raises(AssertionError):
        scenario(kit, core)


def guard_refuses_a_second_vote(kit, guard_module, path):
    key, block = kit.keys(4)[0], kit.block(kit.validators(kit.keys(4)), proposer=kit.keys(4)[0].address)
    guard_module.SignerGuard(key, kit.NETWORK, path).vote(
        kind="prevote", epoch=0, height=1, round_=0, value=block.header.id()
    )
    restarted = guard_module.SignerGuard(key, kit.NETWORK, path)
    with pytest.raises(GuardError):
        restarted.vote(kind="prevote", epoch=0, height=1, round_=0, value=None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wanted != last and wanted.place() <= last.place()", "False"),
        ("wanted.place() <= last.place()", "wanted.place() < last.place()"),
        ("            self._file.write(canonical.encode(wanted))\n", ""),
    ],
    ids=["guard off", "same step twice", "guard forgets"],
)
def test_guard_mutants_are_killed(kit, mutated, tmp_path, old, new):
    guard_refuses_a_second_vote(kit, nsllm.consensus.guard, tmp_path / "sound")
    with pytest.raises(pytest.fail.Exception):
        guard_refuses_a_second_vote(kit, mutated(nsllm.consensus.guard, old, new), tmp_path / "mutant")


def restart_keeps_the_lock(kit, replay):
    """Crash after locking A; the proposer of round 1 then offers B."""
    core = nsllm.consensus.core
    bench = kit.Bench(core)
    entries = [nsllm.consensus.replay.begin_entry(kit.NETWORK, bench.key.address, 1)]
    step = core.step

    def logging_step(state, event):
        entries.append(encode_input(event))
        return step(state, event)

    bench.core = types.SimpleNamespace(step=logging_step)
    bench.run(LOCK_A + NEXT)
    fresh = core.State(validators=bench.validators, me=bench.key.address, height=1)
    replayed = replay.replay(entries, fresh, kit.NETWORK)
    assert replayed.state == bench.state
    assert [type(effect).__name__ for effect in replayed.pending] == ["Schedule"], "only round 1's propose timer is due"
    bench.core, bench.state = core, replayed.state
    assert bench.run("prop 1 B") == ["prevote 1 nil"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        state, effects = core.step(state, event)\n        pending = [effect for effect in pending",
         "        state, effects = core.step(fresh, event)\n        pending = [effect for effect in pending"),
        ("        pending = [effect for effect in pending if not _done_by(effect, event, fresh.me)]\n", ""),
        ("    pending = [effect for effect in pending if not _stale(effect, state)]\n", ""),
    ],
    ids=["state forgotten", "vote twice after restart", "old timers armed again"],
)  # fmt: skip
def test_replay_mutants_are_killed(kit, mutated, old, new):
    restart_keeps_the_lock(kit, nsllm.consensus.replay)
    with pytest.raises(AssertionError):
        restart_keeps_the_lock(kit, mutated(nsllm.consensus.replay, old, new))


def one_liar_does_not_move_the_score(observation):
    honest, liar = [500_000, 510_000, 520_000], 1_000_000
    observations = [
        Observation(
            record=bytes(32), generator=bytes(20), request_key=bytes(32), rubric=bytes(32), validator=bytes([i] * 20),
            scores=(DimensionScore(name="relevance", ppm=ppm),),
        )
        for i, ppm in enumerate([*honest, liar])
    ]  # fmt: skip
    agreed = observation.agree(observations).scores[0].ppm
    assert min(honest) <= agreed <= max(honest)


@pytest.mark.parametrize("new", ["sum(values) // len(values)", "sorted(values)[-1]"], ids=["mean", "maximum"])
def test_median_mutants_are_killed(mutated, new):
    one_liar_does_not_move_the_score(nsllm.consensus.observation)
    with pytest.raises(AssertionError):
        one_liar_does_not_move_the_score(
            mutated(nsllm.consensus.observation, "sorted(values)[(len(values) - 1) // 2]", new)
        )


def test_the_quorum_formula_mutant_is_killed():
    """Two quorums share f+1 validators, so an honest one, for every n; 2f+1 does not give that."""

    def shares_an_honest_one(quorum, n, f):
        return 2 * quorum - n >= f + 1

    for n in range(1, 40):
        validators = nsllm.consensus.validators.ValidatorSet(epoch=0, members=tuple(bytes([i] * 20) for i in range(n)))
        assert shares_an_honest_one(validators.quorum, n, validators.faults)
        assert validators.quorum <= n - validators.faults, "the honest can decide alone"
    unsafe = [n for n in range(4, 33) if not shares_an_honest_one(2 * ((n - 1) // 3) + 1, n, (n - 1) // 3)]
    assert len(unsafe) == 19


def test_input_encoding_round_trips(kit):
    bench = kit.Bench(nsllm.consensus.core)
    for event in [Start(), TimedOut(step="propose", round=3), VoteReceived(vote=bench.vote("1", "prevote", 0, "A")),
                  *bench._events(["prop", "0", "A"]), *bench._events(["polka", "0", "A", "123"]),
                  *bench._events(["built", "0", "B"])]:  # fmt: skip
        assert nsllm.consensus.replay.decode_input(encode_input(event)) == event
    assert ProposalReceived in {type(e) for e in bench._events(["prop!", "1", "B"])}
