"""A four-member network and certified records made with real keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nsllm import canonical, merkle
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.certified import CertifiedRecord, Inclusion
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.consensus.registry import Member
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.ids import Digest, NetworkId
from nsllm.record import Message, Record, Request, Sampling, sign_record

NETWORK = NetworkId(b"\x07" * 32)


@dataclass(frozen=True)
class Net:
    keys: tuple[MemberKey, ...]
    validators: ValidatorSet
    members: tuple[Member, ...]


@pytest.fixture(scope="session")
def net() -> Net:
    keys = tuple(sorted((MemberKey(bytes([i + 1]) * 32) for i in range(4)), key=lambda key: key.address))
    members = tuple(
        Member(address=key.address, peer_id=f"peer{i}", roles=("contributor", "data", "validator"))
        for i, key in enumerate(keys)
    )
    return Net(keys, ValidatorSet(epoch=0, members=tuple(key.address for key in keys)), members)


@pytest.fixture(scope="session")
def certify(net: Net) -> Callable[..., CertifiedRecord]:
    def make(
        question: str = "why?",
        answer: str = "because",
        *,
        embedding: bytes = b"\x7f" + bytes(383),
        visibility: str = "public",
        ppm: int = 900_000,
        height: int = 1,
        signers: int = 3,
        sampling: Sampling | None = None,
        record: Record | None = None,
    ) -> CertifiedRecord:
        request = Request(
            model="tiny",
            model_digest=Digest(bytes(32)),
            messages=(Message(role="user", content=question),),
            sampling=sampling or Sampling(),
        )
        record = record or Record(
            network=NETWORK,
            request=request,
            generator=net.keys[0].address,
            visibility=visibility,
            sampling=Sampling(temperature_micro=0),
            prompt_token_ids=(1,),
            token_ids=(2, 3),
            text=answer,
            finish_reason="stop",
            embedding=embedding,
            salt=bytes(32) if visibility == "group" else b"",
            created_ms=1_000,
        )
        leaf = ScoreLeaf(
            record=record.digest(),
            generator=record.generator,
            request_key=record.key(),
            rubric=Digest(bytes(32)),
            scores=(DimensionScore(name="coherence", ppm=ppm),),
            quartiles=(Quartiles(lower_ppm=ppm, upper_ppm=ppm),),
            observers=net.validators.members,
        )
        hashed = merkle.leaf_hash(canonical.encode(leaf))
        header = Header(
            epoch=0,
            height=height,
            time_ms=2_000,
            parent=Digest(NETWORK),
            proposer=net.keys[0].address,
            body_digest=Digest(bytes(32)),
            scores_root=merkle.root([hashed]),
            log_size=1,
            log_root=hashed,
            state_root=Digest(bytes(32)),
            validators_hash=net.validators.digest(),
            policy_digest=Digest(bytes(32)),
            registry_hash=Digest(bytes(32)),
        )
        digest = precommit_digest(NETWORK, 0, height, 0, header.id())
        votes = tuple(Precommit(validator=key.address, signature=key.sign(digest)) for key in net.keys[:signers])
        return CertifiedRecord(
            signed=sign_record(net.keys[0], record),
            leaf=leaf,
            inclusion=Inclusion(index=0, size=1, path=()),
            certificate=Certificate(header=header, round=0, precommits=votes),
        )

    return make
