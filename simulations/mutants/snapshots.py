"""Directed forgeries of snapshots: whoever hands out the state must show that a quorum has agreed on it."""

from __future__ import annotations

import hashlib
import sqlite3
from functools import partial

from msgspec.structs import replace

from nsllm.consensus.block import DecidedBlock
from nsllm.consensus.errors import CertificateError
from nsllm.crypto import MemberKey
from nsllm.governance.errors import SnapshotError
from nsllm.governance.light_client import LightClient
from nsllm.governance.snapshot import Manifest, Offer, check_offer
from nsllm.governance.snapshot_store import SnapshotStore
from nsllm.ids import ZERO_DIGEST, Height
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import NETWORK, certify, make_block, make_keys, make_set

CHUNKS = (b"the registry", b"the log", b"the chain")


def a_snapshot_is_certified() -> None:
    """Another state under a genuine header; the right one under a header that two of four signed."""
    keys = make_keys(4)
    offer = _offer(keys)
    holds(check_offer(offer, (), _trusted(keys)).digest == offer.certificate.header.snapshot_hash, "an offer holds")
    other = replace(offer, manifest=replace(offer.manifest, chunks=bytes(32) + offer.manifest.chunks[32:]))
    refused(CertificateError, partial(check_offer, other, (), _trusted(keys)), "a state that nobody certified")
    forged = _offer(keys, signers=keys[:2])
    refused(CertificateError, partial(check_offer, forged, (), _trusted(keys)), "a state that two of four certify")


def a_snapshot_stands_on_its_block() -> None:
    """The last block is another one, or two of four signed it."""
    keys = make_keys(4)
    offer = _offer(keys)
    other = replace(offer, block=_block(keys, 4, keys))
    refused(CertificateError, partial(check_offer, other, (), _trusted(keys)), "another block as the last one")
    forged = replace(offer, block=_block(keys, 3, keys[:2]))
    refused(CertificateError, partial(check_offer, forged, (), _trusted(keys)), "a last block of two of four")


def a_chunk_is_the_certified_one() -> None:
    """Every chunk is offered in place of every other, and with a bit flipped."""
    store, manifest = SnapshotStore(sqlite3.connect(":memory:", isolation_level=None), NETWORK), _manifest(make_keys(4))
    for position, chunk in enumerate(CHUNKS):
        for wrong in (*(other for other in CHUNKS if other != chunk), chunk[:-1] + bytes([chunk[-1] ^ 1])):
            refused(SnapshotError, partial(store.put_incoming, manifest, position, wrong), "another chunk is taken in")
        store.put_incoming(manifest, position, chunk)


def _trusted(keys: list[MemberKey]) -> LightClient:
    return LightClient(NETWORK, make_set(keys), ZERO_DIGEST, Height(0))


def _block(keys: list[MemberKey], height: int, signers: list[MemberKey]) -> DecidedBlock:
    return certify(signers, make_block(make_set(keys), height, proposer=keys[0].address))


def _manifest(keys: list[MemberKey]) -> Manifest:
    header = _block(keys, 3, keys).block.header
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in CHUNKS)
    return Manifest(height=header.height, header_id=header.id(), size_bytes=sum(map(len, CHUNKS)), chunks=digests)


def _offer(keys: list[MemberKey], signers: list[MemberKey] | None = None) -> Offer:
    """Of the state after block 3, which block 4 commits to."""
    manifest = _manifest(keys)
    above = make_block(make_set(keys), 4, proposer=keys[0].address)
    header = replace(above.header, snapshot_hash=manifest.digest(NETWORK))
    certificate = certify(keys if signers is None else signers, replace(above, header=header)).certificate
    return Offer(manifest=manifest, block=_block(keys, 3, keys), certificate=certificate)
