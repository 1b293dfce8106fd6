"""Looking into what real peers left on their disks: promises that ledgers, logs and guards show to be kept. Blocking.

Every ledger is read on its own, without the peer's code around it, and trusts nothing but the genesis. What validators
signed is compared over all that is found (`nsllm.simulations.signatures`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.header import Header
from nsllm.errors import PeerFault
from nsllm.governance.epoch_store import MAX_EPOCH_BYTES
from nsllm.governance.genesis import Genesis
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.governance.stored_block import from_stored
from nsllm.ids import Address, Digest, hex0x
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.fair_scores import check_scores
from nsllm.simulations.signatures import Signatures

LEDGER_FILE: Final = "ledger.sqlite"


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the ledgers of a network hold together."""

    height: int
    log_root: Digest
    """At the end, of every peer."""
    blocks: int
    """Looked at, over all peers; each with its certificate."""
    signatures: int
    """Different ones of validators that were compared."""
    offenders: frozenset[Address]
    """Validators that a block convicts."""


def inspect(
    genesis: Genesis,
    peers: Mapping[Path, Address],
    *,
    byzantine: frozenset[Address] = frozenset(),
    signatures: Signatures | None = None,
) -> Inspected:
    """What honest peers hold that have stopped.

    Args:
        genesis: of their network.
        peers: their data folders, and who they are.
        byzantine: validators that may be accused, and may have signed twice.
        signatures: what was found before.

    Raises:
        InvariantError: two blocks of one height, a block that stands on no other, a certificate that proves nothing,
            ledgers that end differently, an honest validator that is accused or signed twice, or a guard that forgot.
    """
    signatures = Signatures(genesis.network_id(), byzantine) if signatures is None else signatures
    decided: dict[int, Digest] = {}
    ends: set[tuple[int, Digest]] = set()
    offenders: set[Address] = set()
    blocks = 0
    for folder, address in peers.items():
        name = folder.name
        signatures.add_left(folder, address)
        with closing(sqlite3.connect(f"file:{folder / LEDGER_FILE}?mode=ro", uri=True)) as connection:
            end = (0, Digest(genesis.network_id()))
            for block in _certified(genesis, connection, name, byzantine):
                header = block.block.header
                known = decided.setdefault(header.height, header.id())
                if known != header.id():
                    raise InvariantError(
                        f"agreement: {name} decided {hex0x(header.id())[:18]} at height {header.height},"
                        f" another peer {hex0x(known)[:18]}"
                    )
                signatures.add_certificate(block.certificate, f"block {header.height} of {name}")
                signatures.add_batches(block.block.body.batches, f"block {header.height} of {name}")
                end = (header.height, header.log_root)
                blocks += 1
            ends.add(end)
            offenders.update(Address(row[0]) for row in connection.execute("SELECT validator FROM offence"))
    if len(ends) != 1:
        raise InvariantError(
            f"the peers end at {len(ends)} different logs, heights {sorted(height for height, _ in ends)}"
        )
    if not offenders <= byzantine:
        raise InvariantError(f"honest validators are convicted: {', '.join(map(hex0x, sorted(offenders - byzantine)))}")
    for folder, address in peers.items():
        signatures.check_guard(folder, address)
    [(height, log_root)] = ends
    return Inspected(height, log_root, blocks, len(signatures), frozenset(offenders))


def _certified(
    genesis: Genesis, connection: sqlite3.Connection, name: str, byzantine: frozenset[Address]
) -> Iterator[DecidedBlock]:
    """The blocks of a ledger, each linked to the one below and certified by its epoch, which follows from the genesis.

    A ledger that has dropped its oldest blocks begins with the first one that it has. Scores under the genesis' policy
    are what the block's rows say.

    Raises:
        InvariantError: one of them is not.
    """
    handovers = {
        boundary: EpochProof(
            certificate=canonical.decode(certificate, Certificate, limit_bytes=MAX_EPOCH_BYTES),
            change=canonical.decode(change, EpochChange, limit_bytes=MAX_EPOCH_BYTES),
        )
        for boundary, change, certificate in connection.execute(
            "SELECT boundary, change, certificate FROM epoch ORDER BY boundary"
        )
    }
    below: Header | None = None
    trusted = LightClient.begin(genesis)
    try:
        for (data,) in connection.execute("SELECT decided FROM block ORDER BY height"):
            block = from_stored(data)
            header = block.block.header
            if below is None:
                trusted = trusted.follow(proof for at, proof in handovers.items() if at < header.height)[-1]
                linked = header.height > 1 or header.parent == Digest(genesis.network_id())
            else:
                linked = (header.height, header.parent) == (below.height + 1, below.id())
            if not linked or block.certificate.header != header:
                raise InvariantError(f"{name}: block {header.height} does not stand on the one below it")
            trusted.check(block.certificate)
            if header.policy_digest == genesis.policy.digest():
                rubric = genesis.policy.rubric
                check_scores(block.block, genesis.network_id(), trusted.validators, rubric, byzantine)
            if header.ends_epoch:
                trusted = trusted.advance(handovers[header.height])
            below = header
            yield block
    except PeerFault as error:
        height = 0 if below is None else below.height
        raise InvariantError(f"{name} took a block after block {height}: {error.message}") from None
