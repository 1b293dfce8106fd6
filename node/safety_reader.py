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
    """Judges an answer stretch by stretch; `run` it beside the generation."""

    def __init__(
        self, validator: Validator, messages: tuple[Message, ...], policy: Policy, *, embed: bool = True
    ) -> None:
        self._validator = validator
        self._messages = messages
        self._policy = policy
        self._embed = embed
        self._unread: list[str] = []
        self._unread_chars = 0
        self._came = trio.Event()
        self.withheld: str | None = None
        """Reason of the first stretch that failed."""

    def read(self, text: str) -> None:
        """Take the next text; never waits."""
        self._unread.append(text)
        self._unread_chars += len(text)
        if self._unread_chars >= CHECK_CHARS:
            self._came.set()

    async def run(self) -> None:
        """Judge until cancelled or until a stretch fails.

        Raises:
            SafetyUnavailableError, EngineError: the layers cannot answer; then nothing more may pass.
        """
        seen = ""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            seen = (seen + "".join(self._unread))[-max(CONTEXT_CHARS, self._unread_chars) :]
            self._unread.clear()
            self._unread_chars = 0
            check = await self._validator.check_output(
                self._messages, seen, self._policy, publishing=False, embed=self._embed
            )
            if check.decision.withheld:
                self.withheld = check.decision.reason
                return
