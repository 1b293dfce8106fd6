"""Writes what this peer did into its own signed log, rejections included, and hands out checkpoints of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from nsllm.errors import NsllmError
from nsllm.governance.ledger import Ledger
from nsllm.governance.peer_log import Happening, PeerLog
from nsllm.node.views import PeerEvent

log = logging.getLogger(__name__)

LOGGED: Final = frozenset(
    {
        "abstained",
        "admission_refused",
        "answered",
        "certified",
        "consensus_halted",
        "consensus_resumed",
        "joined",
        "member_admitted",
        "publish_failed",
        "push_refused",
        "record_expired",
        "record_held",
        "record_refused",
        "record_rejected",
        "record_removed",
        "removal_contradicted",
        "rubric_changed",
        "scored",
        "scores_found",
        "submission_refused",
        "unpublished",
        "withheld",
    }
)
"""Kinds of events that are audit events; asked by membership only."""
BACKLOG: Final = 4096
CHECKPOINT_S: Final = 60.0
LAST_WORDS_S: Final = 1.0
"""How long a peer that stops goes on writing down what it did."""
MAX_VALUE_CHARS: Final = 120
GATHER_S: Final = 0.25
"""What happens so soon after something that was written down is written down together: each write is synced."""


class Auditor:
    """A tap for the event bus with a task that appends to the peer log."""

    def __init__(self, peer_log: PeerLog, ledger: Ledger) -> None:
        self._peer_log = peer_log
        self._ledger = ledger
        self._send, self._queue = trio.open_memory_channel[PeerEvent](BACKLOG)

    def hear(self, event: PeerEvent) -> None:
        """Take an event; never waits."""
        if event.kind not in LOGGED:
            return
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            log.error("audit_backlog_full kind=%s limit=%d", event.kind, BACKLOG)

    async def run(self) -> None:
        """Append until cancelled, and then what is still queued."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._append_all)
                nursery.start_soon(self._hand_out_checkpoints)
        finally:
            with trio.move_on_after(LAST_WORDS_S) as scope:
                scope.shield = True
                await self._append_rest()

    async def _append_all(self) -> None:
        while True:
            await self._append([await self._queue.receive()])
            await trio.sleep(GATHER_S)
            await self._append_rest()

    async def _append_rest(self) -> None:
        """What is queued, in one write."""
        events: list[PeerEvent] = []
        with suppress(trio.WouldBlock):
            while True:
                events.append(self._queue.receive_nowait())
        if events:
            await self._append(events)

    async def _append(self, events: Sequence[PeerEvent]) -> None:
        try:
            with trio.CancelScope(shield=True):  # they are in no queue any more
                await self._peer_log.append_all([_happening(event) for event in events])
        except NsllmError as error:
            if len(events) == 1:
                log.error("audit_failed kind=%s error=%s", events[0].kind, error)
            else:  # one that cannot be logged costs no other
                for event in events:
                    await self._append([event])

    async def _hand_out_checkpoints(self) -> None:
        """Into our own ledger's pool: it rides with the next block of records that we propose."""
        size = 0
        while True:
            await trio.sleep(CHECKPOINT_S)
            if self._peer_log.size > size:
                size = self._peer_log.size
                self._ledger.add_checkpoint(self._peer_log.checkpoint())


def _happening(event: PeerEvent) -> Happening:
    fields = {name: _plain(value) for name, value in event.fields.items() if value is not None}
    private = fields.pop("visibility", "") == "private"
    return Happening(event.kind, fields, private)


def _plain(value: str | int | bool) -> int | str:
    return int(value) if isinstance(value, bool | int) else value[:MAX_VALUE_CHARS]
