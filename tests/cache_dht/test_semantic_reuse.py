"""An answer to a like question is served only where the learned bound allows it, and what goes wrong is learned."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.cache_dht.calibration import CURVES, read_calibration, shipped
from nsllm.cache_dht.judge import agree, compatible
from nsllm.cache_dht.observations import BINS, CAP, OWN_CAP, UNSHARED, Tally, bin_of
from nsllm.cache_dht.patience import LEAST_S, MOST_S, Patience
from nsllm.cache_dht.placement import cell
from nsllm.cache_dht.reuse import AUDIT, AUDIT_STRANGER, KNOWN, PLACE_BITS, Candidate, SemanticReuse, Weighed
from nsllm.ids import Address, Digest

OWN, OTHER, THIRD = (Address(bytes([n]) * 20) for n in (1, 2, 3))
LIMIT_PPM = 20_000
QUESTION = "why is the sky blue during the day"


class Dice(random.Random):
    """Chance that never audits, unless told."""

    value = 0.999

    def random(self) -> float:
        return self.value


def candidate(
    question: str = "Why is the sky blue during the day?",
    *,
    answer: str = "Rayleigh scattering.",
    by: Address = OWN,
    cosine: float = 0.995,
    digest: int = 1,
    age_ms: int = 0,
) -> Candidate:
    return Candidate(Digest(bytes([digest]) * 32), question, answer, by, b"\x05" * 384, cosine, age_ms)


def policy(tally: Tally | None = None, dice: Dice | None = None) -> SemanticReuse:
    return SemanticReuse(shipped(), tally or Tally(), OWN, dice or Dice())


def choose(reuse: SemanticReuse, *candidates: Candidate, limit_ppm: int = LIMIT_PPM):
    return reuse.choose(QUESTION, candidates, limit_ppm, compatible)


def test_a_repeat_in_other_words_is_served_and_a_near_miss_is_not() -> None:
    served = choose(policy(), candidate())
    assert served.doubt is None
    assert served.best is not None
    assert served.best.bound_ppm <= LIMIT_PPM
    assert choose(policy(), candidate("why is the sea blue during the day", cosine=1.0)).doubt == "bound"
    assert choose(policy(), candidate("why is the sky not blue during the day")).doubt == "negation"
    assert choose(policy(), candidate(cosine=0.5)).doubt == "nothing near"
    assert choose(policy()).doubt == "nothing near"


def test_the_user_says_what_share_of_wrong_answers_is_accepted() -> None:
    bound = choose(policy(), candidate()).best
    assert bound is not None
    assert choose(policy(), candidate(), limit_ppm=bound.bound_ppm - 1).doubt == "bound"
    assert choose(policy(), candidate(), limit_ppm=0).doubt == "bound"


def test_one_wrong_answer_stops_a_record_and_right_ones_do_not() -> None:
    reuse = policy()
    found = choose(reuse, candidate()).best
    assert found is not None
    for _ in range(3):
        reuse.observe(found, right=True)
    assert choose(reuse, candidate()).doubt is None
    reuse.observe(found, right=False)
    assert choose(reuse, candidate()).doubt == "bound"


def test_what_is_learned_survives_in_the_counters_that_are_kept() -> None:
    reuse = policy()
    found = choose(reuse, candidate()).best
    assert found is not None
    kept = Tally()
    observer, changed = reuse.observe(found, right=False)
    assert observer == OWN
    for place, counts in changed:
        kept.counter(observer, place)[:] = counts
    assert choose(policy(kept), candidate()).doubt == "bound"


def test_generators_that_contradict_each_other_are_doubted() -> None:
    honest, liar = candidate(), candidate(answer="Because of 7 dragons.", by=OTHER, digest=2)
    assert choose(policy(), honest, liar).doubt == "dissent"
    assert choose(policy(), honest, candidate(by=OTHER, digest=2)).doubt is None  # both say the same
    assert choose(policy(), honest, candidate(answer="A second try.", digest=2)).doubt is None  # one voice


@pytest.mark.parametrize(("by", "share"), [(OWN, AUDIT), (OTHER, AUDIT_STRANGER)])
def test_safe_hits_are_audited_now_and_then_strangers_more_often(by: Address, share: float) -> None:
    dice = Dice()
    reuse = policy(dice=dice)
    dice.value = share - 0.001
    assert choose(reuse, candidate(by=by)).doubt == "audit"
    dice.value = share
    assert choose(reuse, candidate(by=by)).doubt is None


def test_a_generator_becomes_known_by_being_right() -> None:
    dice = Dice()
    dice.value = (AUDIT + AUDIT_STRANGER) / 2
    reuse = policy(dice=dice)
    for number in range(KNOWN):
        found = choose(reuse, candidate(by=OTHER, digest=number)).best
        assert found is not None
        assert choose(reuse, candidate(by=OTHER, digest=number)).doubt == "audit"
        reuse.observe(found, right=True)
    assert choose(reuse, candidate(by=OTHER)).doubt is None


def test_another_peer_counts_up_to_a_limit() -> None:
    tally = Tally()
    for observer in (OWN, OTHER):
        for _ in range(1000):
            tally.note(observer, b"place", 3.0, right=True)
    assert sum(tally.at(b"place", frozenset({OWN, OTHER}))) == pytest.approx(2 * OWN_CAP)
    assert sum(tally.at(b"place", frozenset())) == pytest.approx(2 * CAP)
    assert sum(tally.at(b"place", frozenset({OWN}))) == pytest.approx(OWN_CAP + CAP)
    assert sum(tally.at(b"place", frozenset({OWN}), without=OTHER)) == pytest.approx(OWN_CAP)
    assert sum(tally.at(b"elsewhere", frozenset({OWN}))) == 0


one_counter = st.lists(st.integers(0, 60), min_size=2 * BINS, max_size=2 * BINS)


@given(st.lists(one_counter, min_size=1, max_size=6), st.data())
def test_liars_add_no_more_than_honest_observers_have_seen(honest: list, data: st.DataObject) -> None:
    """Of n observers, this peer one of them, (n-1)//3 lie: whatever they say, right and wrong answers stay below."""
    liars = data.draw(st.lists(one_counter, max_size=len(honest) // 2))
    tally = Tally()
    for number, counts in enumerate([*honest, *liars], start=100):
        tally.counter(Address(bytes([number]) * 20), b"place")[:] = counts
    claimed = tally.at(b"place", frozenset({OWN}))
    seen = [sum(column) for column in zip(*map(capped, honest), strict=True)]
    for half in (slice(0, BINS), slice(BINS, 2 * BINS)):
        assert sum(claimed[half]) <= sum(seen[half]) + 1e-6


def capped(counts: list[int]) -> list[float]:
    return [min(1.0, CAP / max(1, sum(counts))) * count for count in counts]


def test_an_observer_tells_of_so_many_places_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsllm.cache_dht.observations.MOST", 3)
    tally = Tally()
    for number in range(10):
        theirs = Tally()
        theirs.note(OTHER, bytes([number]), 3.0, right=True)
        tally.merge(theirs)
    assert [place for _, place, _ in tally.rows()] == [bytes([number]) for number in range(3)]
    again = Tally()
    for _ in range(2):
        again.note(OTHER, bytes([1]), 3.0, right=True)
    tally.merge(again)  # of a place that is known, more is heard
    assert sum(tally.counters[OTHER, bytes([1])]) == 2


def told(found: Weighed, observer: Address, *, right: bool, times: int = 24) -> Tally:
    """What another peer observed of a candidate."""
    theirs = Tally()
    around = bytes([cell(found.candidate.embedding, PLACE_BITS)])
    for place in (around, bytes(found.candidate.digest), bytes(found.candidate.generator)):
        for _ in range(times):
            theirs.note(observer, place, found.likeness, right=right)
    return theirs


def test_what_others_saw_go_wrong_stops_a_record_here() -> None:
    reuse = policy()
    found = choose(reuse, candidate(by=OTHER)).best
    assert found is not None
    reuse.merge(told(found, THIRD, right=False))
    assert choose(reuse, candidate(by=OTHER)).doubt == "bound"


def test_nobody_vouches_for_itself() -> None:
    dice = Dice()
    dice.value = (AUDIT + AUDIT_STRANGER) / 2
    reuse = policy(dice=dice)
    found = choose(reuse, candidate(by=OTHER)).best
    assert found is not None
    reuse.merge(told(found, THIRD, right=True))
    assert choose(reuse, candidate(by=OTHER)).doubt == "audit"  # how well a generator is known, each peer must see

    def bound() -> int:
        best = choose(reuse, candidate(by=OTHER)).best
        assert best is not None
        return best.bound_ppm

    reuse.observe(found, right=False)
    doubted = bound()
    reuse.merge(told(found, OTHER, right=True))
    assert bound() == doubted
    reuse.merge(told(found, THIRD, right=True, times=100))
    reuse.merge(told(found, Address(bytes([9]) * 20), right=True))
    assert bound() < doubted


def test_what_private_questions_taught_counts_here_and_has_another_name() -> None:
    reuse = policy()
    found = choose(reuse, candidate()).best
    assert found is not None
    observer, changed = reuse.observe(found, right=False, shared=False)
    assert observer == UNSHARED
    assert len(changed) == 3
    assert choose(reuse, candidate()).doubt == "bound"


counters = st.dictionaries(
    st.tuples(st.sampled_from([OWN, OTHER, THIRD]), st.sampled_from([b"a", b"b"])),
    st.lists(st.integers(0, 50), min_size=2 * BINS, max_size=2 * BINS),
    max_size=4,
)


def copied(found: dict) -> Tally:
    return Tally({key: list(counts) for key, counts in found.items()})


def merged(*tallies: dict) -> dict:
    first = copied(tallies[0])
    for other in tallies[1:]:
        first.merge(copied(other))
    return first.counters


@given(counters, counters, counters)
def test_tallies_merge_in_any_order_and_as_often_as_one_likes(a: dict, b: dict, c: dict) -> None:
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c))
    assert merged(a, a) == copied(a).counters


