"""The validation layers at work: measures from models and plugins, judged by the policy in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nsllm.canonical import Value
from nsllm.embedding import quantize_embedding
from nsllm.errors import NsllmError
from nsllm.governance.computation import DIMENSION as COMPUTATION
from nsllm.governance.features import UNCONDITIONED, Answer, AnswerFeatures, EmbeddingField, measure_answer
from nsllm.governance.policy import Policy, Rubric
from nsllm.governance.ports import Claim, JudgeModels, Likelihood
from nsllm.governance.validation import Decision, Measure, Stage, judge
from nsllm.record import EMBEDDING_DIMENSIONS, Message, TextField

NOT_EMBEDDED: Final = bytes(EMBEDDING_DIMENSIONS)
"""In place of a text's embedding; the toxicity layer's meaning head takes it for harmless."""


class TextItem(Value, frozen=True, kw_only=True):
    """A text as validation layers get it."""

    stage: Stage
    text: TextField
    """What is judged: the user's last turn, or the answer."""
    question: TextField
    """The user's last turn."""
    embedding: EmbeddingField
    """Of `text`; all zeros where it was not embedded: a peer may have private requests judged by their wording."""
    features: AnswerFeatures | None = None
    """At the output stage, if the answer may be published; None where only safety is judged."""


class ValidationLayers(Protocol):
    """The layers: built-in ones and the enabled plugins'. `nsllm.plugins` implements it."""

    async def validate(self, item: TextItem) -> tuple[Measure, ...]:
        """What every layer measures.

        Raises:
            SafetyUnavailableError: the built-in safety layer cannot answer; nothing may pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """The decision on an answer, with what it rests on."""

    decision: Decision
    features: AnswerFeatures | None
    """None for an answer that is private anyway: no likelihoods were asked for."""


class Validator:
    """Judges what users ask and what models answer."""

    def __init__(self, models: JudgeModels, layers: ValidationLayers) -> None:
        """Take models and layers; both are shared, neither is closed here.

        Where the rubric's scorer model is not at hand, another one judges: of what is published validators judge again.
        """
        self._models = models
        self._layers = layers

    async def check_input(self, question: str, vector: Sequence[float] | None, policy: Policy) -> Decision:
        """Judge the user's last turn.

        Args:
            question: the text.
            vector: its embedding, the one that the cache look-up uses as well; None: it was not embedded.
            policy: the policy in force.

        Raises:
            SafetyUnavailableError: answer 503 and do not generate.
        """
        embedding = NOT_EMBEDDED if vector is None else quantize_embedding(list(vector))
        item = TextItem(stage="input", text=question, question=question, embedding=embedding, features=None)
        return judge("input", await self._layers.validate(item), policy)

    async def check_output(
        self,
        messages: Sequence[Message],
        answer: str,
        policy: Policy,
        *,
        publishing: bool,
        embed: bool = True,
        evidence: Sequence[str] = (),
        claim: Claim | None = None,
    ) -> OutputCheck:
        """Judge an answer to a conversation.

        Args:
            messages: the conversation.
            answer: what the model said.
            policy: the policy in force.
            publishing: whether the answer could be published: only then are likelihoods asked for and coherence judged.
            embed: whether an answer that is not published is embedded for the layers that listen to its meaning.
            evidence: texts that the answer cites.
            claim: of an answer that this peer will score, too: it is read as the score reads it, once for both.

        Raises:
            SafetyUnavailableError: withhold the answer and say so.
        """
        features: AnswerFeatures | None = None
        if publishing:
            models = self._models.judging(policy.rubric.scorer_model) or self._models
            given, free = await self._read(claim, policy.rubric)
            features = await measure_answer(models, Answer(messages, answer, evidence, given, free))
            embedding = features.embedding
        elif not embed:
            embedding = NOT_EMBEDDED
        else:
            [vector] = await self._models.embed([answer])
            embedding = quantize_embedding(list(vector))
        question = next((message.content for message in reversed(messages) if message.role == "user"), "")
        item = TextItem(stage="output", text=answer, question=question, embedding=embedding, features=features)
        return OutputCheck(judge("output", await self._layers.validate(item), policy), features)

    async def _read(self, claim: Claim | None, rubric: Rubric) -> tuple[Likelihood | None, Likelihood | None]:
        """The likelihoods that reading the answer's own tokens gives; None where the score does not read them."""
        if claim is None or claim.request.model_digest != rubric.scorer_model or COMPUTATION not in rubric.dimensions:
            return None, None
        try:
            trace = await self._models.retrace(claim, beside=UNCONDITIONED)
        except NsllmError:  # it is not loaded, or cannot read this answer again
            return None, None
        return trace.likelihood, trace.beside
