"""Who is to blame when agreement broke: what the votes in honest validators' logs prove together.

Two decisions of one height need quorums that share at least f+1 validators, and each of these did one of three things
that an honest validator never does:

* equivocation: two different votes of one kind in one round;
* amnesia: a prevote whose stated lock an earlier precommit contradicts (`nsllm.consensus.evidence`);
* a claim that nothing supports: it precommitted v in round r and prevoted w in a later round r', although no round from
  r on and before r' has a quorum of prevotes for w. Lines 28-29 of the paper let a locked validator do that only on
  such a quorum, and an honest validator that does has it in its log. No two messages show this, all logs together do
  (ADR 10).

Why f+1 do: take a decision of v in round r, another of w in a later round (in the same round all that both quorums
share equivocated), and the first quorum of prevotes for w from r on. In round r it contradicts the prevotes for v; in
a later one everybody whom it shares with the quorum for v forgot. This needs one honest validator in each quorum, whose
log has the prevotes: so fewer Byzantine validators than a quorum.

Source: the Tendermint specification's page on fork accountability.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nsllm.consensus.evidence import contradicts
from nsllm.consensus.vote import Vote
from nsllm.ids import Address, Digest

Polkas = set[tuple[int, int, Digest]]
"""Height, round and value of each quorum of prevotes."""


def guilty(votes: Iterable[Vote], quorum: int) -> frozenset[Address]:
    """Validators that broke the algorithm, by `votes`.

    Args:
        votes: of any height, from the logs and certificates of all honest validators, each signed by who it names.
        quorum: of the validator set.
    """
    cast: dict[tuple[int, Address], list[Vote]] = defaultdict(list)
    prevoters: dict[tuple[int, int, Digest], set[Address]] = defaultdict(set)
    for vote in votes:
        if vote not in cast[vote.height, vote.validator]:
            cast[vote.height, vote.validator].append(vote)
        if vote.kind == "prevote" and vote.value is not None:
            prevoters[vote.height, vote.round, vote.value].add(vote.validator)
    polkas = {place for place, voters in prevoters.items() if len(voters) >= quorum}
    return frozenset(
        validator
        for (_, validator), said in cast.items()
        if any(
            _equivocates(one, other) or _forgets(one, other) or _claims(one, other, polkas)
            for one in said
            for other in said
            if one is not other
        )
    )


def _equivocates(one: Vote, other: Vote) -> bool:
    return (one.kind, one.round) == (other.kind, other.round) and one.says() != other.says()


def _forgets(precommit: Vote, prevote: Vote) -> bool:
    ordered = (precommit.kind, prevote.kind) == ("precommit", "prevote") and precommit.round < prevote.round
    return ordered and contradicts(precommit, prevote)


def _claims(precommit: Vote, prevote: Vote, polkas: Polkas) -> bool:
    value = prevote.value
    if (precommit.kind, prevote.kind) != ("precommit", "prevote") or precommit.value is None or value is None:
        return False
    if value == precommit.value or precommit.round >= prevote.round:
        return False
    return not any((prevote.height, between, value) in polkas for between in range(precommit.round, prevote.round))
