"""Reads an answer along with its caller: the safety layers judge each stretch while the next one is generated."""

from __future__ import annotations

from typing import Final

import trio

from nsllm.governance.policy import Policy
from nsllm.governance.validator import Validator
from nsllm.record import Message

CHECK_CHARS: Final = 256
"""Stretch of answer that one check reads: about 60 tokens. Shorter answers are judged once, at their end."""
CONTEXT_CHARS: Final = 640
"""What a check sees: the stretch and what came right before it."""


class SafetyReader:
    """Judges an answer stretch by stretch, in tasks of `nursery`.

    A judgement that cannot be had ends the nursery with `SafetyUnavailableError` or `EngineError`: nothing more passes.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        validator: Validator,
        messages: tuple[Message, ...],
        policy: Policy,
        *,
        embed: bool = True,
    ) -> None:
        """Read an answer to `messages`; `embed`: for the layers that listen to its meaning."""
        self._nursery = nursery
        self._validator = validator
        self._messages = messages
        self._policy = policy
        self._embed = embed
        self._seen = ""
        self._unread: list[str] = []
        self._unread_chars = 0
        self._judging = False
        self.withheld: str | None = None
        """Reason of the first stretch that failed."""

    def read(self, text: str) -> None:
        """Take the next text; never waits."""
        self._unread.append(text)
        self._unread_chars += len(text)
        if self._unread_chars >= CHECK_CHARS and not self._judging:
            self._judging = True
            self._nursery.start_soon(self._judge)

    async def _judge(self) -> None:
        while self._unread_chars >= CHECK_CHARS:
            self._seen = (self._seen + "".join(self._unread))[-max(CONTEXT_CHARS, self._unread_chars) :]
            self._unread.clear()
            self._unread_chars = 0
            check = await self._validator.check_output(
                self._messages, self._seen, self._policy, publishing=False, embed=self._embed
            )
            if check.decision.withheld:
                self.withheld = check.decision.reason
                return
        self._judging = False
