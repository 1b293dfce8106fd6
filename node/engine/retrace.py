"""Reading an answer again: could the model that it claims have given it, token by token, under the declared sampling?

What cannot be, whatever the model says (a prompt that is not the conversation's, a text that is not what the tokens
spell), is found before the model reads anything. Then the answer is read after its prompt, piece by piece, and every
token is held against the distribution that the declared parameters and the seed's random numbers make of its logits.
Where its text is judged as well, the same tokens are read beside it after another prompt, in the same passes. An answer
that this worker wrote is not read at all while it is remembered what its tokens were chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nsllm.governance.ports import HEAD_TOKENS, JUDGED_TOKENS, Claim, Fault, Trace
from nsllm.node.engine.backend import Backend, Eyes, TemplateError
from nsllm.node.engine.bad_words import spellings
from nsllm.node.engine.declared import is_possible
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.prompt import PromptError, spelled, truncated, whole_prompt
from nsllm.node.engine.reading import Reading, Wishes, likelihood, read_all
from nsllm.node.engine.sampler import NoChoiceError, Sampler, TokenGuide
from nsllm.node.engine.strain import Strain
from nsllm.node.engine.text_stream import TextStream
from nsllm.record import Message, Request, Sampling

if TYPE_CHECKING:
    import torch

    from nsllm.node.engine.written import Written


AT_ONCE: Final = 32
"""Remembered tokens whose logits are told at once: 6 ms of SmolLM2-135M."""


class Retracing:
    """One answer that is read again.

    Args:
        backend: the model that the claim names, in whatever numbers.
        claim: what the record says.
        card: the model's own parameters.
        beside: a conversation after which the head of the answer is read, too; empty: none.
        written: what is remembered of answers; None: nothing is.

    Raises:
        PromptError, GuideError: the answer cannot be repeated here: the template or the guide's grammar is refused,
            or it was given to pictures, which records do not hold.
    """

    def __init__(
        self,
        backend: Backend,
        claim: Claim,
        card: Sampling,
        beside: Sequence[Message] = (),
        written: Written | None = None,
    ) -> None:
        self._backend = backend
        self._claim = claim
        self._card = card
        self._written = written
        self._prompt = _prompt(backend, claim)
        self._ends = backend.end_token_ids.union(claim.sampling.stop_token_ids)
        guide = claim.request.guide
        self._guide: TokenGuide | None = None if guide is None else backend.guides.start(guide)
        self._fault = self._find_fault()
        self._judged = self._judged_tokens()
        """How many of the answer's first tokens likelihoods are taken over; 0: others would be read for them."""
        self._beside = self._beside_prompt(beside)
        self._strains: list[Strain] = []
        self._logprobs: list[float] = []
        self._alone: list[float] = []
        """Log-probabilities of the answer's head after the other prompt."""

    def steps(self) -> Wishes[Trace]:
        """Read on; the trace at the end."""
        if self._fault is not None:
            return Trace(0, fault=self._fault)
        backend, answer = self._backend, self._claim.token_ids
        sampler = Sampler(
            self._claim.sampling,
            self._prompt,
            end_token_ids=self._ends,
            bad_words=spellings(self._claim.sampling.bad_words, backend.tokens),
            guide=self._guide,
        )
        readings: list[Reading] = []
        if not (yield from self._recall(sampler)):
            readings.append(
                Reading(backend, self._prompt, answer, lambda start, rows: self._hold(sampler, start, rows))
            )
        elif self._fault is not None:
            return Trace(0, fault=self._fault)
        if self._beside:
            readings.append(Reading(backend, self._beside, self._head(), self._hear))
        wishes = read_all(readings)
        try:
            for wish in wishes:
                yield wish
                if self._fault is not None:
                    return Trace(0, fault=self._fault)
        finally:
            wishes.close()
        strains = self._strains
        return Trace(
            tokens=len(strains),
            mean_strain=math.fsum(one.logits for one in strains) / len(strains),
            worst_strain=max(one.logits for one in strains),
            surprise=math.fsum(one.surprise for one in strains),
            variance=math.fsum(one.variance for one in strains),
            likelihood=likelihood(self._logprobs[: self._judged]) if self._judged else None,
            beside=likelihood(self._alone) if self._beside else None,
        )

    def _recall(self, sampler: Sampler) -> Wishes[bool]:
        """Hold the answer against the logits that it was chosen from; False: they are not remembered."""
        states = None if self._written is None else self._written.find(self._prompt, self._claim.token_ids)
        if self._written is None or states is None:
            return False
        for start in range(0, len(states), AT_ONCE):
            if start:
                yield ()  # others come first
            self._hold(sampler, start, self._written.logits(states[start : start + AT_ONCE]))
            if self._fault is not None:
                break
        return True

    def _hold(self, sampler: Sampler, start: int, rows: torch.Tensor) -> None:
        """The answer's tokens from `start` on against what the sampling makes of their logits."""
        part = self._claim.token_ids[start : start + len(rows)]
        self._logprobs += self._backend.log_probabilities(rows, part) if start < self._judged else ()
        chooser = self._backend.chooser
        try:
            self._strains += [chooser.trace(sampler, row, token) for row, token in zip(rows, part, strict=True)]
        except NoChoiceError:
            self._fault = "guide"

    def _hear(self, start: int, rows: torch.Tensor) -> None:
        self._alone += self._backend.log_probabilities(rows, self._head()[start : start + len(rows)])

    def _head(self) -> tuple[int, ...]:
        return self._claim.token_ids[: min(HEAD_TOKENS, self._judged)]

    def _beside_prompt(self, beside: Sequence[Message]) -> list[int]:
        """Empty where nothing is read beside the answer: it is no text that is judged, or the prompt is refused."""
        if not beside or not self._judged:
            return []
        try:
            prompt = self._backend.chat_tokens(beside)
        except TemplateError:
            return []
        return prompt if len(prompt) + len(self._head()) <= self._backend.context_tokens else []

    def _find_fault(self) -> Fault | None:
        claim, backend = self._claim, self._backend
        limit = claim.sampling.max_tokens
        if not is_possible(claim.request.sampling, claim.sampling, self._card):
            return "sampling"
        if list(claim.prompt_token_ids) != self._prompt or not _read_as_written(backend, claim.request):
            return "prompt"
        count = len(claim.token_ids)
        if not count or len(self._prompt) + count > backend.context_tokens or (limit is not None and count > limit):
            return "tokens"
        if max(claim.token_ids) >= backend.vocabulary:
            return "tokens"
        return self._misspelled()

    def _misspelled(self) -> Fault | None:
        """The answer written once more from its tokens, as `nsllm.node.engine.generation` does."""
        claim, ends = self._claim, self._ends
        stream = TextStream(self._backend.spelling.decoder(), claim.sampling.stop, claim.sampling.min_tokens or 0)
        texts: list[str] = []
        for token in claim.token_ids[:-1]:
            texts.append(stream.push(token) if token not in ends else "")
            if token in ends or stream.stopped:
                return "end"
        last = claim.token_ids[-1]
        stopped = last in ends
        if not stopped:
            texts.append(stream.push(last))
            stopped = stream.stopped
        texts.append(stream.finish())
        if "".join(texts) != claim.text:
            return "text"
        if stopped != (claim.finish_reason == "stop"):
            return "end"
        full = len(claim.token_ids) in {claim.sampling.max_tokens, self._backend.context_tokens - len(self._prompt)}
        return None if stopped or full else "end"

    def _judged_tokens(self) -> int:
        request, limit = self._claim.request, min(JUDGED_TOKENS, self._backend.context_tokens - 1)
        whole = request.sampling.truncate_prompt_tokens is None
        plain = request.form == "chat" and not request.tools and request.rendering is None
        if self._fault is not None or not plain or not whole:
            return 0
        text = self._claim.text[: limit * self._backend.longest_token_chars]
        tokens = self._backend.tokens(text)[:limit] if text.strip() else []
        fits = len(self._prompt) + len(tokens) <= self._backend.context_tokens
        return len(tokens) if fits and tuple(tokens) == self._claim.token_ids[: len(tokens)] else 0


def _prompt(backend: Backend, claim: Claim) -> list[int]:
    request, sampling = claim.request, claim.sampling
    if request.form == "chat" and request.attachments and isinstance(backend, Eyes):
        raise PromptError("the answer was given to pictures, which its record does not hold")
    whole = whole_prompt(backend, EngineRequest.of(request))
    return truncated(whole, sampling, backend.context_tokens, sampling.max_tokens or 1)


def _read_as_written(backend: Backend, request: Request) -> bool:
    """Whether a prompt that was given as tokens is the model's tokens, and they spell the text that others judge by."""
    given = request.prompt_token_ids
    return not given or (max(given) < backend.vocabulary and spelled(backend, given) == request.messages[0].content)
