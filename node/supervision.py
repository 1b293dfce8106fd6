"""Keeps a peer's parts going through faults of its own machine: a full disk costs a pause, not the peer.

A part that ends with an `OwnFault` is run again after a pause; it takes up from disk what it had not finished. Any
other exception is a bug, or somebody who asked to stop: it goes through and ends the peer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from nsllm.errors import NsllmError, OwnFault
from nsllm.node.events import EventBus

log = logging.getLogger(__name__)

PAUSE_S: Final = 5.0
"""Space is freed by people, or by what rotates logs: seconds are soon enough."""


async def keep_going(name: str, part: Callable[[], Awaitable[None]], events: EventBus) -> None:
    """Run `part` until it returns or is cancelled, again and again through our own faults."""
    while True:
        try:
            await part()
        except (OwnFault, BaseExceptionGroup) as error:
            fault = own_fault(error)
            if fault is None:
                raise
        else:
            return
        log.error("part_failed part=%s code=%s error=%s", name, fault.code, fault)
        events.emit("part_failed", part=name, reason=fault.message)
        await trio.sleep(PAUSE_S)


def own_fault(error: BaseException) -> OwnFault | None:
    """The fault of ours that `error` is, or that nurseries wrapped; None if there is anything else in the group."""
    if isinstance(error, OwnFault):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [own_fault(inner) for inner in error.exceptions if not isinstance(inner, trio.Cancelled)]
    return None if not found or None in found else found[0]


def lone_failure(group: BaseExceptionGroup[BaseException]) -> NsllmError | None:
    """The one error of ours that a nursery wrapped, however deep; None if there is anything else in the group."""
    rest = group.split(lambda error: isinstance(error, NsllmError | trio.Cancelled))[1]
    if rest is not None:
        return None
    ours = group.subgroup(NsllmError)
    error: BaseException | None = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, NsllmError) else None
