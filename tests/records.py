"""A record of one short answer, for tests that care about a field or two of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nsllm.crypto import MemberKey
from nsllm.ids import ZERO_DIGEST, NetworkId, TimeMs
from nsllm.record import Message, Record, Request, Sampling

NETWORK = NetworkId(bytes(32))


def small_record(
    key: MemberKey,
    asked: str | Sequence[Message] = "hi",
    *,
    network: NetworkId = NETWORK,
    **changes: object,
) -> Record:
    """A public record by `key`; `asked` is the question or the conversation, `changes` are of the record."""
    messages = (Message(role="user", content=asked),) if isinstance(asked, str) else tuple(asked)
    made = Record(
        network=network,
        request=Request(model="m", model_digest=ZERO_DIGEST, messages=messages, sampling=Sampling()),
        generator=key.address,
        visibility="public",
        sampling=Sampling(),
        prompt_token_ids=(1,),
        token_ids=(2,),
        text="An answer.",
        finish_reason="stop",
        embedding=bytes(384),
        created_ms=TimeMs(1),
    )
    return msgspec.structs.replace(made, **changes)
