"""What a validator said over its own signature, judged: never two things in one place, and no lock forgotten."""

from __future__ import annotations

from nsllm.consensus.events import OffenceSeen
from nsllm.consensus.evidence import contradicts
from nsllm.consensus.message import decode_message
from nsllm.consensus.vote import Proposal, Vote


def said_by(town, key):
    """Everything that was ever sent over a validator's own signature, by slot; and its votes."""
    slots: dict[tuple, set] = {}
    votes: set[Vote] = set()
    for sender, _, raw in town.mesh.log:
        body = decode_message(raw)
        if sender != key.address:
            continue
        if isinstance(body, Vote) and body.validator == key.address:
            slots.setdefault((body.kind, body.height, body.round), set()).add(body.says())
            votes.add(body)
        elif isinstance(body, Proposal) and body.proposer == key.address:
            slots.setdefault(("proposal", body.height, body.round), set()).add(body.says())
    return slots, votes


def judge_votes(town, victim) -> None:
    """All agree, the victim contradicted itself nowhere, and nobody saw an offence."""
    town.check_agreement()
    slots, votes = said_by(town, victim.key)
    for slot, values in slots.items():
        assert len(values) == 1, f"{slot} was signed {len(values)} times"
    for one in votes:
        for other in votes:
            later = one.height == other.height and one.round < other.round
            if later and (one.kind, other.kind) == ("precommit", "prevote"):
                assert not contradicts(one, other), "a lock was forgotten"
    assert not [event for peer in town.peers for event in peer.events if isinstance(event, OffenceSeen)]


def locks_alone(town, validator, *, forgetful: bool = False) -> None:
    """In round 0 of height 1 one refuses the block, and nobody gets the validator's prevote.

    So it locks alone, proposes in round 1, and votes under its lock. `forgetful`: from now on it hears no prevote of
    that round any more.
    """
    builder = town.validators.proposer(1, 0)
    town.peers[3].application.refuse = lambda block: (block.header.height, block.header.proposer) == (1, builder)

    def drop(frm, to, raw):
        body = decode_message(raw)
        votes = getattr(body, "votes", (body,))
        first = getattr(votes[0], "kind", "") == "prevote" and (votes[0].height, votes[0].round) == (1, 0)
        return first and (frm == validator.address or (forgetful and to == validator.address))

    town.mesh.drop = drop
