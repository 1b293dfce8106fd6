"""The catalogue: every mutant, and the scenarios that find it out. One replaced text each.

Guided schedules find most rules of the core; where they do not (a broken rule costs time only, or needs a situation
that chance never makes), a directed adversary does. Each scenario that is named here kills its mutant, and holds for
the sound code.
"""

from __future__ import annotations

from typing import Final

from nsllm.simulations.mutants.beyond import BEYOND
from nsllm.simulations.mutants.mutant import Mutant

CORE: Final = "nsllm.consensus.core"
TALLY: Final = "nsllm.consensus.tally"
VALIDATORS: Final = "nsllm.consensus.validators"
REPLAY: Final = "nsllm.consensus.replay"
EVIDENCE: Final = "nsllm.consensus.evidence"
GUARD: Final = "nsllm.consensus.guard"
DRIVER: Final = "nsllm.consensus.driver"
VOICE: Final = "nsllm.consensus.voice"
RECOLLECTION: Final = "nsllm.consensus.recollection"
WAL: Final = "nsllm.consensus.wal"
SCREEN: Final = "nsllm.consensus.screen"
INTAKE: Final = "nsllm.consensus.intake"
SYNC: Final = "nsllm.consensus.sync"
CERTIFICATE: Final = "nsllm.consensus.certificate"
HEADER: Final = "nsllm.consensus.header"
CANONICAL: Final = "nsllm.canonical"

GUIDED: Final = "guided_schedules_hold"

_NIL_RULE: Final = (
    'return replace(state, {}step=PRECOMMIT), (SignVote("precommit", state.round, None),)\n\n\ndef _wait_prevotes'
)
_GUARD_WRITES: Final = "        self._file.write(canonical.encode(last))\n"
_STATED: Final = 'SignVote("prevote", state.round, vote, locked, proof)'
_LEADERS: Final = "        return tuple(sorted(value for value, count in counts.items() if count >= enough))"

