"""A validator scores with what the rubric pins, in two calls to its models, or abstains and says what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from records import small_record

from nsllm.consensus.observation import MISSING
from nsllm.crypto import MemberKey
from nsllm.governance.defaults import built_in_rule_sets, default_policy
from nsllm.governance.errors import AbstainError, SafetyUnavailableError
from nsllm.governance.features import EMPTY_ANSWER, UNCONDITIONED, Answer, measure_answer, measure_answers
from nsllm.governance.hybrid_score import NO_EVIDENCE, HybridScorer
from nsllm.governance.policy import Rubric, RuleSet
from nsllm.governance.ports import Claim, Likelihood, Trace
from nsllm.governance.validation import Measure
from nsllm.governance.validator import Validator
from nsllm.ids import Digest
from nsllm.record import Message, Rendering

SCORER, ENCODER = Digest(b"s" * 32), Digest(b"e" * 32)
POLICY = default_policy(SCORER, ENCODER)


OTHER_RULES = tuple(RuleSet(name=rules.name, digest=Digest(bytes(32))) for rules in built_in_rule_sets())


def unit(*leading):
    vector = [float(x) for x in leading] + [0.0] * (384 - len(leading))
    norm = math.hypot(*vector)
    return tuple(x / norm for x in vector)


@dataclass
class Models:
    """Texts have the vectors and likelihoods that a test gives them."""

    vectors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    given: float = -0.7
    free: float = -1.3
    held: tuple[Digest, ...] = ()
    scorers: tuple[Digest, ...] = (SCORER,)
    trace: Trace | Exception | None = None
    calls: list[str] = field(default_factory=list)

    async def embed(self, texts):
        self.calls.append(f"embed {len(texts)}")
        return [self.vectors.get(text, unit(1)) for text in texts]

    async def likelihoods(self, items, *, most_tokens=512):
        self.calls.append(f"likelihoods of {most_tokens}")
        means = [self.free if messages == UNCONDITIONED else self.given for messages, _ in items]
        return [Likelihood(mean_logprob=mean, tokens=9, head_logprob=mean) for mean in means]

    def judging(self, scorer):
        return self if scorer in self.scorers else None

    def holds(self, model):
        return model in self.held

    async def retrace(self, claim, *, beside=()):
        self.calls.append("retrace" + " and beside" * bool(beside))
        if isinstance(self.trace, Exception):
            raise self.trace
        return self.trace


@dataclass
class Layers:
    """Scores and measures that a test gives."""

    scores: dict[str, int] = field(
        default_factory=lambda: {"coherence": 900_000, "relevance": 800_000, "safety": 990_000}
    )
    rules: tuple[RuleSet, ...] = built_in_rule_sets()
    broken: bool = False
    items: list[object] = field(default_factory=list)

    async def score(self, item):
        self.items.append(item)
        if self.broken:
            raise SafetyUnavailableError("the worker process ended")
        return self.scores

    async def validate(self, item):
        self.items.append(item)
        return (Measure(layer="toxicity", kind="safety", ppm=1_000),)

    def rule_sets(self):
        return self.rules


ASKED = (
    Message(role="user", content="What is the Moon?"),
    Message(role="assistant", content="A satellite."),
    Message(role="user", content="And tides?"),
)


def record(text="Tides are caused by the Moon.", evidence=()):
    made = small_record(MemberKey(bytes([1]) * 32), ASKED, text=text, evidence=evidence)
    return msgspec.structs.replace(made, request=msgspec.structs.replace(made.request, model_digest=SCORER))


async def observe(models=None, layers=None, rubric=POLICY.rubric, *, encoder=ENCODER, of=None):
    return await alone(HybridScorer(models or Models(), layers or Layers(), encoder=encoder), of or record(), rubric)


async def alone(scorer, scored, rubric):
    """What is observed of one record; raises why it is left out."""
    [observed] = await scorer.observe([scored], rubric)
    if isinstance(observed, AbstainError):
        raise observed
    return observed


async def test_the_rubrics_dimensions_in_order_in_one_call_a_model():
    models, layers = Models(), Layers(scores={"safety": 1, "relevance": 2, "coherence": 3, "extra.one": 4})
    scores = await observe(models, layers)
    assert scores.row == (3, MISSING, 2, 1, MISSING)
    assert scores.missing == {
        "computation": "the answer's model is 7373737373737373, which is not loaded here",
        "support": NO_EVIDENCE,
    }
    assert models.calls == ["embed 3", "likelihoods of 512", "likelihoods of 32"]
    [item] = layers.items
    assert item.question == "And tides?"
    assert (item.features.logprob_micro, item.features.gain_micro) == (-700_000, 600_000)


async def test_an_answer_that_continues_a_message_is_judged_with_it():
    asked: list[object] = []

    class Listening(Models):
        async def likelihoods(self, items, *, most_tokens=512):
            asked.extend(items)
            return await super().likelihoods(items, most_tokens=most_tokens)

    begun = (Message(role="user", content="What is the Moon?"), Message(role="assistant", content="It is a "))
    request = msgspec.structs.replace(record().request, messages=begun, rendering=Rendering(continues=True))
    layers = Layers()
    await observe(Listening(), layers, of=msgspec.structs.replace(record("satellite."), request=request))
    assert asked[0] == (begun[:1], "It is a satellite.")
    assert (layers.items[0].question, layers.items[0].answer) == ("What is the Moon?", "It is a satellite.")


async def test_relevance_may_lean_on_the_conversation():
    answer, whole = "Tides are caused by the Moon.", "What is the Moon?\nAnd tides?"
    models = Models(vectors={answer: unit(1), "And tides?": unit(0, 1), whole: unit(1, 1)})
    features = await measure_answer(models, Answer(record().request.messages, answer))
    assert features.relevance_cosine_ppm == 707_107


async def test_support_is_a_mean_over_sentences_and_left_out_without_evidence():
    dimensions = ("coherence", "support")
    rubric = Rubric(scorer_model=SCORER, encoder=ENCODER, dimensions=dimensions, optional=("support",))
    observed = await observe(rubric=rubric)
    assert observed.row == (900_000, MISSING)
    assert observed.missing == {"support": NO_EVIDENCE}
    with pytest.raises(AbstainError, match="cites no evidence"):
        await observe(rubric=msgspec.structs.replace(rubric, optional=()))
    one, other, said = "Far and wide away.", "It is very near.", "It is near to us. Then it is not."
    vectors = {one: unit(0, 1), other: unit(1, 0), "It is near to us.": unit(1, 0), "Then it is not.": unit(0, 0, 1)}
    features = await measure_answer(Models(vectors=vectors), Answer(record().request.messages, said, (one, other)))
    assert features.support_cosine_ppm == 500_000  # one of two sentences stands in the evidence


async def test_nothing_said_asks_no_model():
    models = Models()
    assert await measure_answer(models, Answer(record().request.messages, " \n")) == EMPTY_ANSWER
    assert models.calls == []


@pytest.mark.parametrize("mean", [math.nan, -math.inf, -1e9, 5.0])
async def test_absurd_likelihoods_stay_within_bounds(mean):
    features = await measure_answer(Models(given=mean, free=mean), Answer(record().request.messages, "answer"))
    assert -30_000_000 <= features.logprob_micro <= 0
    assert -30_000_000 <= features.gain_micro <= 30_000_000


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"models": Models(scorers=())}, "the rubric's scorer model is 7373737373737373, which is not loaded here"),
        ({"encoder": SCORER}, "the rubric's encoder is 6565656565656565"),
        ({"layers": Layers(rules=())}, "rule set coherence is [0-9a-f]{16}, this peer has none"),
        ({"layers": Layers(rules=OTHER_RULES)}, "rule set coherence is [0-9a-f]{16}, this peer has 0{16}"),
        ({"layers": Layers(scores={"coherence": 1})}, "no scorer here measures dimension relevance"),
        ({"layers": Layers(broken=True)}, "the built-in scorers cannot answer: the worker process ended"),
    ],
)
async def test_a_validator_that_lacks_what_the_rubric_pins_abstains(changed, reason):
    with pytest.raises(AbstainError, match=reason):
        await observe(**changed)


async def test_another_rubric_is_measured_by_the_same_scorer_once_its_model_is_there():
    """Nothing is kept of the rubric that was in force before."""
    models, layers = Models(), Layers()
    scorer, other = HybridScorer(models, layers, encoder=ENCODER), Digest(b"o" * 32)
    rubric = Rubric(scorer_model=other, encoder=ENCODER, dimensions=("relevance",))
    assert scorer.lacks(POLICY.rubric) is None
    reason = f"the rubric's scorer model is {other.hex()[:16]}, which is not loaded here"
    assert scorer.lacks(rubric) == reason
    with pytest.raises(AbstainError, match=reason):
        await scorer.observe([record()], rubric)
    models.scorers = (SCORER, other)
    assert scorer.lacks(rubric) is None
    assert (await alone(scorer, record(), rubric)).row == (800_000,)
    assert len((await alone(scorer, record(), POLICY.rubric)).row) == len(POLICY.rubric.dimensions)


COMPUTED = Rubric(scorer_model=SCORER, encoder=ENCODER, dimensions=("coherence", "computation"))
READ = Trace(9, variance=1.0, likelihood=Likelihood(mean_logprob=-0.7, tokens=9, head_logprob=-0.6))
BOTH = replace(READ, beside=Likelihood(mean_logprob=-1.3, tokens=9, head_logprob=-1.3))


async def test_an_answer_of_the_scorer_model_is_read_once():
    models, layers = Models(held=(SCORER,), trace=BOTH), Layers()
    observed = await observe(models, layers, COMPUTED)
    assert observed.row[1] > 990_000
    assert not observed.missing
    assert models.calls == ["retrace and beside", "embed 3"]
    assert (layers.items[0].features.logprob_micro, layers.items[0].features.gain_micro) == (-700_000, 700_000)


async def test_what_was_not_read_beside_an_answer_is_read_for_itself():
    models = Models(held=(SCORER,), trace=READ)
    await observe(models, rubric=COMPUTED)
    assert models.calls == ["retrace and beside", "embed 3", "likelihoods of 32"]


async def test_an_answer_of_another_model_is_read_by_both():
    models = Models(held=(ENCODER,), trace=READ)
    other = msgspec.structs.replace(record().request, model_digest=ENCODER)
    await observe(models, rubric=COMPUTED, of=msgspec.structs.replace(record(), request=other))
    assert models.calls == ["retrace", "embed 3", "likelihoods of 512", "likelihoods of 32"]


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (Models(), "the answer's model is 7373737373737373, which is not loaded here"),
        (Models(held=(SCORER,), trace=AbstainError("pictures")), "the answer cannot be read again: pictures"),
    ],
)
async def test_who_cannot_read_an_answer_again_abstains(models, reason):
    with pytest.raises(AbstainError, match=reason):
        await observe(models, rubric=COMPUTED)


async def test_only_answers_that_may_be_published_cost_likelihoods():
    models, layers = Models(), Layers()
    validator = Validator(models, layers)
    private = await validator.check_output(record().request.messages, "answer", POLICY, publishing=False)
    assert (models.calls, private.features) == (["embed 1"], None)
    public = await validator.check_output(record().request.messages, "answer", POLICY, publishing=True)
    assert models.calls[1:] == ["embed 3", "likelihoods of 512", "likelihoods of 32"]
    assert public.features is not None
    asked = await validator.check_input("And tides?", unit(1), POLICY)
    assert [(item.stage, item.text, item.features is None) for item in layers.items] == [
        ("output", "answer", True),
        ("output", "answer", False),
        ("input", "And tides?", True),
    ]
    assert not asked.withheld


LIKELIHOODS = ["likelihoods of 512", "likelihoods of 32"]


@pytest.mark.parametrize(
    ("model", "trace", "calls"),
    [
        (SCORER, BOTH, ["retrace and beside", "embed 3"]),
        (SCORER, AbstainError("pictures"), ["retrace and beside", "embed 3", *LIKELIHOODS]),
        (ENCODER, BOTH, ["embed 3", *LIKELIHOODS]),
    ],
)
async def test_an_answer_that_is_scored_here_is_read_once_for_check_and_score(model, trace, calls):
    models, layers = Models(held=(SCORER,), trace=trace), Layers()
    request = msgspec.structs.replace(record().request, model_digest=model)
    claim = Claim.of(msgspec.structs.replace(record(), request=request))
    checked = await Validator(models, layers).check_output(
        request.messages, "answer", POLICY, publishing=True, claim=claim
    )
    assert models.calls == calls
    assert checked.features is not None


async def test_what_is_not_embedded_is_judged_by_its_wording():
    models, layers = Models(), Layers()
    validator = Validator(models, layers)
    await validator.check_input("And tides?", None, POLICY)
    await validator.check_output(record().request.messages, "answer", POLICY, publishing=False, embed=False)
    assert models.calls == []
    assert [any(item.embedding) for item in layers.items] == [False, False]


async def test_answers_that_are_measured_together_are_measured_as_alone():
    """In one call a model; each gets its own vectors and likelihoods, whatever stands before it."""
    texts = ("One is near. Two is far away.", " ", "Three is somewhere.", "Four is nowhere at all.")
    vectors = {text: unit(number, 1) for number, text in enumerate([*texts, "What is the Moon?", "And tides?"])}

    class Telling(Models):
        async def likelihoods(self, items, *, most_tokens=512):
            self.calls.append(f"likelihoods of {most_tokens}")
            return [Likelihood(-len(text) / 100, len(text), -len(messages) / 10) for messages, text in items]

    known = Likelihood(-0.5, 7, -0.25)
    answers = [
        Answer(ASKED, texts[0], ("Zero is here. Two is far away.",)),
        Answer(ASKED, texts[1]),
        Answer(ASKED[:1], texts[2], given=known),
        Answer(ASKED, texts[3], ("One is near.",), free=known),
    ]
    models = Telling(vectors=vectors)
    together = await measure_answers(models, answers)
    assert models.calls == ["embed 14", "likelihoods of 512", "likelihoods of 32"]
    assert together == [await measure_answer(Telling(vectors=vectors), answer) for answer in answers]
    assert len(set(together)) == len(answers)
    assert await measure_answers(models, []) == []


async def test_one_of_several_that_is_left_out_leaves_the_others():
    models = Models(held=(SCORER,), trace=READ)
    other = msgspec.structs.replace(record(), request=msgspec.structs.replace(record().request, model_digest=ENCODER))
    scorer = HybridScorer(models, Layers(), encoder=ENCODER)
    first, left_out, last = await scorer.observe([record(), other, record("Something else.")], COMPUTED)
    assert isinstance(left_out, AbstainError)
    assert first.row[1] == last.row[1] > 990_000
