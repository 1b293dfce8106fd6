"""A ledger driven through 100,000 heights on virtual time: does disk and memory stay bounded, and the receipts good?

    python -m benchmarks.ledger                 # a quarter of an hour or so
    python -m benchmarks.ledger --heights 5000 --keep 1000

Four validators' keys, one ledger on disk, a second of virtual time a height, a record every so often (`--every`), with
the anchors that follow. Along the way it prints file sizes and memory. At the end the receipt of the ledger's own
record of height 10 is built and verified offline, the one saved at that time too; and a new ledger takes the snapshot
and the blocks above it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

from nsllm.clock import TrioClock
from nsllm.consensus.batch import (
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
from nsllm.consensus.header import precommit_digest
from nsllm.consensus.observation import Subject, pack_subjects
from nsllm.consensus.registry import Member, Role
from nsllm.crypto import MemberKey, keccak256
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import Genesis, Placement
from nsllm.governance.ledger import Ledger
from nsllm.governance.ledger_summary import LedgerSummary
from nsllm.governance.receipt import build_receipt, receipt_text
from nsllm.governance.verify import verify_receipt
from nsllm.ids import Digest, Height, PeerId, Round, TimeMs
from nsllm.offload import InlineOffload
from nsllm.record import Message, Record, Request, Sampling, SignedRecord, request_key, sign_record

VALIDATORS: Final = 4
START_MS: Final = TimeMs(1_700_000_000_000)
OWN_HEIGHT: Final = 10
MEASUREMENTS: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """The ledger at one height."""

    height: int
    seconds: float
    """Real ones since the start."""
    file_mb: float
    """The SQLite file."""
    journal_mb: float
    """Its write-ahead file."""
    memory_mb: float
    """Resident set of this process."""
    kept_from: int
    log_size: int


class Town:
    """Keys, genesis, and what the validators say."""

    def __init__(self) -> None:
        keys = (MemberKey(keccak256(b"validator %d" % i)) for i in range(VALIDATORS))
        self.keys = tuple(sorted(keys, key=lambda key: key.address))
        self.generator = MemberKey(keccak256(b"generator"))
        self._model = Digest(keccak256(b"model"))
        policy = default_policy(self._model, self._model)
        members = [self._member(key, ("contributor", "data", "validator")) for key in self.keys]
        members.append(self._member(self.generator, ("contributor",)))
        self.genesis = Genesis(
            name="long",
            created_ms=START_MS,
            members=tuple(sorted(members, key=lambda member: member.address)),
            policy=policy,
            placement=Placement(),
        )
        self.network = self.genesis.network_id()
        self.clock = TrioClock(START_MS)
        self._number = 0

    @staticmethod
    def _member(key: MemberKey, roles: tuple[Role, ...]) -> Member:
        return Member(address=key.address, peer_id=PeerId("peer-" + key.address.hex()), roles=roles)

    async def open(self, path: Path, keep_heights: int) -> Ledger:
        """A ledger of the first validator."""
        return await Ledger.open(
            path,
            self.genesis,
            clock=self.clock,
            offload=InlineOffload(),
            key=self.keys[0],
            keep_heights=keep_heights,
        )

    def record(self, name: str, generator: MemberKey) -> SignedRecord:
        """An answer of some sentences."""
        message = Message(role="user", content=f"What is {name}?")
        request = Request(model="tiny", model_digest=self._model, messages=(message,), sampling=Sampling())
        record = Record(
            network=self.network,
            request=request,
            generator=generator.address,
            visibility="public",
            sampling=Sampling(),
            prompt_token_ids=tuple(range(20)),
            token_ids=tuple(range(60)),
            text=f"It is {name}, as everybody knows. " * 8,
            finish_reason="stop",
            embedding=bytes(384),
            created_ms=self.clock.now_ms(),
        )
        return sign_record(generator, record)

    def observe(self, ledger: Ledger, signed: SignedRecord) -> None:
        """Every validator commits to the record and opens its row."""
        self._number += 1
        record = signed.record
        subject = Subject(record.digest(), record.generator, request_key(self.network, record.request))
        batches = [self._batch(key, subject, ledger) for key in self.keys]
        for commit, _ in batches:
            ledger.observations.add_commit(commit)
        for _, reveal in batches:
            ledger.observations.add_reveal(reveal)

    def _batch(self, key: MemberKey, subject: Subject, ledger: Ledger) -> tuple[SignedCommit, BatchReveal]:
        terms = ledger.terms
        row = Row(0, salt_of(key.address, terms.rubric, subject.record), (500_000,) * len(terms.dimensions))
        epoch = terms.validators.epoch
        commitment = row_commitment(self.network, key.address, epoch, terms.rubric, subject, row)
        commit = BatchCommit(
            validator=key.address,
            epoch=epoch,
            number=self._number,
            rubric=terms.rubric,
            records=subject.record,
            commitments=commitment,
            abstentions=(),
        )
        reveal = BatchReveal(
            validator=key.address,
            epoch=epoch,
            number=self._number,
            rows=pack_rows([row]),
            subjects=pack_subjects([subject]),
        )
        return sign_commit(key, self.network, commit), reveal

    def certify(self, block: Block) -> DecidedBlock:
        """By a quorum."""
        header = block.header
        digest = precommit_digest(self.network, header.epoch, header.height, Round(0), header.id())
        votes = tuple(
            Precommit(validator=key.address, signature=key.sign(digest))
            for key in self.keys[: self.genesis.registry().validators().quorum]
        )
        return DecidedBlock(block=block, certificate=Certificate(header=header, round=Round(0), precommits=votes))


async def drive(town: Town, ledger: Ledger, heights: int, every: int, path: Path) -> tuple[list[Measured], str]:
    """Decide that many blocks; measurements on the way, and the receipt of height `OWN_HEIGHT` as it was soon after."""
    began, found, saved = time.monotonic(), [], ""
    own = own_record(town)
    for height in range(1, heights + 1):
        if height == OWN_HEIGHT:
            town.observe(ledger, own)
        elif height % every == 0:
            town.observe(ledger, town.record(f"thing {height}", town.generator))
        await trio.sleep(1)
        block = await ledger.propose(Height(height), town.clock.now_ms(), town.keys[0].address)
        await ledger.commit(town.certify(block))
        if height == OWN_HEIGHT + 10:
            saved = await receipt(ledger, own)
        if height % max(1, heights // MEASUREMENTS) == 0:
            found.append(await measure(ledger, height, time.monotonic() - began, path))
            say(json.dumps(asdict(found[-1])))
    return found, saved


def own_record(town: Town) -> SignedRecord:
    """The record whose receipt is asked for at the end."""
    return town.record("the first", town.keys[0])


async def receipt(ledger: Ledger, signed: SignedRecord) -> str:
    """The receipt that the ledger can give now."""
    proof = await ledger.proofs.of(signed.record.digest())
    if proof is None:
        raise SystemExit(f"no proof of the record of height {OWN_HEIGHT} at height {ledger.height}")
    return receipt_text(build_receipt(signed, proof))


async def measure(ledger: Ledger, height: int, seconds: float, path: Path) -> Measured:
    """Files and memory now."""
    return sizes(await ledger.summary(1), height, seconds, path)


def sizes(summary: LedgerSummary, height: int, seconds: float, path: Path) -> Measured:
    """What the system says of them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    journal = path.with_name(path.name + "-wal")
    return Measured(
        height=height,
        seconds=round(seconds, 1),
        file_mb=round(path.stat().st_size / 1e6, 2),
        journal_mb=round(journal.stat().st_size / 1e6, 2) if journal.exists() else 0.0,
        memory_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        kept_from=summary.kept_from,
        log_size=summary.log_size,
    )


