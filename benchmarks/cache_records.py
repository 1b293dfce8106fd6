"""Records by the thousand, as a network of four would have certified them, and one of its peers' caches around a store.

The four validators' keys are here, so that no network has to run: each block's header is signed by three of them and
certifies a few records. All of it verifies, and is verified whenever a peer would.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from nsllm import canonical, merkle
from nsllm.cache_dht.observation_store import ObservationStore
from nsllm.cache_dht.store import RecordStore
from nsllm.clock import SystemClock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.certified import CertifiedRecord, Inclusion
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.observation import DimensionScore, Quartiles, ScoreLeaf
from nsllm.governance.defaults import default_policy
from nsllm.ids import ZERO_DIGEST, Address, Digest, Height, PeerId, Round, TimeMs
from nsllm.node.config import CacheConfig
from nsllm.node.context import PeerContext, Standing
from nsllm.node.events import EventBus
from nsllm.node.federated_cache import FederatedCache, Shelves
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.node.near_answers import NearAnswers
from nsllm.offload import ThreadOffload
from nsllm.p2p.network import Network
from nsllm.record import Message, Record, Request, Sampling, sign_record

MEMBERS: Final = 4
SIGNERS: Final = 3
BLOCK: Final = 8
"""Records that one header certifies."""
SCORE_PPM: Final = 900_000
ANSWER_WORDS: Final = 90
"""Of an answer: some 120 tokens."""
WORDS: Final = ("tide", "moon", "water", "coast", "rises", "falls", "because", "gravity", "pulls", "twice", "day")


@dataclass(frozen=True)
class Founding:
    """The standing of a network in its first epoch."""

    registry: Any
    validators: Any
    policy: Any

    def validators_of(self, epoch: int) -> Any:
        """Of the first epoch only."""
        return self.validators if epoch == 0 else None

    def policy_of(self, epoch: int) -> Any:
        """The same."""
        return self.policy if epoch == 0 else None


class Alone:
    """A network with nobody in it, and nobody's shelves."""

    peer_id = PeerId("alone")

    def peer_of(self, _member: Address) -> None:
        """Nobody."""

    def connected(self) -> tuple[PeerId, ...]:
        """Nobody."""
        return ()


class Maker:
    """Makes records and certifies them."""

    def __init__(self) -> None:
        rng = random.Random(5)
        identities = [new_identity(rng.randbytes) for _ in range(MEMBERS)]
        policy = default_policy(Digest(b"\1" * 32), Digest(b"\2" * 32))
        genesis = found("bench", [founder(one) for one in identities], policy, TimeMs(1_000), local=True)
        registry, clock = genesis.registry(), SystemClock()
        self.context = PeerContext(
            genesis=genesis,
            network_id=genesis.network_id(),
            standing=cast("Standing", Founding(registry, registry.validators(), policy)),
            key=identities[0].member,
            clock=clock,
            offload=ThreadOffload(),
            rng=random.Random(3),
            events=EventBus(clock),
        )
        self._keys = {one.address: one.member for one in identities}
        self._generator = identities[1].member
        self._height = 0

    def request(self, text: str) -> Request:
        """A plain question."""
        message = Message(role="user", content=text)
        return Request(model="bench", model_digest=ZERO_DIGEST, messages=(message,), sampling=Sampling())

    def records(self, questions: Iterable[tuple[str, bytes]]) -> Iterator[CertifiedRecord]:
        """A certified record of each (question, embedding)."""
        waiting: list[tuple[str, bytes]] = []
        for question in questions:
            waiting.append(question)
            if len(waiting) == BLOCK:
                yield from self._block(waiting)
                waiting = []
        if waiting:
            yield from self._block(waiting)

    def record(self, text: str, embedding: bytes) -> tuple[CertifiedRecord, Digest]:
        """A record of one question, alone in its block, and its request key."""
        (certified,) = self._block([(text, embedding)])
        return certified, certified.leaf.request_key

    def cache(self, store: RecordStore) -> FederatedCache:
        """The first member's cache around a store; there is nobody else to ask."""
        network, shelves = cast("Network", Alone()), cast("Shelves", Alone())
        return FederatedCache(context=self.context, store=store, network=network, shelves=shelves)

    def near(self) -> NearAnswers:
        """The first member's choice among like questions, as shipped; it has learned nothing yet."""
        observations = ObservationStore.open(None)
        return NearAnswers(
            context=self.context, engine=cast("Any", None), observations=observations, settings=CacheConfig()
        )

    def _block(self, questions: Sequence[tuple[str, bytes]]) -> list[CertifiedRecord]:
        signed = [sign_record(self._generator, self._record(*question)) for question in questions]
        rubric = self.context.policy.rubric
        leaves = [
            ScoreLeaf(
                record=one.record.digest(),
                generator=one.record.generator,
                request_key=one.record.key(),
                rubric=rubric.digest(),
                scores=tuple(DimensionScore(name=name, ppm=SCORE_PPM) for name in rubric.dimensions),
                quartiles=tuple(Quartiles(lower_ppm=SCORE_PPM, upper_ppm=SCORE_PPM) for _ in rubric.dimensions),
                observers=self.context.validators.members,
            )
            for one in signed
        ]
        hashes = [merkle.leaf_hash(canonical.encode(leaf)) for leaf in leaves]
        certificate = self._certificate(merkle.root(hashes))
        return [
            CertifiedRecord(
                signed=one,
                leaf=leaf,
                inclusion=Inclusion(index=index, size=len(leaves), path=merkle.inclusion_path(hashes, index)),
                certificate=certificate,
            )
            for index, (one, leaf) in enumerate(zip(signed, leaves, strict=True))
        ]

    def _certificate(self, scores_root: Digest) -> Certificate:
        network, validators = self.context.network_id, self.context.validators
        self._height += 1
        header = Header(
            epoch=0,
            height=Height(self._height),
            time_ms=self.context.clock.now_ms(),
            parent=Digest(network),
            proposer=validators.members[0],
            body_digest=ZERO_DIGEST,
            scores_root=scores_root,
            log_size=1,
            log_root=scores_root,
            state_root=ZERO_DIGEST,
            validators_hash=validators.digest(),
            policy_digest=ZERO_DIGEST,
            registry_hash=ZERO_DIGEST,
        )
        digest = precommit_digest(network, 0, self._height, Round(0), header.id())
        votes = [Precommit(validator=who, signature=self._keys[who].sign(digest)) for who in validators.members]
        return Certificate(header=header, round=0, precommits=tuple(votes[:SIGNERS]))

    def _record(self, text: str, embedding: bytes) -> Record:
        rng = random.Random(text)
        tokens = tuple(rng.randrange(49_152) for _ in range(ANSWER_WORDS * 4 // 3))
        return Record(
            network=self.context.network_id,
            request=self.request(text),
            generator=self._generator.address,
            visibility="public",
            sampling=Sampling(temperature_micro=200_000, top_p_micro=900_000, seed=1),
            prompt_token_ids=tokens[:32],
            token_ids=tokens,
            text=" ".join(rng.choice(WORDS) for _ in range(ANSWER_WORDS)),
            finish_reason="stop",
            embedding=embedding,
            created_ms=self.context.clock.now_ms(),
        )