@given(st.lists(st.tuples(st.floats(-9, 20), st.booleans()), max_size=30), st.floats(-9, 20), st.floats(0, 5))
def test_the_bound_falls_with_likeness_and_is_a_share(
    seen: list[tuple[float, bool]], likeness: float, more: float
) -> None:
    tally = Tally()
    for at, right in seen:
        tally.note(OWN, b"place", at, right=right)
    around, nothing = tally.at(b"place", frozenset({OWN})), (0.0,) * (2 * BINS)
    low, high = (shipped().error_bound(at, around, nothing) for at in (likeness, likeness + more))
    assert 0 <= high <= low <= 1_000_000


@given(st.floats(-9, 20))
def test_being_wrong_never_lowers_the_bound(likeness: float) -> None:
    nothing = [0.0] * (2 * BINS)
    wrong = list(nothing)
    wrong[BINS + bin_of(likeness)] = 3
    calibration = shipped()
    before = calibration.error_bound(likeness, tuple(nothing), tuple(nothing))
    assert calibration.error_bound(likeness, tuple(nothing), tuple(wrong)) >= before


def test_a_calibration_for_other_features_is_refused() -> None:
    assert len(shipped().prior) == len(CURVES)
    assert sum(shipped().prior) == pytest.approx(1)
    with pytest.raises(ValueError, match="fit_reuse"):
        read_calibration(b'{"features": ["one"], "weights": [1], "prior": [1]}')


@pytest.mark.parametrize(
    ("one", "other", "cosine", "same"),
    [
        ("Paris.", "Paris.", 0.0, True),
        ("The capital of France is Paris.", "Paris is the capital of France.", 0.98, True),
        ("It was opened in 1937.", "It was opened in 1973.", 0.97, False),
        ("Bats are blind.", "Bats are not blind.", 0.95, False),
        ("The capital of France is Paris.", "The capital of Italy is Rome.", 0.7, False),
        ("The capital of France is Paris.", "Paris is the capital of France.", 0.2, False),
    ],
)
def test_answers_agree_where_words_and_meaning_do(one: str, other: str, cosine: float, same: bool) -> None:
    assert agree(one, other, cosine) is same
    assert agree(other, one, cosine) is same


def test_patience_follows_what_look_ups_take() -> None:
    patience = Patience()
    assert patience.wait_s == MOST_S
    for _ in range(9):
        patience.note(0.002)
    patience.note(1.0)  # one holder that hangs changes nothing
    assert patience.wait_s == LEAST_S
    for _ in range(40):
        patience.note(0.1)
    assert patience.wait_s == pytest.approx(0.4)
