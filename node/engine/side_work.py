"""The worker's side work, embeddings and judging, in bounded pieces that take turns.

Pieces of judging fill a pass of their own, or ride along in a pass that generations need anyway: reading the model's
weights is most of what a pass over few tokens costs, and it is done once for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsllm.node.engine.backend import Backend, Read, TemplateError
from nsllm.node.engine.embeddings import Embeddings
from nsllm.node.engine.failures import failed
from nsllm.node.engine.guide import GuideError
from nsllm.node.engine.prompt import PromptError
from nsllm.node.engine.protocol import Embed, Embedded, Judge, Judged, Refused, Retrace, Retraced
from nsllm.node.engine.reading import Reading, Wishes, likelihood, read_all
from nsllm.node.engine.retrace import Retracing

if TYPE_CHECKING:
    import torch

    from nsllm.node.engine.written import Written

CHUNK_TOKENS: Final = 64
"""Tokens of answers that a pass of their own reads: about 50 ms of SmolLM2-135M on one thread."""
EASY_TOKENS: Final = 8
"""Tokens that a pass reads for little more than one alone costs, 8 ms of SmolLM2-135M against 7: the weights come out
of memory all the same. Each one more costs 0.8."""
LEAST_RIDING: Final = 4
"""Tokens that ride along in a pass that is full of others."""
MOST_RIDING: Final = 16
"""That ride along where judging falls behind."""
BEHIND: Final = 4
"""Judging jobs that wait where it does."""


@dataclass(slots=True, eq=False)
class SideJob:
    """A judging job; its last step sends the result."""

    message: Judge | Retrace
    steps: Wishes[None]
    wish: Sequence[Reading] | None = None
    """What it wants to be read next; None: it was not asked yet."""
    rides: bool = True
    """Whether its pieces may be read beside others': not after a pass that failed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a judging job for one pass."""

    side: SideJob
    readings: tuple[Reading, ...]
    reads: tuple[Read, ...]
    """One a reading."""

    @property
    def tokens(self) -> int:
        """That are read."""
        return sum(len(read.token_ids) for read in self.reads)

    @property
    def keep(self) -> int:
        """Rows of logits that are asked for."""
        return sum(read.keep for read in self.reads)