async def join(town: Town, ledger: Ledger, path: Path) -> dict[str, float]:
    """A new ledger on disk takes the snapshot and the blocks above it."""
    late = await town.open(path, 0)
    began = time.monotonic()
    offered = await ledger.snapshots.offer(late.snapshots.epoch)
    if offered is None:
        raise SystemExit("there is no snapshot to take: more heights than the genesis's snapshot_heights are needed")
    proved = late.snapshots.check(*offered)
    manifest = proved.offer.manifest
    await late.snapshots.begin()
    for position in range(len(manifest)):
        data = await ledger.snapshots.chunk(proved.digest, position)
        if data is not None:
            await late.snapshots.put(proved, position, data)
    await late.snapshots.install(proved, await ledger.snapshots.retractions(0, 256))
    installed_s = time.monotonic() - began
    while late.height < ledger.height:
        for decided in await ledger.decided(Height(late.height + 1), 64):
            await late.commit(decided)
    if late.log_root != ledger.log_root:
        raise SystemExit("the new ledger has another log")
    await late.close()
    return {
        "snapshot_kb": round(manifest.size_bytes / 1e3, 1),
        "install_s": round(installed_s, 3),
        "blocks": ledger.height - manifest.height,
        "caught_up_s": round(time.monotonic() - began, 3),
    }


def say(text: str) -> None:
    """What happens meanwhile."""
    sys.stderr.write(text + "\n")


async def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The whole measurement."""
    town, path = Town(), folder / "ledger.sqlite"
    own = own_record(town)
    ledger = await town.open(path, options.keep)
    found, saved = await drive(town, ledger, options.heights, options.every, path)
    began = time.monotonic()
    text = await receipt(ledger, own)
    proved_ms = (time.monotonic() - began) * 1e3
    reports = [verify_receipt(each, town.genesis, "anchored") for each in (text, saved)]
    joined = await join(town, ledger, folder / "late.sqlite")
    await ledger.close()
    return {
        "heights": options.heights,
        "keep_heights": options.keep,
        "record_every": options.every,
        "at": [asdict(each) for each in found],
        "receipt": {
            "of_height": reports[0].height,
            "level": reports[0].level,
            "bytes": len(text),
            "same_as_saved": text == saved,
            "proof_ms": round(proved_ms, 2),
        },
        "new_peer": joined,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--heights", type=int, default=100_000, help="blocks to decide")
    parser.add_argument("--keep", type=int, default=10_000, help="as the setting ledger.keep_heights; 0 keeps all")
    parser.add_argument("--every", type=int, default=20, help="a record every so many heights")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder unless given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = trio.run(run, options, Path(folder), clock=MockClock(autojump_threshold=0))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
