"""Answers that a worker's scheduler writes, and what a peer says of them in its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nsllm.governance.ports import Claim
from nsllm.ids import Digest
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.protocol import Generate, Started, Step
from nsllm.node.engine.scheduler import Scheduler
from nsllm.record import Guide, Message, Request, Sampling

WARM = Sampling(temperature_micro=800_000, top_p_micro=950_000, top_k=0, min_p_micro=0, min_tokens=0)


def finish(scheduler: Scheduler) -> None:
    """Let it do all that it has to do."""
    while scheduler.busy:
        scheduler.step()
        scheduler.side()


def claims(
    scheduler: Scheduler,
    said: Sequence[Any],
    kinds: Iterable[Mapping[str, Any]],
    *,
    guide: Guide | None = None,
    max_tokens: int = 24,
    **asked: Any,
) -> list[Claim]:
    """Claims of answers that are written all at once, each with its own changes of `WARM`.

    Args:
        scheduler: writes them.
        said: what it sends; empty before.
        kinds: changes of the sampling, one each.
        guide: of all of them.
        max_tokens: of each, where its kind says nothing else.
        asked: more that is asked of the engine and stands in no record.
    """
    made: dict[int, Request] = {}
    for job, changes in enumerate(kinds):
        sampling = msgspec.structs.replace(WARM, **{"seed": 11 + job, "max_tokens": max_tokens, **changes})
        messages = (Message(role="user", content=f"question {job}"),)
        made[job] = Request(
            model="m", model_digest=Digest(bytes(32)), messages=messages, sampling=sampling, guide=guide
        )
        scheduler.handle(Generate(job, EngineRequest(messages, sampling, guide=guide, **asked), max_tokens_cap=99))
    finish(scheduler)
    prompts = {message.job: message.prompt_token_ids for message in said if isinstance(message, Started)}
    gains = [gain for message in said if isinstance(message, Step) for gain in message.gains]
    return [
        Claim(
            request=request,
            sampling=request.sampling,
            prompt_token_ids=prompts[job],
            token_ids=tuple(token for gain in gains if gain.job == job for token in gain.token_ids),
            text="".join(gain.text for gain in gains if gain.job == job),
            finish_reason=next(gain.reason for gain in gains if gain.job == job and gain.reason),
        )
        for job, request in made.items()
    ]
