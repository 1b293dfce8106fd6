"""The hybrid score: what one validator measures of a record, dimension by dimension, under the rubric in force.

The rubric may change from one epoch to the next, and a model that it names may be loaded at any time: both are looked
at for each record. A validator that lacks what the rubric pins (scorer model, encoder, rule sets, a plugin's dimension)
abstains and says why: a number measured with something else would only look like an observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nsllm import passages
from nsllm.canonical import Value
from nsllm.consensus.observation import MISSING
from nsllm.errors import NsllmError
from nsllm.governance.computation import DIMENSION as COMPUTATION
from nsllm.governance.computation import computation_ppm
from nsllm.governance.errors import AbstainError, SafetyUnavailableError
from nsllm.governance.features import UNCONDITIONED, Answer, AnswerFeatures, measure_answers
from nsllm.governance.policy import Rubric, RuleSet
from nsllm.governance.ports import Claim, JudgeModels, Trace
from nsllm.ids import Digest, Ppm
from nsllm.record import Message, Record, TextField

SUPPORT: Final = "support"
NO_EVIDENCE: Final = "the record cites no evidence"


@dataclass(frozen=True, slots=True)
class Observed:
    """What one validator found of a record."""

    row: tuple[int, ...]
    """One integer a dimension of the rubric, in its order: ppm, or `MISSING`."""
    missing: Mapping[str, str]
    """Why, by dimension that was left out."""


class AnswerItem(Value, frozen=True, kw_only=True):
    """An answer as scorers get it."""

    question: TextField
    """The last user turn."""
    answer: TextField
    features: AnswerFeatures


class AnswerScorers(Protocol):
    """Scorers of answers: the built-in ones and the enabled plugins'. `nsllm.plugins` implements it."""

    async def score(self, item: AnswerItem) -> Mapping[str, Ppm]:
        """Every dimension that somebody measured; a plugin's carry its name in front (`plugin.dimension`).

        Raises:
            SafetyUnavailableError: the built-in scorers cannot answer.
        """
        ...

    def rule_sets(self) -> tuple[RuleSet, ...]:
        """Rules and weights that the built-in scorers judge with."""
        ...


class HybridScorer:
    """Scores records with the models, rule sets and plugins in hand."""

    def __init__(self, models: JudgeModels, plugins: AnswerScorers, *, encoder: Digest) -> None:
        """Take what there is to measure with, and the digest of the encoder behind `models`."""
        self._models = models
        self._plugins = plugins
        self._encoder = encoder
        self._had: tuple[Rubric, tuple[RuleSet, ...]] | None = None
        """A rubric of which nothing but its model was lacking, and the rule sets in hand when it was looked at."""

    def lacks(self, rubric: Rubric) -> str | None:
        """What a rubric pins and this validator has not (now), for people; None if it has everything."""
        if self._models.judging(rubric.scorer_model) is None:
            return f"the rubric's scorer model is {rubric.scorer_model.hex()[:16]}, which is not loaded here"
        in_hand = self._plugins.rule_sets()
        if self._had is not None and self._had[0] is rubric and self._had[1] is in_hand:
            return None
        if self._encoder != rubric.encoder:
            return f"the rubric's encoder is {rubric.encoder.hex()[:16]}, this peer has {self._encoder.hex()[:16]}"
        have_rules = {rules.name: rules.digest for rules in in_hand}
        for rules in rubric.rule_sets:
            held = have_rules.get(rules.name)
            if held != rules.digest:
                mine = "none" if held is None else held.hex()[:16]
                return f"the rubric's rule set {rules.name} is {rules.digest.hex()[:16]}, this peer has {mine}"
        self._had = (rubric, in_hand)
        return None

    async def observe(self, records: Sequence[Record], rubric: Rubric) -> list[Observed | AbstainError]:
        """A rubric's dimensions of each record, or why this validator leaves it out.

        An answer of the rubric's own scorer model is read once, for its likelihoods and for `computation`; for the rest
        there is one call to each model, however many records there are.

        Raises:
            AbstainError: this validator lacks something that the rubric pins, whatever the record.
        """
        reason, models = self.lacks(rubric), self._models.judging(rubric.scorer_model)
        if reason is not None or models is None:
            raise AbstainError(reason or "the rubric's scorer model is not loaded here")
        computed = [await self._computed(record, rubric) for record in records]
        answers: list[Answer] = []
        for record, (_, _, trace) in zip(records, computed, strict=True):
            messages, text = record.request.judged(record.text)
            given, free = (None, None) if trace is None else (trace.likelihood, trace.beside)
            answers.append(Answer(messages, text, passages.texts(record.evidence), given, free))
        measured = await measure_answers(models, answers)
        observed: list[Observed | AbstainError] = []
        for record, answer, features, (found, missing, _) in zip(records, answers, measured, computed, strict=True):
            item = AnswerItem(question=record.request.question(), answer=answer.text, features=features)
            try:
                scores = {**await self._plugins.score(item), **found}
            except SafetyUnavailableError as error:
                observed.append(AbstainError(f"the built-in scorers cannot answer: {error.message}"))
            else:
                observed.append(_row(scores, missing, rubric))
        return observed

    async def _computed(self, record: Record, rubric: Rubric) -> tuple[dict[str, Ppm], dict[str, str], Trace | None]:
        """`computation` where it is found, why not where it is not; and what reading the scorer model's answer gave."""
        if COMPUTATION not in rubric.dimensions:
            return {}, {}, None
        own = record.request.model_digest == rubric.scorer_model
        try:
            trace = await self._retrace(record, UNCONDITIONED if own else ())
        except AbstainError as error:
            return {}, {COMPUTATION: error.message}, None
        return {COMPUTATION: computation_ppm(trace)}, {}, trace if own else None

    async def _retrace(self, record: Record, beside: tuple[Message, ...]) -> Trace:
        model = record.request.model_digest
        if not self._models.holds(model):
            raise AbstainError(f"the answer's model is {model.hex()[:16]}, which is not loaded here")
        try:
            return await self._models.retrace(Claim.of(record), beside=beside)
        except NsllmError as error:
            raise AbstainError(f"the answer cannot be read again: {error.message}") from None


def _row(found: Mapping[str, Ppm], missing: dict[str, str], rubric: Rubric) -> Observed | AbstainError:
    """Scores in the rubric's order; `missing` says why of those that somebody knows to be missing."""
    lacking = [name for name in rubric.dimensions if name not in found]
    for name in lacking:
        missing.setdefault(name, NO_EVIDENCE if name == SUPPORT else f"no scorer here measures dimension {name}")
        if name not in rubric.optional:
            return AbstainError(missing[name], hint="enable the plugin that the rubric names")
    row = tuple([found.get(name, MISSING) for name in rubric.dimensions])
    return Observed(row, {name: missing[name] for name in lacking})
