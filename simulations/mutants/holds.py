"""How a directed scenario says that a rule does not hold."""

from __future__ import annotations

from collections.abc import Callable

from nsllm.errors import NsllmError
from nsllm.simulations.errors import InvariantError


def holds(condition: object, what: str) -> None:
    """Pass silently if `condition` is true.

    Raises:
        InvariantError: says what should have been.
    """
    if not condition:
        raise InvariantError(what)


def refused(error: type[NsllmError], action: Callable[[], object], what: str) -> None:
    """Pass silently if `action` raises `error`.

    Raises:
        InvariantError: it did not; says what should have been refused.
    """
    try:
        action()
    except error:
        return
    raise InvariantError(what)
