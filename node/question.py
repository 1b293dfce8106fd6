"""A question on its way through the orchestrator: what was asked, in which circle, and the look-up beside it."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from nsllm.cache_dht.reuse import Weighed
from nsllm.ids import Digest, TimeMs
from nsllm.node.attachments.attend import Attended
from nsllm.node.chat import ChatCommand
from nsllm.node.scope import Scope
from nsllm.record import Request, SignedChunk, Visibility


@dataclass(frozen=True, slots=True)
class Question:
    """A request that was let in."""

    completion_id: str
    command: ChatCommand
    visibility: Visibility
    request: Request
    key: Digest
    attended: Attended
    scope: Scope
    embedding: tuple[float, ...] | None
    """Of the question; None for a private one that is judged by its wording alone."""
    created_ms: TimeMs
    evidence: tuple[SignedChunk, ...] = ()
    """Chunks that stand before the question."""

    @property
    def embeds(self) -> bool:
        """Whether its texts are embedded."""
        return self.embedding is not None


@dataclass(slots=True)
class LookUp:
    """A look-up that runs beside a generation, or the end of one."""

    weighed: Weighed | None
    """What the generated answer is compared with."""
    done: trio.Event | None = None
    late: bool = False
    """The answer has begun: what is found now is not served any more."""
