"""Reuse rules: when an answer from the cache may stand in for a generation, and when a found record may be served.

Exact matches: the request key covers model digest, messages, attachments and every parameter that the caller set, so an
explicit seed or temperature matches exactly or not at all. Like questions: only behind the guards, only where the bound
on the error that was learned for the record's neighbourhood is below what the user accepts, and, now and then, only
after a look at what generating would have said. In doubt the answer is generated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nsllm.cache_dht.calibration import Calibration
from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.cache_dht.guards import objection
from nsllm.cache_dht.observations import UNSHARED, Place, Tally
from nsllm.cache_dht.placement import cell
from nsllm.cache_dht.wording import read
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Address, Digest, Height, NetworkId, Ppm, short
from nsllm.record import Sampling

LEAST_COSINE: Final = 0.6
"""Neighbours below are not looked at: of the pairs that were fitted, one in a thousand of them was right."""
NEIGHBOURS: Final = 8
"""Neighbours that are looked at."""
PLACE_BITS: Final = 6
"""A neighbourhood is one of 64 cells of the embedding space."""
AUDIT: Final = 0.02
"""Share of safe hits that are generated all the same, to go on learning."""
AUDIT_STRANGER: Final = 0.2
"""The same for answers of a generator that was seen to be right less than `KNOWN` times."""
KNOWN: Final = 5


def may_stand_in(sampling: Sampling) -> bool:
    """True where the caller left sampling to the peer or asked for determinism (a seed, or temperature 0).

    >>> may_stand_in(Sampling()), may_stand_in(Sampling(temperature_micro=700_000))
    (True, False)
    """
    left_open = sampling.temperature_micro is None and sampling.top_p_micro is None and sampling.top_k is None
    return left_open or sampling.temperature_micro == 0 or sampling.seed is not None


def check_found(
    found: CertifiedRecord,
    key: Digest,
    network: NetworkId,
    validators: ValidatorSet,
    hybrid_ppm: Ppm,
    minimum: Ppm,
    retracted: Height | None = None,
) -> None:
    """Pass silently if a record that somebody gave us for `key` may be served.

    Args:
        found: from the store or from another peer; nothing about it is trusted.
        key: the request key that we asked for.
        network: our network.
        validators: validator set of the certificate's epoch.
        hybrid_ppm: its hybrid score under the policy in force.
        minimum: the policy's `reuse_min_ppm`.
        retracted: height at which validators took it back.

    Raises:
        RecordRefusedError: another request's record, revoked, or below the policy's threshold.
        CertificateError, SignatureError, EncodingError: see `CertifiedRecord.check`.
    """
    if found.signed.record.key() != key:
        raise RecordRefusedError(f"asked for request {key.hex()[:16]}, got another request's record")
    check_standing(found.leaf.record, retracted)
    found.check(network, validators)
    if hybrid_ppm < minimum:
        raise RecordRefusedError(f"hybrid score {hybrid_ppm} ppm is below the policy's {minimum} ppm")


def check_standing(record: Digest, retracted: Height | None) -> None:
    """Pass silently if validators have not taken the record back.

    Raises:
        RecordRefusedError: they have.
    """
    if retracted is not None:
        raise RecordRefusedError(f"record {short(record)} was revoked at height {retracted}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that answers a question near the one that is asked, as far as the decision looks at it."""

    digest: Digest
    question: str
    answer: str
    generator: Address
    embedding: bytes
    """Of its question."""
    cosine: float
    """To the question that is asked."""
    age_ms: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate that no guard objects to."""

    candidate: Candidate
    likeness: float
    bound_ppm: Ppm
    """Upper bound on the chance that its answer is wrong here."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is done about a question that has no exact match."""

    best: Weighed | None
    """The candidate with the lowest bound; None if there is none that no guard objects to."""
    doubt: str | None
    """Why it is generated: nothing near, a guard's name, `bound`, `dissent` or `audit`; None: `best` is served."""