class SideWork:
    """Owns all embedding and judging jobs of a worker.

    Args:
        backend: that does them.
        send: takes the results.
        written: what is remembered of the worker's own answers; None: nothing is.
    """

    def __init__(
        self,
        backend: Backend,
        send: Callable[[Embedded | Judged | Retraced | Refused], None],
        written: Written | None = None,
    ) -> None:
        self._backend = backend
        self._written = written
        self._send = send
        self._embeddings = Embeddings(backend.encoder, send)
        self._judges: deque[SideJob] = deque()
        self._judged = False
        """The last piece of work was of a judging job."""

    @property
    def busy(self) -> bool:
        """There is work to do."""
        return bool(self._embeddings or self._judges)

    def embed(self, message: Embed) -> None:
        """Take an embedding job."""
        self._embeddings.add(message)

    def judge(self, message: Judge | Retrace) -> None:
        """Take a judging job."""
        self._judges.append(SideJob(message, self._steps(message)))

    def cancel(self, job: int) -> None:
        """Forget a job, if it is here."""
        self._embeddings.cancel(job)
        for side in [side for side in self._judges if side.message.job == job]:
            self._judges.remove(side)
            side.steps.close()

    def step(self) -> None:
        """One piece of work, of both kinds in turns."""
        self._judged = bool(self._judges) and not (self._judged and self._embeddings)
        if not self._judged:
            self._embeddings.step()
            return
        pieces = self._pieces(list(self._judges), CHUNK_TOKENS, EASY_TOKENS)
        if not pieces:
            return
        try:
            logits = self._backend.read([read for piece in pieces for read in piece.reads])
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            if len(pieces) == 1:
                self._fail(pieces[0].side, error)
            else:
                self.get_off(pieces)
            return
        self.give(pieces, logits)

    def embeddings_step(self) -> None:
        """One piece of embedding, if there is any."""
        if self._embeddings:
            self._embeddings.step()

    def riders(self, others: int) -> list[Piece]:
        """What may be read beside `others` tokens in the next pass; then `give` or `get_off` is to be called.

        Empty where that would change scores, or nobody waits.
        """
        if not self._backend.joins:
            return []
        most = max(LEAST_RIDING, EASY_TOKENS - others)
        riding = [side for side in self._judges if side.rides]
        return self._pieces(riding, MOST_RIDING if len(self._judges) >= BEHIND else most)

    def give(self, pieces: Sequence[Piece], logits: torch.Tensor) -> None:
        """What came of pieces: a row for each token that their reads kept. Their jobs go to the end of the queue."""
        at = 0
        for piece in pieces:
            own, at = logits[at : at + piece.keep], at + piece.keep
            self._give(piece, own)

    def get_off(self, pieces: Sequence[Piece]) -> None:
        """The pass failed, whoever's doing that was: the jobs begin anew, in passes of their own."""
        for piece in pieces:
            side = piece.side
            side.steps.close()
            side.steps, side.wish, side.rides = self._steps(side.message), None, False

    def _pieces(self, sides: Sequence[SideJob], most: int, more: int = 0) -> list[Piece]:
        """The next tokens of some of `sides` for one pass, `most` of them, and `more` if these end the first one's.

        They are of one job where a pass over several would change scores, or has failed.
        """
        pieces: list[Piece] = []
        for side in sides:
            alone = not (self._backend.joins and side.rides)
            if not most or (alone and pieces):
                break
            piece = self._piece(side, most, 0 if pieces else more)
            if piece is not None:
                pieces.append(piece)
                most = 0 if alone else max(0, most - piece.tokens)
        return pieces

    def _piece(self, side: SideJob, most: int, more: int) -> Piece | None:
        """The next tokens of a job; None: it has no room, or is over, and others come first."""
        if side.wish is None and not self._ask(side):
            return None
        wish = side.wish or ()
        if not wish:
            side.wish = None
            self._judges.remove(side)
            self._judges.append(side)
            return None
        unread = sum(one.unread for one in wish)
        most = unread if unread <= most + more else most
        readings: list[Reading] = []
        reads: list[Read] = []
        for one in wish:
            if most:
                readings.append(one)
                reads.append(one.next_read(most))
                most -= len(reads[-1].token_ids)
        return Piece(side, tuple(readings), tuple(reads))

    def _give(self, piece: Piece, logits: torch.Tensor) -> None:
        side, at = piece.side, 0
        try:
            for reading, read in zip(piece.readings, piece.reads, strict=True):
                reading.give(logits[at : at + read.keep])
                at += read.keep
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            self._fail(side, error)
            return
        if self._ask(side):
            self._judges.remove(side)
            self._judges.append(side)

    def _ask(self, side: SideJob) -> bool:
        """Let a job say what it wants next; False: it is over, and away."""
        try:
            side.wish = next(side.steps)
        except StopIteration:
            self._judges.remove(side)
        except Exception as error:  # noqa: BLE001 - one job's failure is nobody else's
            self._fail(side, error)
        else:
            return True
        return False

    def _fail(self, side: SideJob, error: Exception) -> None:
        self._judges.remove(side)
        side.steps.close()
        self._send(failed(side.message.job, error))

    def _steps(self, message: Judge | Retrace) -> Wishes[None]:
        return self._judging(message) if isinstance(message, Judge) else self._retracing(message)

    def _judging(self, message: Judge) -> Wishes[None]:
        """One sequence at a time, so that a score never depends on what else is being judged."""
        backend = self._backend
        results: list[tuple[float, int, float]] = []
        for conversation, answer in message.items:
            limit = min(message.most_tokens, backend.context_tokens - 1)
            tokens = backend.tokens(answer[: limit * backend.longest_token_chars])[:limit]
            try:
                prompt = backend.chat_tokens(conversation)
            except TemplateError as error:
                self._send(Refused(job=message.job, kind="invalid", message=str(error), param="messages"))
                return
            logprobs: list[float] = []
            if tokens:
                yield from read_all([self._judged_reading(prompt, tokens, logprobs)])
            found = likelihood(logprobs)
            results.append((found.mean_logprob, found.tokens, found.head_logprob))
        self._send(Judged(job=message.job, rows=tuple(results)))

    def _judged_reading(self, prompt: list[int], tokens: list[int], logprobs: list[float]) -> Reading:
        """Of what fits the context; adds the tokens' log-probabilities to `logprobs`."""
        backend = self._backend

        def take(start: int, logits: torch.Tensor) -> None:
            logprobs.extend(backend.log_probabilities(logits, tokens[start : start + len(logits)]))

        return Reading(backend, prompt[-(backend.context_tokens - len(tokens)) :], tokens, take)

    def _retracing(self, message: Retrace) -> Wishes[None]:
        try:
            steps = Retracing(self._backend, message.claim, message.card, message.beside, self._written).steps()
        except (PromptError, GuideError) as error:
            self._send(Refused(job=message.job, kind="invalid", message=str(error), param=error.param))
            return
        trace = yield from steps
        self._send(Retraced(job=message.job, trace=trace))
