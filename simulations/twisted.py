"""Byzantine peers of a simulated network: honest ones whose messages to other validators are not what they seem."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from nsllm.consensus.batch import sign_commit
from nsllm.consensus.message import decode_message, encode_message
from nsllm.consensus.observation_message import Commit, decode_observation, encode_observation
from nsllm.consensus.vote import Vote
from nsllm.crypto import MemberKey
from nsllm.ids import Address
from nsllm.node.peer import Peer
from nsllm.p2p.protocols.mesh import MeshKind

EQUIVOCATES: Final = "equivocates"
COMMITS_TWICE: Final = "commits twice"
HABITS: Final = (EQUIVOCATES, "is silent", "floods", COMMITS_TWICE)
CONVICTED: Final = frozenset({EQUIVOCATES, COMMITS_TWICE})
"""Habits that leave evidence; asked by membership only."""
FLOOD: Final = 20
"""Times that a flooder says everything."""


def twist(peer: Peer, key: MemberKey, habit: str) -> None:
    """Give a validator, before it runs, one of `HABITS`.

    An equivocator votes nil to some validators, a value to others, and both to the rest. A silent one answers and
    follows, and sends no validator anything. A flooder says everything many times. One that commits twice hides other
    rows from some validators than from others, under the same number.
    """
    mouth = _Mouth(peer, key)
    twisted = {
        EQUIVOCATES: mouth.equivocate,
        "is silent": mouth.keep_silent,
        "floods": mouth.flood,
        COMMITS_TWICE: mouth.commit_twice,
    }[habit]
    peer.parts._mesh.send = twisted  # type: ignore[assignment,method-assign]  # noqa: SLF001


class _Mouth:
    """The one place where a validator's words to others pass."""

    def __init__(self, peer: Peer, key: MemberKey) -> None:
        self._honest = peer.parts._mesh.send  # noqa: SLF001
        self._key = key
        self._network = peer.parts.context.network_id
        self._order = {address: number for number, address in enumerate(peer.parts.context.validators.members)}

    def equivocate(self, to: Address, kind: MeshKind, payload: bytes) -> None:
        """Votes."""
        if kind == "consensus" and self._order[to] % 2:
            body = decode_message(payload)
            if isinstance(body, Vote) and body.value is not None:
                unsigned = replace(body, value=None, valid_round=None)
                other = replace(unsigned, signature=self._key.sign(unsigned.digest(self._network)))
                self._honest(to, kind, encode_message(other))
                if self._order[to] % 4 == 1:
                    return
        self._honest(to, kind, payload)

    def commit_twice(self, to: Address, kind: MeshKind, payload: bytes) -> None:
        """Batches of observations."""
        if kind == "observation" and self._order[to] % 2:
            body = decode_observation(payload)
            if isinstance(body, Commit) and body.signed.commit.records:
                commit = body.signed.commit
                other = sign_commit(self._key, self._network, replace(commit, commitments=commit.commitments[::-1]))
                self._honest(to, kind, encode_observation(Commit(signed=other)))
                if self._order[to] % 4 == 1:
                    return
        self._honest(to, kind, payload)

    def keep_silent(self, _to: Address, _kind: MeshKind, _payload: bytes) -> None:
        """Nothing."""

    def flood(self, to: Address, kind: MeshKind, payload: bytes) -> None:
        """Everything, many times."""
        for _ in range(FLOOD):
            self._honest(to, kind, payload)
