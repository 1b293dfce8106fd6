"""A turn on the ledger's state: how the parts of a ledger do blocking work, one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from nsllm.governance.ledger_state import LedgerState

R = TypeVar("R")


class Run(Protocol):
    """Blocking work on the ledger's present state, in its turn."""

    def __call__(self, work: Callable[[LedgerState], R], /) -> Awaitable[R]:
        """The work's result."""
        ...
