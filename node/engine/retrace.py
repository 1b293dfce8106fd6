"""Reading an answer again: could the model that it claims have given it, token by token, under the declared sampling?

What cannot be, whatever the model says (a prompt that is not the conversation's, a text that is not what the tokens
spell), is found before the model reads anything. Then the answer is read after its prompt, piece by piece, and every
token is held against the distribution that the declared parameters and the seed's random numbers make of its logits.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final

from nsllm.governance.ports import HEAD_TOKENS, JUDGED_TOKENS, Claim, Fault, Likelihood, Trace
from nsllm.node.engine.backend import Backend, Cache, Eyes, Read
from nsllm.node.engine.bad_words import spellings
from nsllm.node.engine.declared import is_possible
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.prompt import PromptError, spelled, truncated, whole_prompt
from nsllm.node.engine.sampler import NoChoiceError, Sampler, TokenGuide
from nsllm.node.engine.strain import Strain
from nsllm.node.engine.text_stream import TextStream
from nsllm.record import Request, Sampling

if TYPE_CHECKING:
    import torch

CHUNK_TOKENS: Final = 64
"""Tokens of an answer that are read at once, all logits included."""


class Retracing:
    """One answer that is read again.

    Args:
        backend: the model that the claim names, in whatever numbers.
        claim: what the record says.
        card: the model's own parameters.

    Raises:
        PromptError, GuideError: the answer cannot be repeated here: the template or the guide's grammar is refused,
            or it was given to pictures, which records do not hold.
    """

    def __init__(self, backend: Backend, claim: Claim, card: Sampling) -> None:
        self._backend = backend
        self._claim = claim
        self._card = card
        self._prompt = _prompt(backend, claim)
        self._ends = backend.end_token_ids.union(claim.sampling.stop_token_ids)
        guide = claim.request.guide
        self._guide: TokenGuide | None = None if guide is None else backend.guides.start(guide)
        self._fault = self._find_fault()
        self._judged = self._judged_tokens()
        """How many of the answer's first tokens likelihoods are taken over; 0: others would be read for them."""

    def steps(self) -> Generator[None, None, Trace]:
        """Read on, a bounded piece each time; the trace at the end."""
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
        strains: list[Strain] = []
        logprobs: list[float] = []
        sequence = [*self._prompt, *answer]
        while (cache := backend.open(self._prompt, len(sequence), side=True)) is None:
            yield
        try:
            for start, rows in read_answer(backend, cache, self._prompt, answer):
                part = answer[start : start + len(rows)]
                logprobs += backend.log_probabilities(rows, part) if start < self._judged else ()
                try:
                    strains += [
                        backend.chooser.trace(sampler, row, token) for row, token in zip(rows, part, strict=True)
                    ]
                except NoChoiceError:
                    return Trace(0, fault="guide")
                yield
        finally:
            backend.close(cache)
        return Trace(
            tokens=len(strains),
            mean_strain=math.fsum(one.logits for one in strains) / len(strains),
            worst_strain=max(one.logits for one in strains),
            surprise=math.fsum(one.surprise for one in strains),
            variance=math.fsum(one.variance for one in strains),
            likelihood=likelihood(logprobs[: self._judged]) if self._judged else None,
        )

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
        if self._fault is not None or request.form != "chat" or request.tools or not whole:
            return 0
        text = self._claim.text[: limit * self._backend.longest_token_chars]
        tokens = self._backend.tokens(text)[:limit] if text.strip() else []
        fits = len(self._prompt) + len(tokens) <= self._backend.context_tokens
        return len(tokens) if fits and tuple(tokens) == self._claim.token_ids[: len(tokens)] else 0


def read_answer(
    backend: Backend, cache: Cache, prompt: Sequence[int], answer: Sequence[int]
) -> Generator[tuple[int, torch.Tensor]]:
    """Read prompt and answer in pieces: of each, the first answer token that it predicts, and logits, a row a token.

    The logits (tokens, vocabulary) hold until the next piece; a piece of the prompt alone has none.
    """
    sequence = [*prompt, *answer]
    while (start := cache.read) < len(sequence) - 1:
        end = min(start + CHUNK_TOKENS, len(sequence) - 1)
        # The token at position p is predicted by the logits after position p - 1.
        keep = max(0, end - max(start, len(prompt) - 1))
        (logits,) = backend.forward([Read(cache, sequence[start:end], keep)])
        yield max(0, end - keep + 1 - len(prompt)), logits


def likelihood(logprobs: Sequence[float]) -> Likelihood:
    """Of the tokens with these log-probabilities; 0.0 over none."""
    head = logprobs[:HEAD_TOKENS]
    mean = math.fsum(logprobs) / len(logprobs) if logprobs else 0.0
    return Likelihood(mean, len(logprobs), math.fsum(head) / len(head) if head else 0.0)


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
