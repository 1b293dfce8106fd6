"""The worker's steps: every running generation gains a token, prompts are read in between, side work takes turns.

A step is one pass of the text model over the next token of every generation that writes, and a bounded piece of the
prompts that are not read yet, shared between clients, with some tokens of answers that are judged beside them; then
one token is chosen for each, and one message says what all of them gained. Generations join and leave at any step. They
join in turns between clients as soon as the backend has room for all that they may grow to: that room is reserved, so
that nothing that runs is ever put off for want of it.

What goes wrong in one generation ends that one. If a pass over several fails, each reads its sequence again in passes
of its own, and the ones that fail alone end.

Single-threaded and without IO: messages in by `handle`, out through `send`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from nsllm.node.engine.backend import Backend, Read, Retelling
from nsllm.node.engine.bad_words import spellings
from nsllm.node.engine.failures import failed
from nsllm.node.engine.generation import Generation
from nsllm.node.engine.guide import GuideError
from nsllm.node.engine.prompt import PromptError, check_tokens, prompt_tokens, spelled, whole_prompt
from nsllm.node.engine.prompt_teller import PromptTeller
from nsllm.node.engine.protocol import (
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    FromWorker,
    Gain,
    Generate,
    Judge,
    Load,
    Ping,
    Pong,
    PromptTold,
    Refused,
    Retrace,
    Started,
    Step,
    Tokenize,
    Tokenized,
    ToWorker,
)
from nsllm.node.engine.sampler import NoChoiceError, Sampler
from nsllm.node.engine.side_work import Piece, SideWork
from nsllm.node.engine.text_stream import TextStream
from nsllm.node.engine.turns import Turns, shared
from nsllm.node.engine.written import Written

if TYPE_CHECKING:
    import torch

PASS_TOKENS: Final = 64
"""Tokens that a pass reads while prompts are read: at most 150 ms of SmolLM2-135M on one thread."""
LEAST_CHUNK: Final = 16
"""Prompt tokens in a pass, however many generations write; and of a client in its turn."""
FAILED_PASSES: Final = 3
"""Passes over one generation each that fail in a row: then it is not the generations, and the worker ends."""


class Scheduler:
    """Owns all jobs of a worker.

    Args:
        backend: the models.
        send: takes what the worker says.
    """

    def __init__(self, backend: Backend, send: Callable[[FromWorker], None]) -> None:
        self._backend = backend
        self._send = send
        self._written = Written(backend) if isinstance(backend, Retelling) else None
        self._side = SideWork(backend, send, self._written)
        self._waiting = Turns[Generation]()
        """They have no room yet."""
        self._generations: dict[int, Generation] = {}
        """With and without room, by job."""
        self._queried_tokens = self._found_tokens = 0
        self._failed_passes = 0
        self._left = False
        """Somebody was cancelled since the last step."""
        self._rode = False
        """Pieces of judging rode along in the last step."""

    @property
    def busy(self) -> bool:
        """There is work to do."""
        return bool(self._generations) or self._side.busy

    def handle(self, message: ToWorker) -> None:
        """Take a message from the peer."""
        match message:
            case Generate():
                try:
                    self._start(message)
                except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
                    self._send(failed(message.job, error))
            case Embed():
                self._side.embed(message)
            case Judge() | Retrace():
                self._side.judge(message)
            case Tokenize() | Detokenize():
                self._send(self._spelled(message))
            case Cancel(job=job):
                if job in self._generations:
                    self._drop(self._generations[job])
                    self._left = True
                self._side.cancel(job)
            case Ping():
                self._send(Pong())

    def step(self) -> None:
        """One pass of the text model and what follows from it, if there is anything to read."""
        started_s = time.perf_counter()
        self._rode = False
        self._admit()
        running, reads = self._plan()
        if not running:
            if self._left:  # the last one: nothing else would say that its room is free
                self._send(Step((), self._load()))
            self._left = False
            return
        prompt_rows = sum(len(read.token_ids) for one, read in zip(running, reads, strict=True) if not one.tokens)
        rows = sum(len(read.token_ids) for read in reads)
        riders = [] if running[0].suspect else self._side.riders(rows)
        ready, logits, rest = self._read(running, reads, riders)
        gains = self._choose(ready, logits)
        self._left = False
        self._send(Step(gains, self._load(time.perf_counter() - started_s, rows, len(running), prompt_rows)))
        if riders and rest is not None:
            self._rode = True
            self._side.give(riders, rest)

    def side(self) -> None:
        """One piece of side work, if there is any: after judging has had its turn in the step, no other one of it."""
        if self._rode:
            self._side.embeddings_step()
        elif self._side.busy:
            self._side.step()

    def _load(self, step_s: float = 0.0, rows: int = 0, running: int = 0, prompt_tokens: int = 0) -> Load:
        used, blocks = self._backend.room()
        load = Load(
            step_s=step_s,
            rows=rows,
            running=running,
            waiting=len(self._waiting),
            prompt_tokens=prompt_tokens,
            queried_tokens=self._queried_tokens,
            found_tokens=self._found_tokens,
            used_blocks=used,
            blocks=blocks,
        )
        self._queried_tokens = self._found_tokens = 0
        return load

    def _start(self, message: Generate) -> None:
        request, sampling = message.request, message.request.sampling
        limit = sampling.max_tokens or message.max_tokens_cap
        try:
            check_tokens(self._backend, [token for token, _ in sampling.logit_bias], "logit_bias")
            prompt = prompt_tokens(self._backend, request, limit)
            guide = None if request.guide is None else self._backend.guides.start(request.guide)
        except PromptError as error:
            self._send(Refused(job=message.job, kind=error.kind, message=str(error), param=error.param))
            return
        except GuideError as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param=error.param))
            return
        ends = self._backend.end_token_ids.union(sampling.stop_token_ids)
        generation = Generation(
            job=message.job,
            client=request.client,
            prompt=prompt,
            max_tokens=min(limit, self._backend.context_tokens - len(prompt)),
            end_token_ids=ends,
            sampler=Sampler(
                sampling,
                prompt,
                end_token_ids=ends,
                bad_words=spellings(sampling.bad_words, self._backend.tokens),
                guide=guide,
                top_logprobs=request.top_logprobs,
            ),
            stream=TextStream(self._backend.spelling.decoder(), sampling.stop, sampling.min_tokens or 0),
            teller=self._teller(prompt, request.prompt_logprobs),
        )
        self._generations[generation.job] = generation
        self._waiting.add(generation.client, generation)

    def _teller(self, prompt: list[int], top: int | None) -> PromptTeller | None:
        return None if top is None else PromptTeller(prompt, top, self._backend.chooser, self._backend.spelling)

    def _spelled(self, message: Tokenize | Detokenize) -> FromWorker:
        """Tokens of a prompt, or the text of tokens: bounded work, done at once."""
        job = message.job
        try:
            if isinstance(message, Detokenize):
                check_tokens(self._backend, message.token_ids)
                if message.apart:
                    return Detokenized(job, "", tuple(map(self._backend.spelling.written, message.token_ids)))
                return Detokenized(job, spelled(self._backend, message.token_ids))
            return Tokenized(job, tuple(whole_prompt(self._backend, message.request, special=message.special)))
        except PromptError as error:
            return Refused(job=job, kind="invalid", message=str(error), param=error.param)
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            return failed(job, error)

    def _admit(self) -> None:
        """Give room to those who wait, in turns between clients, until it does not suffice for the next."""
        while self._waiting:
            one = self._waiting.first()
            if not self._give_room(one):
                return
            self._waiting.take()
            if not one.started:
                one.started = True
                self._send(Started(job=one.job, prompt_token_ids=tuple(one.prompt), max_tokens=one.max_tokens))

    def _give_room(self, one: Generation) -> bool:
        known = [] if one.tells else one.prompt  # what is known already has no logits any more
        one.cache = self._backend.open(known, one.most, side=False)
        if one.cache is None:
            return False
        self._queried_tokens += len(one.prompt)
        self._found_tokens += one.cache.read
        return True

    def _drop(self, one: Generation) -> None:
        del self._generations[one.job]
        if one.cache is None:
            self._waiting.remove(one.client, one)
        else:
            self._backend.close(one.cache)

    def _plan(self) -> tuple[list[Generation], list[Read]]:
        """Who takes part in the next pass, and what each reads."""
        writing: list[Generation] = []
        reading: list[Generation] = []
        for one in self._generations.values():
            if one.cache is not None:
                if one.suspect:
                    return [one], [one.next_read(PASS_TOKENS)]
                (writing if one.tokens and one.unread == 1 else reading).append(one)
        reads = [one.next_read(1) for one in writing]
        if reading:
            budget = max(LEAST_CHUNK, PASS_TOKENS - len(writing))
            for one in reading:
                assert one.cache is not None
                before = one.cache.read
                if not one.tells:
                    self._backend.catch_up(one.cache, one.prompt)
                self._found_tokens += one.cache.read - before
            shares = shared(budget, [(one.client, one.unread) for one in reading], LEAST_CHUNK)
            for one, share in zip(reading, shares, strict=True):
                if share:
                    writing.append(one)
                    reads.append(one.next_read(share))
        return writing, reads

    def _read(
        self, running: list[Generation], reads: list[Read], riders: list[Piece]
    ) -> tuple[list[Generation], Sequence[torch.Tensor] | torch.Tensor | None, torch.Tensor | None]:
        """One pass; the generations that have read all, a row of logits for each, and what came of the riders."""
        try:
            logits = self._backend.read([*reads, *(read for rider in riders for read in rider.reads)])
        except Exception as error:
            self._side.get_off(riders)
            if len(running) == 1 and not riders:
                self._failed_passes += 1
                if self._failed_passes >= FAILED_PASSES:
                    raise
                self._fail(running[0], error)
            else:
                for one in running:
                    self._read_again(one)
            return [], None, None
        self._failed_passes = 0
        kept = sum(read.keep for read in reads)
        logits, rest = logits[:kept], logits[kept:]
        if any(one.tells for one in running):
            return *self._told(running, reads, logits), rest
        ready = [one for one, read in zip(running, reads, strict=True) if read.keep]
        if self._written is not None:
            self._written.note(ready)
        for one in ready:
            one.suspect = False
        return ready, logits, rest

    def _told(
        self, running: list[Generation], reads: list[Read], logits: torch.Tensor
    ) -> tuple[list[Generation], list[torch.Tensor]]:
        """The same after a pass that kept more than the last logits: what is to be told of prompts goes out."""
        ready: list[Generation] = []
        rows: list[torch.Tensor] = []
        at = 0
        for one, read in zip(running, reads, strict=True):
            assert one.cache is not None
            own, at = logits[at : at + read.keep], at + read.keep
            if one.tells and one.teller is not None:
                try:
                    told = one.teller.take(one.cache.read - len(read.token_ids), own)
                except Exception as error:  # noqa: BLE001 - one generation's failure is nobody else's
                    self._fail(one, error)
                    continue
                self._send(PromptTold(job=one.job, tokens=told))
            if not one.unread:
                one.suspect = False
                ready.append(one)
                rows.append(own[-1])
        return ready, rows

    def _read_again(self, one: Generation) -> None:
        """Read the sequence from its beginning, in passes of its own: what the cache holds is uncertain."""
        assert one.cache is not None
        self._backend.close(one.cache)
        one.suspect = True
        if not self._give_room(one):
            self._waiting.add(one.client, one)

    def _choose(
        self, ready: Sequence[Generation], logits: Sequence[torch.Tensor] | torch.Tensor | None
    ) -> tuple[Gain, ...]:
        """The next token of each generation, and what it gains by it. `logits`: (generations, vocabulary)."""
        if logits is None or not ready:
            return ()
        gains: list[Gain] = []
        choices = self._backend.chooser.choose_all([one.sampler for one in ready], logits)
        for one, choice in zip(ready, choices, strict=True):
            if isinstance(choice, NoChoiceError):
                self._drop(one)
                self._send(Refused(job=one.job, kind="invalid", message=str(choice)))
                continue
            try:
                gain = one.accept(choice, self._backend.spelling)
            except Exception as error:  # noqa: BLE001 - one generation's failure is nobody else's
                self._fail(one, error)
                continue
            gains.append(gain)
            if gain.reason is not None:
                self._drop(one)
                if self._written is not None:
                    self._written.keep(one)
        return tuple(gains)

    def _fail(self, one: Generation, error: Exception) -> None:
        self._drop(one)
        self._send(failed(one.job, error))
