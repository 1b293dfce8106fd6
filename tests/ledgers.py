"""Networks of known keys whose validators certify headers and anchor them on an embedded chain in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from nsllm.clock import TrioClock
from nsllm.consensus.batch import (
    MAX_BATCH_RECORDS,
    Abstention,
    BatchCommit,
    BatchReveal,
    Row,
    SignedCommit,
    pack_rows,
    row_commitment,
    salt_of,
    sign_commit,
)
from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.certificate import Certificate, Precommit
from nsllm.consensus.header import Header, precommit_digest
from nsllm.consensus.observation import DimensionScore, Subject, pack_subjects
from nsllm.consensus.registry import Member, Role
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.chain import EmbeddedChain
from nsllm.governance.genesis import Genesis, Placement
from nsllm.governance.ledger import Ledger, LedgerSummary
from nsllm.governance.log_entry import Checkpoint, SignedCheckpoint, sign_checkpoint
from nsllm.governance.policy import Policy, Rubric
from nsllm.ids import ZERO_DIGEST, Address, Digest, Epoch, Height, NetworkId, PeerId, Ppm, Round, TimeMs
from nsllm.offload import InlineOffload
from nsllm.record import Message, Record, Request, Sampling, SignedRecord, request_key, sign_record

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
            registry_hash=keccak256(b"registry"),
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


class LedgerNetwork:
    """Validators' keys, the genesis they share, and a ledger driven by hand: propose, precommit, commit."""

    def __init__(self, size: int, name: str = "ledgers", *, snapshot_heights: int = 500) -> None:
        keys = (MemberKey(keccak256(f"{name} key {i}".encode())) for i in range(size))
        self.keys = tuple(sorted(keys, key=lambda key: key.address))
        self.generator = MemberKey(keccak256(f"{name} generator".encode()))
        self.stranger = MemberKey(keccak256(f"{name} stranger".encode()))
        dimensions = ("coherence", "relevance")
        rubric = Rubric(scorer_model=keccak256(b"model"), encoder=keccak256(b"encoder"), dimensions=dimensions)
        policy = Policy(
            rubric=rubric,
            weights=tuple(DimensionScore(name=each, ppm=Ppm(500_000)) for each in dimensions),
            toxicity_max_ppm=Ppm(500_000),
            coherence_min_ppm=Ppm(100_000),
            reuse_min_ppm=Ppm(300_000),
        )
        members = [self.member(key, ("contributor", "data", "validator")) for key in self.keys]
        members.append(self.member(self.generator, ("contributor",)))
        self.genesis = Genesis(
            name="ledgers",
            created_ms=GENESIS_MS,
            members=tuple(sorted(members, key=lambda member: member.address)),
            policy=policy,
            placement=Placement(),
            snapshot_heights=snapshot_heights,
        )
        self.network = self.genesis.network_id()
        self.validators = self.genesis.registry().validators()
        self.clock = TrioClock(GENESIS_MS)
        self._numbers: dict[Address, int] = {}

    def member(self, key: MemberKey, roles: tuple[Role, ...]) -> Member:
        return Member(address=key.address, peer_id=PeerId("peer-" + key.address.hex()), roles=roles)

    async def open(
        self,
        path: Path | None = None,
        *,
        by: int = 0,
        recover: bool = False,
        keep_heights: int = 0,
        key: MemberKey | None = None,
    ) -> Ledger:
        return await Ledger.open(
            path,
            self.genesis,
            clock=self.clock,
            offload=InlineOffload(),
            key=key or self.keys[by],
            recover=recover,
            keep_heights=keep_heights,
        )

    def record(self, text: str, generator: MemberKey | None = None) -> SignedRecord:
        key = generator or self.generator
        question = Message(role="user", content=f"What is {text}?")
        request = Request(model="tiny", model_digest=keccak256(b"model"), messages=(question,), sampling=Sampling())
        record = Record(
            network=self.network,
            request=request,
            generator=key.address,
            visibility="public",
            sampling=Sampling(temperature_micro=200_000),
            prompt_token_ids=(1, 2),
            token_ids=(3, 4, 5),
            text=f"It is {text}.",
            finish_reason="stop",
            embedding=bytes(384),
            created_ms=GENESIS_MS,
        )
        return sign_record(key, record)

    def subject(self, signed: SignedRecord) -> Subject:
        record = signed.record
        return Subject(record.digest(), record.generator, request_key(self.network, record.request))

    def batch(
        self,
        key: MemberKey,
        *records: SignedRecord | Subject,
        abstain: Sequence[SignedRecord] = (),
        number: int | None = None,
        ppm: int | None = None,
        **changes: object,
    ) -> tuple[SignedCommit, BatchReveal]:
        """What `key` says of the records: 500,000 and a thousand more for each later key, unless `ppm` says otherwise.

        Numbers rise by themselves; `changes` are of the commit, before it is signed.
        """
        if number is None:
            number = self._numbers[key.address] = self._numbers.get(key.address, 0) + 1
        epoch = Epoch(changes.get("epoch", 0))
        value = 500_000 + 1_000 * ([*self.keys, key].index(key)) if ppm is None else ppm
        rubric = self.genesis.policy.rubric
        rubric_digest = Digest(changes.get("rubric", rubric.digest()))
        subjects = [each if isinstance(each, Subject) else self.subject(each) for each in records]
        subjects.sort(key=lambda subject: subject.record)
        rows = [
            Row(i, salt_of(b"secret", rubric_digest, s.record), (value,) * len(rubric.dimensions))
            for i, s in enumerate(subjects)
        ]
        fields: dict[str, object] = {
            "validator": key.address,
            "epoch": epoch,
            "number": number,
            "rubric": rubric_digest,
            "records": b"".join(s.record for s in subjects),
            "commitments": b"".join(
                row_commitment(self.network, key.address, epoch, rubric_digest, s, row)
                for s, row in zip(subjects, rows, strict=True)
            ),
            "abstentions": tuple(
                Abstention(record=digest, reason="no encoder")
                for digest in sorted(signed.record.digest() for signed in abstain)
            ),
        }
        signed = sign_commit(key, self.network, BatchCommit(**{**fields, **changes}))
        reveal = BatchReveal(
            validator=key.address,
            epoch=epoch,
            number=number,
            rows=pack_rows(rows),
            subjects=pack_subjects(subjects),
        )
        return signed, reveal

    def observe(self, ledger: Ledger, key: MemberKey, *records: SignedRecord) -> None:
        """One validator commits to the records and opens them."""
        signed, reveal = self.batch(key, *records)
        ledger.observations.add_commit(signed)
        ledger.observations.add_reveal(reveal)

    def observe_all(self, ledger: Ledger, *records: SignedRecord, keys: Sequence[MemberKey] | None = None) -> None:
        """The validators commit to the records, as many in a batch as go, and open them when all have."""
        for start in range(0, len(records), MAX_BATCH_RECORDS):
            some = records[start : start + MAX_BATCH_RECORDS]
            now = {"epoch": ledger.validators.epoch, "rubric": ledger.policy.rubric.digest()}
            batches = [self.batch(key, *some, **now) for key in keys or self.validating(ledger)]
            for signed, _ in batches:
                ledger.observations.add_commit(signed)
            for _, reveal in batches:
                ledger.observations.add_reveal(reveal)

    def validating(self, ledger: Ledger) -> list[MemberKey]:
        """Keys of the validators that decide the ledger's next height."""
        return [key for key in self.keys if key.address in ledger.validators]

    def checkpoint(self, key: MemberKey, size: int = 1) -> SignedCheckpoint:
        """Of a peer's own log."""
        state = Checkpoint(peer=key.address, size=size, root=keccak256(b"log"), time_ms=TimeMs(1))
        return sign_checkpoint(key, self.network, state)

    @staticmethod
    def shown(summary: LedgerSummary) -> tuple[object, ...]:
        """What ledgers of one network agree on."""
        s = summary
        return s.height, s.log_size, s.log_root, s.state_root, s.blocks, s.anchors

    def certify(self, block: Block, signers: Sequence[MemberKey] | None = None) -> DecidedBlock:
        """By all keys unless told otherwise; nothing is checked."""
        header = block.header
        digest = precommit_digest(self.network, header.epoch, header.height, Round(0), header.id())
        votes = tuple(
            Precommit(validator=key.address, signature=key.sign(digest))
            for key in (self.keys if signers is None else signers)
        )
        return DecidedBlock(block=block, certificate=Certificate(header=header, round=Round(0), precommits=votes))

    async def propose(self, ledger: Ledger, by: int = 0) -> Block:
        return await ledger.propose(Height(ledger.height + 1), self.clock.now_ms(), self.keys[by].address)

    async def decide(self, ledger: Ledger, *others: Ledger, by: int = 0) -> DecidedBlock:
        """One block, made by `ledger` (whose key is number `by`), judged and committed by all."""
        block = await self.propose(ledger, by)
        decided = self.certify(block, self.validating(ledger))
        for each in (ledger, *others):
            await each.validate(block, self.clock.now_ms(), Round(0))
            await each.commit(decided)
        return decided

    async def run_until_quiet(self, ledger: Ledger, *others: Ledger) -> list[DecidedBlock]:
        """Decide blocks as they fall due, until none is."""
        blocks: list[DecidedBlock] = []
        while (wait_s := await ledger.due_in()) is not None:
            assert len(blocks) < 50, "blocks never end"
            if wait_s:
                await trio.sleep(wait_s)
            else:
                blocks.append(await self.decide(ledger, *others))
        return blocks
