"""Certified records by the hundred: signed by the validators of a genesis whose keys are here, without agreement.

What comes out is genuine: each record has a header of its own with a quorum's signatures, and verifies as any other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import numpy as np

from nsllm import canonical, merkle
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.certified import CertifiedRecord, Inclusion
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.embedding import quantize_embedding
from nsllm.governance.genesis import Genesis
from nsllm.ids import ZERO_DIGEST, Digest, Epoch, Height, Ppm, Round, TimeMs
from nsllm.record import EMBEDDING_DIMENSIONS, Message, Record, Request, Sampling, sign_record
from nsllm.simulations.standin import NAME, stand_in_digest

ANSWER: Final = "An answer of a few dozen words, such as a small model gives. " * 4
SCORE: Final = Ppm(900_000)
NOISE: Final = 0.005
"""Of each dimension: the embedding of a like question has a cosine of about 0.995."""


def question(number: int) -> str:
    """A question that nobody else asks."""
    return f"What should a traveller know about the bridges of harbour number {number}?"


def like_question(number: int) -> str:
    """The same in other words."""
    return f"What should travellers know about the bridges of harbour number {number}?"


def request(text: str) -> Request:
    """What is asked of the stand-in."""
    return Request(
        model=NAME,
        model_digest=stand_in_digest("text"),
        messages=(Message(role="user", content=text),),
        sampling=Sampling(),
    )


def embedding(number: int) -> bytes:
    """Of a question, quantized: as far from the others as chance makes it."""
    return quantize_embedding(_unit(_vector(number)))


def like_embedding(number: int) -> tuple[float, ...]:
    """Of a like question: a unit vector, as an encoder gives it."""
    noise = np.random.default_rng((number, 1)).normal(size=EMBEDDING_DIMENSIONS) * NOISE
    return _unit(_vector(number) + noise)


class Certifier:
    """Makes records of one network."""

    def __init__(self, genesis: Genesis, keys: Sequence[MemberKey]) -> None:
        """Made of the genesis and the keys of its validators."""
        self._network = genesis.network_id()
        self._policy = genesis.policy
        self._validators = ValidatorSet(epoch=Epoch(0), members=tuple(sorted(key.address for key in keys)))
        self._keys = sorted(keys, key=lambda key: key.address)
        self._created_ms = genesis.created_ms

    def record(self, number: int) -> CertifiedRecord:
        """The answer to `question(number)`, with as many signatures as make a quorum."""
        generator = self._keys[number % len(self._keys)]
        record = Record(
            network=self._network,
            request=request(question(number)),
            generator=generator.address,
            visibility="public",
            sampling=Sampling(temperature_micro=200_000, top_p_micro=900_000, seed=1, max_tokens=64),
            prompt_token_ids=tuple(range(100, 120)),
            token_ids=tuple(range(1000, 1064)),
            text=ANSWER,
            finish_reason="stop",
            embedding=embedding(number),
            created_ms=self._created_ms,
        )
        names = sorted(self._policy.rubric.dimensions)
        leaf = ScoreLeaf(
            record=record.digest(),
            generator=record.generator,
            request_key=record.key(),
            rubric=self._policy.rubric.digest(),
            scores=tuple(DimensionScore(name=name, ppm=SCORE) for name in names),
            quartiles=(Quartiles(lower_ppm=SCORE, upper_ppm=SCORE),) * len(names),
            observers=self._validators.members,
        )
        hashed = merkle.leaf_hash(canonical.encode(leaf))
        header = Header(
            epoch=Epoch(0),
            height=Height(number + 1),
            time_ms=TimeMs(self._created_ms + number + 1),
            parent=Digest(self._network),
            proposer=generator.address,
            body_digest=ZERO_DIGEST,
            scores_root=merkle.root([hashed]),
            log_size=number + 1,
            log_root=hashed,
            state_root=ZERO_DIGEST,
            validators_hash=self._validators.digest(),
            policy_digest=self._policy.digest(),
            registry_hash=ZERO_DIGEST,
        )
        digest = precommit_digest(self._network, header.epoch, header.height, Round(0), header.id())
        signers = random.Random(number).sample(self._keys, self._validators.quorum)
        precommits = tuple(
            Precommit(validator=key.address, signature=key.sign(digest))
            for key in sorted(signers, key=lambda key: key.address)
        )
        return CertifiedRecord(
            signed=sign_record(generator, record),
            leaf=leaf,
            inclusion=Inclusion(index=0, size=1, path=()),
            certificate=Certificate(header=header, round=Round(0), precommits=precommits),
        )


def _vector(number: int) -> np.ndarray:
    return np.array(_unit(np.random.default_rng((number, 0)).normal(size=EMBEDDING_DIMENSIONS)))


def _unit(vector: np.ndarray) -> tuple[float, ...]:
    return tuple((vector / np.linalg.norm(vector)).tolist())
