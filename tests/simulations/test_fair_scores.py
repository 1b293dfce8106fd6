"""Scores of decided blocks, computed again: sound ones pass, and each way in which one can be wrong is seen."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nsllm.consensus.batch import Excerpt
from nsllm.consensus.observation import MISSING
from nsllm.governance.settled import settled_body
from nsllm.ids import Ppm
from nsllm.simulations import fair_scores, scenarios
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.fair_scores import check_scores


@pytest.fixture(scope="module")
def scored():
    """A block with scores, and what it is judged by."""
    seen = []

    def looking(*about):
        found = check_scores(*about)
        seen.append((found, about))
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scenarios, "check_scores", looking)
        result = scenarios.run("steady", peers=4, seed=2)
    assert result["scores_checked"] == sum(found for found, _ in seen) > 0
    return next(about for found, about in seen if found)


def with_body(block, **changes):
    return replace(block, body=replace(block.body, **changes))


def test_sound_scores_pass(scored):
    assert check_scores(*scored) > 0


def test_a_row_too_few(scored):
    block, network, validators, rubric, liars = scored
    fewer = with_body(block, batches=block.body.batches[:2])
    with pytest.raises(InvariantError, match="settles nothing"):
        check_scores(fewer, network, validators, rubric, liars)


def test_rows_of_a_stranger_and_of_one_validator_twice(scored):
    block, network, validators, rubric, liars = scored
    others = replace(validators, members=validators.members[1:])
    with pytest.raises(InvariantError, match="who does not validate"):
        check_scores(block, network, others, rubric, liars)
    first = block.body.batches[0]
    twice = with_body(block, batches=(first, *block.body.batches))
    with pytest.raises(InvariantError, match="two rows"):
        check_scores(twice, network, validators, rubric, liars)


def test_another_root_than_the_rows_give(scored):
    block, *about = scored
    other = replace(block, header=replace(block.header, scores_root=bytes(32)))
    with pytest.raises(InvariantError, match="certifies other scores"):
        check_scores(other, *about)


def test_a_score_that_is_no_median(scored, monkeypatch):
    """As if everybody computed something else, and certified it."""

    def averaged(body, terms):
        sound = settled_body(body, terms)
        leaf = sound.leaves[0]
        score = leaf.scores[0]
        scores = (replace(score, ppm=Ppm(score.ppm + 1)), *leaf.scores[1:])
        return type(sound)(**{**vars_of(sound), "leaves": (replace(leaf, scores=scores), *sound.leaves[1:])})

    monkeypatch.setattr(fair_scores, "settled_body", averaged)
    with pytest.raises(InvariantError, match="not the lower medians"):
        check_scores(*scored)


def vars_of(settled):
    return {name: getattr(settled, name) for name in settled.__dataclass_fields__}


def test_a_score_that_only_liars_found(scored):
    """All but one are named as liars, and their rows say more than the honest one's."""
    block, network, validators, rubric, _ = scored
    batches = []
    honest = block.body.batches[0].signed.commit.validator
    for excerpt in block.body.batches:
        if excerpt.signed.commit.validator == honest:
            batches.append(excerpt)
            continue
        rows = excerpt.opened(len(rubric.dimensions))
        lies = [row._replace(ppm=tuple(min(ppm + 1, MISSING) for ppm in row.ppm)) for row in rows]
        batches.append(Excerpt.of(excerpt.signed, lies))
    false = with_body(block, batches=tuple(batches))
    root = settled_body(
        false.body, fair_scores.Terms(network, validators, rubric.digest(), rubric.dimensions)
    ).scores_root
    false = replace(false, header=replace(false.header, scores_root=root))
    liars = frozenset(validators.members) - {honest}
    with pytest.raises(InvariantError, match="honest ones found"):
        check_scores(false, network, validators, rubric, liars)
