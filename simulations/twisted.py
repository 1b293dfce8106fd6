"""Byzantine peers of a simulated network: honest ones whose messages to other validators are not what they seem."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from nsllm.consensus.message import decode_message, encode_message
from nsllm.consensus.vote import Vote
from nsllm.crypto import MemberKey
from nsllm.ids import Address
from nsllm.node.peer import Peer
from nsllm.p2p.protocols.mesh import MeshKind

EQUIVOCATES: Final = "equivocates"
HABITS: Final = (EQUIVOCATES, "is silent", "floods")
FLOOD: Final = 20
"""Times that a flooder says everything."""


def twist(peer: Peer, key: MemberKey, habit: str) -> None:
    """Give a validator, before it runs, one of `HABITS`.

    An equivocator votes nil to some validators, a value to others, and both to the rest. A silent one answers and
    follows, and sends no validator anything. A flooder says everything many times.
    """
    mesh = peer.parts._mesh  # noqa: SLF001 - the one place where a validator's words pass
    honest = mesh.send
    network = peer.parts.context.network_id
    order = {address: number for number, address in enumerate(peer.parts.context.validators.members)}

    def equivocate(to: Address, kind: MeshKind, payload: bytes) -> None:
        if kind == "consensus" and order[to] % 2:
            body = decode_message(payload)
            if isinstance(body, Vote) and body.value is not None:
                unsigned = replace(body, value=None, valid_round=None)
                honest(to, kind, encode_message(replace(unsigned, signature=key.sign(unsigned.digest(network)))))
                if order[to] % 4 == 1:
                    return
        honest(to, kind, payload)

    def keep_silent(_to: Address, _kind: MeshKind, _payload: bytes) -> None:
        return

    def flood(to: Address, kind: MeshKind, payload: bytes) -> None:
        for _ in range(FLOOD):
            honest(to, kind, payload)

    twisted = {EQUIVOCATES: equivocate, "is silent": keep_silent, "floods": flood}[habit]
    mesh.send = twisted  # type: ignore[assignment,method-assign]