class SemanticReuse:
    """Chooses between a near record and generating, and learns from what generating says."""

    def __init__(self, calibration: Calibration, tally: Tally, own: Address, rng: random.Random) -> None:
        self._calibration = calibration
        self._tally = tally
        self._own = own
        self._rng = rng
        self._ours = frozenset({own, UNSHARED})

    def choose(
        self,
        question: str,
        candidates: Sequence[Candidate],
        limit_ppm: int,
        agree: Callable[[str, str], bool],
        verifies: Callable[[Candidate], bool] = lambda _candidate: True,
    ) -> Choice:
        """What to do about a question.

        Args:
            question: the last user turn.
            candidates: records of requests that differ in it only.
            limit_ppm: wrong hits that the user accepts, in a million.
            agree: whether two answers say the same; asked of answers by different generators.
            verifies: whether a record is genuine; costly, so asked only of those that would count.
        """
        weighed, doubt = self._weigh(question, candidates)
        weighed.sort(key=lambda one: (one.bound_ppm, -one.candidate.cosine))
        ranked = iter(weighed)
        best = next((one for one in ranked if verifies(one.candidate)), None)
        if best is None:
            return Choice(None, doubt)
        if best.bound_ppm > limit_ppm:
            return Choice(best, "bound")
        own = best.candidate
        others = (
            one.candidate for one in ranked if one.bound_ppm <= limit_ppm and one.candidate.generator != own.generator
        )
        if any(not agree(own.answer, other.answer) and verifies(other) for other in others):
            return Choice(best, "dissent")
        return Choice(best, "audit" if self._rng.random() < self._audits(own.generator) else None)

    def observe(
        self, weighed: Weighed, *, right: bool, shared: bool = True
    ) -> tuple[Address, tuple[tuple[Place, tuple[int, ...]], ...]]:
        """Learn whether a candidate's answer would have been right; whose counters changed and how, to be kept.

        Args:
            weighed: what would have been served.
            right: whether what was generated said the same.
            shared: others may hear of it: the question was public.
        """
        candidate, own = weighed.candidate, self._own if shared else UNSHARED
        places = (_place(candidate), bytes(candidate.digest), bytes(candidate.generator))
        return own, tuple(
            (place, tuple(self._tally.note(own, place, weighed.likeness, right=right))) for place in places
        )

    def merge(self, other: Tally) -> None:
        """Learn from what others observed."""
        self._tally.merge(other)

    def _weigh(self, question: str, candidates: Sequence[Candidate]) -> tuple[list[Weighed], str]:
        """Candidates that no guard objects to; if there are none, why."""
        found: list[Weighed] = []
        doubt = "nothing near"
        asked = read(question)
        for candidate in candidates:
            if candidate.cosine < LEAST_COSINE:
                continue
            objected = objection(question, candidate.question, candidate.age_ms)
            cached = read(candidate.question)
            if objected is not None or asked is None or cached is None:
                doubt = objected or "length"
                continue
            likeness = self._calibration.likeness.of(candidate.cosine, asked, cached)
            found.append(Weighed(candidate, likeness, self._bound(candidate, likeness)))
        return found, doubt

    def _bound(self, candidate: Candidate, likeness: float) -> Ppm:
        generator = candidate.generator if candidate.generator != self._own else None  # nobody vouches for itself
        own = self._tally.at(bytes(candidate.digest), self._ours, generator)
        place = self._tally.at(_place(candidate), self._ours, generator)
        around = tuple(a - b for a, b in zip(place, own, strict=True))
        return self._calibration.error_bound(likeness, tuple(max(0.0, c) for c in around), own)

    def _audits(self, generator: Address) -> float:
        if generator == self._own:
            return AUDIT
        seen = (self._tally.counters.get((observer, bytes(generator))) for observer in self._ours)  # ours only
        counts = [*map(sum, zip(*filter(None, seen), strict=True))]
        right, wrong = sum(counts[: len(counts) // 2]), sum(counts[len(counts) // 2 :])
        return AUDIT if right >= KNOWN and wrong <= right * AUDIT else AUDIT_STRANGER


def _place(candidate: Candidate) -> Place:
    return bytes([cell(candidate.embedding, PLACE_BITS)])
