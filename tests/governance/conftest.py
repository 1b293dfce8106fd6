"""Networks of known keys whose validators certify headers and anchor them on an embedded chain in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.chain import EmbeddedChain
from nsllm.ids import ZERO_DIGEST, Digest, Epoch, Height, NetworkId, Round, TimeMs

GENESIS_MS = TimeMs(1_700_000_000_000)


@dataclass(frozen=True)
class AnchorNetwork:
    """Keys in ascending order of address, and what they sign."""

    network: NetworkId
    keys: tuple[MemberKey, ...]
    validators: ValidatorSet

    @classmethod
    def of(cls, size: int, name: str = "net") -> AnchorNetwork:
        keys = sorted((MemberKey(keccak256(f"{name} key {i}".encode())) for i in range(size)), key=lambda k: k.address)
        validators = ValidatorSet(epoch=Epoch(0), members=tuple(key.address for key in keys))
        return cls(NetworkId(keccak256(name.encode())), tuple(keys), validators)

    def header(self, height: int, log_size: int, *, validators: ValidatorSet | None = None, epoch: int = 0) -> Header:
        return Header(
            epoch=Epoch(epoch),
            height=Height(height),
            time_ms=TimeMs(GENESIS_MS + height),
            parent=keccak256(b"parent %d" % height),
            proposer=self.keys[0].address,
            body_digest=keccak256(b"body %d" % height),
            scores_root=keccak256(b"scores %d" % height),
            log_size=log_size,
            log_root=keccak256(b"log %d" % log_size),
            state_root=ZERO_DIGEST,
            validators_hash=(validators or self.validators).digest(),
            policy_digest=keccak256(b"policy"),
        )

    def certify(
        self,
        header: Header,
        *,
        round_: int = 0,
        signers: Sequence[MemberKey] | None = None,
        digest: Digest | None = None,
    ) -> Certificate:
        """By the first quorum of keys, over the right digest, unless told otherwise. Nothing is checked."""
        chosen = self.keys[: self.validators.quorum] if signers is None else signers
        signed = digest or precommit_digest(self.network, header.epoch, header.height, Round(round_), header.id())
        votes = tuple(Precommit(validator=key.address, signature=key.sign(signed)) for key in chosen)
        return Certificate(header=header, round=Round(round_), precommits=votes)

    def chain(self, connection: sqlite3.Connection | None = None) -> EmbeddedChain:
        """The network's chain, in memory unless a connection is given."""
        connection = connection or sqlite3.connect(":memory:", isolation_level=None)
        return EmbeddedChain.open(connection, self.network, self.validators, 7777, GENESIS_MS)


@pytest.fixture
def anchor_network() -> Callable[..., AnchorNetwork]:
    """Makes a network of so many validators: `anchor_network(4)`, `anchor_network(4, "another")`."""
    return AnchorNetwork.of
