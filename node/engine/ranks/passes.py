"""What the leading rank tells the others: each pass of the model, in order. Length-prefixed MessagePack, one way.

Everything that a rank needs for its share of a pass stands in it, so that all ranks go through the same passes over the
same tokens; what comes out of them only the leader reads.
"""

from __future__ import annotations

import msgspec

from nsllm.node.engine.protocol import FrameReader


class Part(msgspec.Struct, frozen=True, array_like=True):
    """The next tokens of one sequence, see `nsllm.node.engine.backend.Read`."""

    sequence: int
    """Its number; a new one begins a sequence."""
    token_ids: tuple[int, ...]
    keep: int


class Pass(msgspec.Struct, frozen=True, array_like=True):
    """One pass of the model."""

    closed: tuple[int, ...]
    """Sequences that ended since the last one."""
    parts: tuple[Part, ...]


def pass_reader() -> FrameReader[Pass]:
    """For a follower's end."""
    return FrameReader(msgspec.msgpack.Decoder(Pass))
