"""A validator's voice: what it says over its own signature, and when it must not.

It signs nothing before it is sure of what it said before (`nsllm.consensus.recollection`), and nothing at a height of
which its memory is gone. What it signs was synced before, is remembered by the guard, logged, and then sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from nsllm.consensus.core import State
from nsllm.consensus.effects import SignProposal, SignVote
from nsllm.consensus.errors import GuardError
from nsllm.consensus.events import ConsensusEvent, SigningRefused
from nsllm.consensus.evidence import Evidence
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.inputs import Input, encode_input
from nsllm.consensus.message import Body, Recalled, Request, encode_message
from nsllm.consensus.ports import Mesh
from nsllm.consensus.recollection import Recollection
from nsllm.consensus.signing import sign
from nsllm.consensus.wal import WriteAheadLog
from nsllm.ids import Address, Digest, Height, TimeMs

LOGGER = logging.getLogger(__name__)

Wanted = SignProposal | SignVote


class Voice:
    """Speaks for one validator, from one start to the next.

    Args:
        guard: holds the validator's key.
        mesh: takes messages for other validators.
        wal: this height's log.
        started_ms: by the validator's clock.
        observer: told why it does not sign.
        checkpoint: fault-injection point, called with `vote_written` and `vote_sent` as those moments pass.
    """

    def __init__(
        self,
        *,
        guard: SignerGuard,
        mesh: Mesh,
        wal: WriteAheadLog,
        started_ms: TimeMs,
        observer: Callable[[ConsensusEvent], None],
        checkpoint: Callable[[str], None],
    ) -> None:
        self._guard = guard
        self._mesh = mesh
        self._wal = wal
        self._observer = observer
        self._checkpoint = checkpoint
        self._recollection = Recollection(started_ms)
        self._sure = False
        self._unsaid: list[Wanted] = []
        self._known: frozenset[Digest] = frozenset()
        self.abstaining = False
        """What was signed at this height is no longer known."""

    def say(self, to: Iterable[Address], body: Body | Evidence | Recalled) -> None:
        """Send a message as it is."""
        message = encode_message(body)
        for validator in to:
            self._mesh.send(validator, message)

    def begin(self, state: State, known: frozenset[Digest]) -> None:
        """A height begins, or goes on after a restart.

        Signed at this height, and not among what is `known` of it: the lock may be lost, so no vote of ours is safe.
        """
        self._known, self._unsaid = known, []
        self._abstain_if(self._guard.has_signed_beyond(state.height, known), state)

    def is_sure(self, state: State, decided: Height) -> bool:
        """Whether enough of the others have told what they heard of us, and we stand where they do.

        Args:
            state: of the height being decided.
            decided: the highest height that others are known to have decided.
        """
        if not self._sure:
            reached = self._recollection.height(state.validators)
            self._sure = reached is not None and max(reached, decided + 1) <= state.height
        return self._sure

    def ask(self, state: State, others: Sequence[Address]) -> None:
        """Ask those that have not told yet."""
        asking = Request(height=state.height, round=state.round, asked_ms=self._recollection.asked_ms)
        self.say(self._recollection.lacking(others), asking)

    def hear(self, sender: Address, answer: Recalled, state: State) -> None:
        """Take in what a validator heard of us.

        Raises:
            SignatureError: it tells what we did not sign.
            OwnFault: the guard's file cannot be written.
        """
        news = [said for said in (answer.vote, answer.proposal) if said is not None and self._guard.learn(said)]
        self._recollection.told(sender, answer)
        if news:
            self._abstain_if(self._guard.has_signed_beyond(state.height, self._known), state)

    def unsaid(self) -> list[Wanted]:
        """What was wanted signed at this height while we were not sure, in order; it is forgotten here."""
        unsaid, self._unsaid = self._unsaid, []
        return unsaid

    def sign(self, wanted: Wanted, state: State, others: Sequence[Address], decided: Height) -> Input | None:
        """Sign through the guard, write, send; what it is to our own core. None if we may not sign this, or not yet.

        Raises:
            OwnFault: log or guard cannot be written; nothing was sent.
        """
        if self.abstaining:
            return None
        if not self.is_sure(state, decided):
            self._unsaid.append(wanted)
            return None
        self._wal.sync()
        try:
            body, event = sign(self._guard, wanted, epoch=state.validators.epoch, height=state.height)
        except GuardError as error:
            LOGGER.error("event=guard_refused height=%d round=%d", state.height, wanted.round)
            self._observer(SigningRefused(state.height, wanted.round, str(error)))
            return None
        self._wal.append(encode_input(event))
        self._checkpoint("vote_written")
        self.say(others, body)
        self._checkpoint("vote_sent")
        return event

    def _abstain_if(self, unknown: bool, state: State) -> None:
        self.abstaining = unknown
        if not unknown:
            return
        reason = "the write-ahead log does not hold what the guard says was signed; following without a vote"
        LOGGER.error("event=abstaining height=%d reason=%s", state.height, reason)
        self._observer(SigningRefused(state.height, state.round, reason))
