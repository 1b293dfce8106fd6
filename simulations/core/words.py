"""Events of a schedule in words, for its trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nsllm.consensus.inputs import TimedOut
from nsllm.consensus.message import Body as Message
from nsllm.consensus.vote import Proposal, Vote


def in_words(action: Callable[[], None] | None, body: Message | None, sender: int) -> str:
    """What happens: a message of `sender` that arrives, or something that a validator does of itself."""
    if body is not None:
        return f"receive {sender} {_part(body)}"
    if isinstance(action, partial):
        return " ".join((action.func.__name__.strip("_"), *map(_part, action.args)))
    return getattr(action, "__name__", "").strip("_")


def _part(part: object) -> str:
    match part:
        case Vote(kind=kind, height=height, round=round_, value=value):
            return f"{kind} {height}/{round_} {'nil' if value is None else value.hex()[:8]}"
        case Proposal(height=height, round=round_, valid_round=valid_round):
            after = "" if valid_round is None else f" after {valid_round}"
            return f"proposal {height}/{round_} {part.value.hex()[:8]}{after}"
        case TimedOut(step=step, round=round_):
            return f"{step} timer of round {round_}"
        case int():
            return str(part)
        case _:
            return type(part).__name__
