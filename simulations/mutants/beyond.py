"""The catalogue beyond agreement on one height: mutants of epochs, absence, snapshots, scores and batches."""

from __future__ import annotations

from typing import Final

from nsllm.simulations.mutants.mutant import Mutant

VALIDATORS: Final = "nsllm.consensus.validators"
LIGHT_CLIENT: Final = "nsllm.governance.light_client"
OBSERVATION: Final = "nsllm.consensus.observation"
ATTENDANCE: Final = "nsllm.consensus.attendance"
BLOCK_RULES: Final = "nsllm.governance.block_rules"
BATCH_CONFLICT: Final = "nsllm.consensus.batch_conflict"
OFFENCES: Final = "nsllm.governance.offences"
SETTLEMENT: Final = "nsllm.consensus.settlement"
SNAPSHOT: Final = "nsllm.governance.snapshot"
SNAPSHOT_STORE: Final = "nsllm.governance.snapshot_store"

BEYOND: Final = (
    # epochs
    Mutant(
        "handover without a certificate",
        LIGHT_CLIENT,
        "        self.check(certificate)\n",
        "",
        ("a_handover_is_certified",),
    ),
    Mutant(
        "handover to whomever",
        LIGHT_CLIENT,
        "        if not header.ends_epoch or header.next_epoch != change.digest():\n",
        "        if not header.ends_epoch:\n",
        ("a_handover_names_its_validators",),
    ),
    Mutant(
        "epoch left out",
        LIGHT_CLIENT,
        "        if change.validators.epoch != self.validators.epoch + 1:\n",
        "        if change.validators.epoch <= self.validators.epoch:\n",
        ("epochs_follow_each_other",),
    ),
    Mutant(
        "certificate of another epoch",
        LIGHT_CLIENT,
        "        if header.epoch != epoch:\n",
        "        if False:\n",
        ("a_certificate_is_of_its_epoch",),
    ),
    Mutant(
        "certificate from before the epoch",
        LIGHT_CLIENT,
        "        if header.height <= self.since:\n",
        "        if False:\n",
        ("a_certificate_is_of_its_epoch",),
    ),
    # absence
    Mutant(
        "absence counted while the network stands still",
        ATTENDANCE,
        "minutes=self.minutes + 1",
        "minutes=self.minutes + (time_ms - self.counted_ms) // MINUTE_MS",
        ("standing_still_is_no_absence",),
    ),
    Mutant(
        "absence judged before everybody's turns",
        ATTENDANCE,
        " and height - self.since >= TURNS * validators.size",
        "",
        ("everybody_has_turns",),
    ),
    Mutant(
        "fewer than four remain",
        ATTENDANCE,
        "max(MIN_VALIDATORS, appointed - (appointed - 1) // 3)",
        "appointed - (appointed - 1) // 3",
        ("enough_remain",),
    ),
    Mutant(
        "more than f are away in the end",
        ATTENDANCE,
        "max(MIN_VALIDATORS, appointed - (appointed - 1) // 3)",
        "MIN_VALIDATORS",
        ("enough_remain",),
    ),
    Mutant(
        "somebody who was seen leaves",
        ATTENDANCE,
        " if member not in self.seen",
        "",
        ("who_shows_itself_stays",),
    ),
    Mutant(
        "observations show nobody",
        ATTENDANCE,
        "frozenset({proposer, *(excerpt.signed.commit.validator for excerpt in body.batches)})",
        "frozenset({proposer})",
        ("who_shows_itself_stays",),
    ),
    Mutant(
        "proposals show nobody",
        ATTENDANCE,
        "frozenset({proposer, *(",
        "frozenset({*(",
        ("who_shows_itself_stays",),
    ),
    Mutant(
        "absence counted over epochs",
        BLOCK_RULES,
        "Attendance.begin(height, time_ms) if begins else attendance",
        "attendance",
        ("every_epoch_begins_a_window",),
    ),
    # scores
    Mutant(
        "median averaged",
        OBSERVATION,
        "median = column[middle]",
        "median = sum(column) // len(column)",
        ("liars_do_not_move_a_score",),
    ),
    Mutant(
        "highest score taken",
        OBSERVATION,
        "median = column[middle]",
        "median = column[-1]",
        ("liars_do_not_move_a_score",),
    ),
    Mutant(
        "n-f observations not needed",
        VALIDATORS,
        "        return self.size - self.faults\n",
        "        return self.faults + 1\n",
        ("liars_do_not_move_a_score",),
    ),
    Mutant(
        "a score of any observations",
        SETTLEMENT,
        "        if len(found) < enough:\n",
        "        if not found:\n",
        ("a_score_needs_enough_observers",),
    ),
    Mutant(
        "openings unchecked",
        SETTLEMENT,
        "        check_rows(excerpt.signed.commit, terms.network, open_rows(excerpt, scored, len(terms.dimensions)))\n",
        "        pass\n",
        ("a_row_is_what_was_committed_to",),
    ),
    Mutant(
        "one abstention is enough",
        SETTLEMENT,
        "        if len(set(by)) <= faults:\n",
        "        if not by:\n",
        ("one_abstention_settles_nothing",),
    ),
    # batches
    Mutant(
        "two batches of one number go unpunished",
        BATCH_CONFLICT,
        "    if one.number == other.number:\n        return True\n",
        "",
        ("two_batches_are_an_offence",),
    ),
    Mutant(
        "two rows of a record go unpunished",
        BATCH_CONFLICT,
        "    return any(one.commitment_at",
        "    return False and any(one.commitment_at",
        ("two_batches_are_an_offence",),
    ),
    Mutant(
        "a row and an abstention go unpunished",
        BATCH_CONFLICT,
        "    if one.abstained & other.position_of.keys() or other.abstained & one.position_of.keys():\n",
        "    if False:\n",
        ("two_batches_are_an_offence",),
    ),
    Mutant(
        "any two batches convict",
        BATCH_CONFLICT,
        "        if not contradict(self.first.commit, self.second.commit):\n",
        "        if False:\n",
        ("innocent_batches_prove_nothing",),
    ),
    Mutant(
        "batches convict unsigned",
        BATCH_CONFLICT,
        "        self.first.check(network)\n        self.second.check(network)\n",
        "",
        ("innocent_batches_prove_nothing",),
    ),
    Mutant(
        "evidence of batches kept for ever",
        OFFENCES,
        "else record.ended(offence.epoch)",
        "else None",
        ("evidence_of_batches_expires",),
    ),
    Mutant(
        "a conviction costs nothing",
        BLOCK_RULES,
        "registry.with_weight(offence_of(evidence).validator, 0)",
        "registry.with_weight(offence_of(evidence).validator, 1)",
        ("a_conviction_costs_the_weight",),
    ),
    # snapshots
    Mutant(
        "snapshot under a header that few signed",
        SNAPSHOT,
        "    steps[-1].check(offer.certificate)\n",
        "",
        ("a_snapshot_is_certified",),
    ),
    Mutant(
        "snapshot that the header does not name",
        SNAPSHOT,
        "    if header.snapshot_hash == ZERO_DIGEST or header.snapshot_hash != digest:\n",
        "    if header.snapshot_hash == ZERO_DIGEST:\n",
        ("a_snapshot_is_certified",),
    ),
    Mutant(
        "snapshot with a last block that few signed",
        SNAPSHOT,
        "    steps[first].check(decided.certificate)\n",
        "",
        ("a_snapshot_stands_on_its_block",),
    ),
    Mutant(
        "snapshot with another last block",
        SNAPSHOT,
        "    if (manifest.height, manifest.header_id) != (block.header.height, block.header.id()):\n",
        "    if False:\n",
        ("a_snapshot_stands_on_its_block",),
    ),
    Mutant(
        "chunks unchecked",
        SNAPSHOT_STORE,
        "        if found != manifest.chunk(position):\n",
        "        if False:\n",
        ("a_chunk_is_the_certified_one",),
    ),
)
