"""The guard around stream handlers: an exception costs the stream, never the host; streams are counted per peer.

In libp2p 0.8.1 an exception that leaves a stream handler ends the whole host.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from nsllm.errors import NsllmError
from nsllm.ids import PeerId
from nsllm.p2p.network import Stream, StreamHandler

log = logging.getLogger(__name__)

CLEANUP_S = 2.0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds on inbound streams that are served at the same time."""

    per_peer: int = 128
    total: int = 1024


class StreamGuard:
    """Runs handlers; every stream is closed when its handler returns and reset when it raises."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._open: dict[PeerId, int] = {}

    def admits(self, peer: PeerId) -> bool:
        """Whether one more stream of `peer` may be served."""
        return self._open.get(peer, 0) < self._limits.per_peer and sum(self._open.values()) < self._limits.total

    async def serve(self, handler: StreamHandler, stream: Stream, label: str) -> None:
        """Run `handler` on `stream` within the limits; raises nothing but cancellation."""
        peer = stream.peer
        if not self.admits(peer):
            log.warning("stream_refused peer=%s protocol=%s reason=too_many_streams", peer, label)
            await stream.reset()
            return
        self._open[peer] = self._open.get(peer, 0) + 1
        done = False
        try:
            await handler(stream)
            done = True
        except Exception as error:
            # The one supervisor of all handlers: a bug in one of them must not take the peer down with it.
            cause = _only(error)
            if isinstance(cause, NsllmError | trio.TooSlowError):
                log.info("stream_failed peer=%s protocol=%s error=%s: %s", peer, label, type(cause).__name__, cause)
            else:
                log.exception("handler_failed peer=%s protocol=%s", peer, label)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
            with trio.move_on_after(CLEANUP_S) as scope:
                scope.shield = True
                await (stream.aclose() if done else stream.reset())


def _only(error: BaseException) -> BaseException:
    """The one exception that nurseries wrapped, or the group if there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