MUTANTS: Final = (
    # quorums
    Mutant(
        "quorum of 2f+1",
        VALIDATORS,
        "return (self.size + self.faults) // 2 + 1",
        "return 2 * self.faults + 1",
        ("two_quorums_share_an_honest_validator",),
    ),
    Mutant(
        "quorum one too small",
        VALIDATORS,
        "return (self.size + self.faults) // 2 + 1",
        "return (self.size + self.faults) // 2",
        (GUIDED, "a_precommit_needs_a_polka"),
    ),
    Mutant(
        "precommit on f+1 prevotes",
        CORE,
        'for value in state.tally.leaders("prevote", state.round, state.quorum):\n        candidate',
        'for value in state.tally.leaders("prevote", state.round, state.honest):\n        candidate',
        (GUIDED, "a_precommit_needs_a_polka"),
    ),
    Mutant(
        "decision on f+1 precommits",
        CORE,
        'for value in state.tally.leaders("precommit", round_, state.quorum):\n            candidate',
        'for value in state.tally.leaders("precommit", round_, state.honest):\n            candidate',
        (GUIDED,),
    ),
    Mutant(
        "precommits counted over rounds",
        TALLY,
        "slot: Slot = (vote.kind, vote.round)",
        'slot: Slot = (vote.kind, vote.round if vote.kind == "prevote" else Round(0))',
        (GUIDED, "precommits_count_in_one_round"),
    ),
    Mutant(
        "votes counted whatever their value",
        TALLY,
        _LEADERS,
        "        return tuple(sorted(counts)) if sum(counts.values()) >= enough else ()",
        (GUIDED, "precommits_count_for_one_value"),
    ),
    Mutant(
        "second vote counted",
        TALLY,
        "if before and (not certified or counted or len(before) > 1):",
        "if len(before) > 1:",
        ("a_second_vote_does_not_count",),
    ),
    # locks
    Mutant(
        "lock ignored",
        CORE,
        "free = locked is None or locked.value == value",
        "free = True",
        (GUIDED, "a_lock_is_respected"),
    ),
    Mutant(
        "unlock on nil", CORE, _NIL_RULE.format(""), _NIL_RULE.format("locked=None, "), (GUIDED, "nil_does_not_unlock")
    ),
    Mutant(
        "valid round before the lock",
        CORE,
        "locked is None or locked.round <= earlier or",
        "True or",
        (GUIDED, "a_valid_round_is_not_before_the_lock"),
    ),
    Mutant(
        "valid round taken on trust",
        CORE,
        "        if not proved:\n            return None\n",
        "",
        (GUIDED, "a_valid_round_is_proved"),
    ),
    Mutant(
        "valid round frees no lock",
        CORE,
        "locked.round <= earlier or locked.value == value",
        "locked.value == value",
        ("a_later_valid_round_frees_the_lock",),
    ),
    Mutant(
        "valid value forgotten",
        CORE,
        "    if state.valid is None:\n",
        "    if True:\n",
        (GUIDED, "a_valid_value_is_proposed_again"),
    ),
    # the application
    Mutant(
        "verdict ignored",
        CORE,
        "vote = value if free and state.candidates[value].valid else None",
        "vote = value if free else None",
        (GUIDED, "the_application_is_heard"),
    ),
    Mutant(
        "lock on a refused block",
        CORE,
        "if candidate is None or not candidate.valid:",
        "if candidate is None:",
        ("refused_blocks_are_not_locked",),
    ),
    # rounds and timers
    Mutant("round skip dropped", CORE, "    _skip,\n", "", ("more_than_f_pull_us_ahead",)),
    Mutant(
        "one validator skips rounds for all",
        CORE,
        "state.tally.reached_by(state.honest)",
        "state.tally.reached_by(1)",
        ("one_cannot_pull_us_ahead",),
    ),
    Mutant("precommits waited for without end", CORE, "    _wait_precommits,\n", "", (GUIDED,)),
    Mutant("prevotes waited for without end", CORE, "    _wait_prevotes,\n", "", (GUIDED,)),
    Mutant(
        "timers of earlier rounds fire",
        CORE,
        "    if round_ != state.round:\n        return state, ()\n    match timer",
        "    match timer",
        ("late_timers_are_ignored",),
    ),
    Mutant(
        "polka not relayed",
        CORE,
        'return after, (SignVote("precommit", state.round, value), Relay(proof))',
        'return after, (SignVote("precommit", state.round, value),)',
        ("a_lock_is_relayed",),
    ),
    Mutant(
        "left round not relayed",
        CORE,
        "return after, (proof, *effects)",
        "return after, effects",
        ("a_left_round_is_relayed",),
    ),
    # evidence
    Mutant(
        "equivocation not reported",
        TALLY,
        "evidence = double_vote(before[0], vote) if before else self._amnesia(vote)",
        "evidence = None if before else self._amnesia(vote)",
        ("equivocation_is_reported",),
    ),
    Mutant(
        "amnesia not reported",
        TALLY,
        "evidence = double_vote(before[0], vote) if before else self._amnesia(vote)",
        "evidence = double_vote(before[0], vote) if before else None",
        ("amnesia_is_reported",),
    ),
    Mutant(
        "the round's own prevote taken for amnesia",
        TALLY,
        "else vote.round < round_)",
        "else vote.round <= round_)",
        ("honest_votes_are_no_amnesia",),
    ),
    Mutant(
        "a stated lock taken for amnesia",
        EVIDENCE,
        "        return lock.value != precommit.value\n",
        "        return True\n",
        (GUIDED, "honest_votes_are_no_amnesia"),
    ),
    Mutant(
        "a forgotten lock is no amnesia",
        EVIDENCE,
        "    return lock is None or lock.round < precommit.round\n",
        "    return False\n",
        ("amnesia_is_reported",),
    ),
    Mutant(
        "lock not stated",
        CORE,
        _STATED,
        'SignVote("prevote", state.round, vote, None, proof)',
        (GUIDED, "prevotes_state_the_lock"),
    ),
    Mutant(
        "lock not stated at a timeout",
        CORE,
        'SignVote("prevote", round_, None, state.locked)',
        'SignVote("prevote", round_, None)',
        (GUIDED, "prevotes_state_the_lock"),
    ),
    Mutant(
        "valid round not stated",
        CORE,
        _STATED,
        'SignVote("prevote", state.round, vote, locked)',
        ("prevotes_state_the_lock",),
    ),
    # restart
    Mutant("log not synced before signing", VOICE, "        self._wal.sync()\n", "", ("a_power_cut_loses_no_vote",)),
    Mutant(
        "sync does not reach the disk",
        WAL,
        "            sync_data(self._file)\n",
        "            pass\n",
        ("a_power_cut_loses_no_vote",),
    ),
    Mutant(
        "inputs not logged",
        DRIVER,
        "                self._wal.append(encode_input(event))\n",
        "                pass\n",
        ("a_power_cut_loses_no_vote",),
    ),
    Mutant(
        "state forgotten at a restart",
        REPLAY,
        "        state, effects = core.step(state, event)\n        pending = [effect for effect in pending",
        "        state, effects = core.step(fresh, event)\n        pending = [effect for effect in pending",
        (GUIDED, "a_restart_keeps_the_lock"),
    ),
    Mutant(
        "done work done again at a restart",
        REPLAY,
        "        pending = [effect for effect in pending if not _done_by(effect, event, fresh.me)]\n",
        "",
        ("a_restart_keeps_the_lock",),
    ),
    Mutant(
        "timers armed again at a restart",
        REPLAY,
        "    pending = [effect for effect in pending if not _stale(effect, state)]\n",
        "",
        ("a_restart_keeps_the_lock",),
    ),
    # the guard
    Mutant(
        "guard dropped",
        GUARD,
        "wanted != last and wanted.place() <= last.place()",
        "False",
        ("a_guard_signs_once",),
    ),
    Mutant(
        "guard lets one place be signed again",
        GUARD,
        "wanted.place() <= last.place()",
        "wanted.place() < last.place()",
        ("a_guard_signs_once",),
    ),
    Mutant("guard forgets at a restart", GUARD, _GUARD_WRITES, "", ("a_guard_signs_once",)),
    Mutant(
        "guard forgets the lock",
        GUARD,
        "            held = Choice(round=body.round, value=body.value)\n",
        "            pass\n",
        ("a_guard_signs_once",),
    ),
    Mutant(
        "something signed before the others have told",
        VOICE,
        "        if not self.is_sure(state, decided):\n",
        "        if False:\n",
        ("an_old_copy_contradicts_nothing",),
    ),
    Mutant(
        "what the others heard is not told",
        RECOLLECTION,
        "voters.get(asker, ())",
        "voters.get(state.me, ())",
        ("what_was_heard_is_told",),
    ),
    Mutant(
        "what the others tell is not learnt",
        GUARD,
        "        self._remember(learnt)\n",
        "",
        ("an_old_copy_contradicts_nothing",),
    ),
    # proofs
    Mutant(
        "certificate's signatures unchecked",
        CERTIFICATE,
        "        crypto.verify(digest, vote.signature, vote.validator)\n",
        "        pass\n",
        ("a_certificate_is_signed",),
    ),
    Mutant(
        "certificate's signers uncounted",
        CERTIFICATE,
        "if len(signers) < validators.quorum:",
        "if not signers:",
        ("a_certificate_is_a_quorum",),
    ),
    Mutant(
        "certificate's signers counted twice",
        CERTIFICATE,
        "if signers != sorted(set(signers)):",
        "if signers != sorted(signers):",
        ("a_certificate_is_a_quorum",),
    ),
    Mutant(
        "certificate by strangers",
        CERTIFICATE,
        "        if signer not in validators:\n",
        "        if False:\n",
        ("a_certificate_is_a_quorum",),
    ),
    Mutant(
        "certificate of a later height unchecked",
        INTAKE,
        "                    certificate.check(self._network, self._validators)\n",
        "",
        ("a_height_is_over_by_certificate_only",),
    ),
    Mutant(
        "certificate of a fetched block unchecked",
        SYNC,
        "    decided.certificate.check(network, validators)\n",
        "",
        ("a_fetched_block_is_certified",),
    ),
    Mutant(
        "certificate of another block",
        SYNC,
        "    if decided.certificate.header != decided.block.header:\n",
        "    if False:\n",
        ("a_fetched_block_is_certified",),
    ),
    Mutant(
        "precommits signed without their round",
        HEADER,
        "word(height) + word(round_) + header_id",
        "word(height) + header_id",
        ("a_certificate_is_signed",),
    ),
    Mutant(
        "epoch unchecked",
        SCREEN,
        "    if vote.epoch != validators.epoch:\n",
        "    if False:\n",
        ("a_vote_is_of_this_epoch",),
    ),
    Mutant("votes unsigned", SCREEN, "    check_signature(vote, network)\n", "", ("a_vote_is_signed",)),
    Mutant(
        "votes against the lock that they state",
        SCREEN,
        "    if not keeps_lock(vote.value, vote.lock, vote.valid_round):\n",
        "    if False:\n",
        ("a_vote_keeps_the_lock_it_states",),
    ),
    Mutant(
        "polka of one validator",
        SCREEN,
        "    if len({vote.validator for vote in votes}) != len(votes):\n",
        "    if False:\n",
        ("a_polka_is_by_distinct_validators",),
    ),
    Mutant(
        "anybody proposes",
        SCREEN,
        "    if proposal.proposer != expected:\n",
        "    if False:\n",
        ("a_proposal_is_the_proposers",),
    ),
    Mutant(
        "parent unchecked",
        SCREEN,
        "    if header.parent != parent:\n",
        "    if False:\n",
        ("a_block_stands_on_its_parent",),
    ),
    Mutant(
        "signature domain without the network",
        CANONICAL,
        'len(network).to_bytes(1, "big") + network',
        'b""',
        ("a_signature_is_for_one_network",),
    ),
    Mutant(
        "precommits' domain without the network",
        HEADER,
        'keccak256(b"1") + network',
        'keccak256(b"1") + bytes(32)',
        ("a_signature_is_for_one_network",),
    ),
    *BEYOND,
)
