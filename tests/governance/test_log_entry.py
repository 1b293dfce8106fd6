"""Entries of the network log: one spelling each, and nothing else is an entry."""

from __future__ import annotations

import pytest

from nsllm import canonical, merkle
from nsllm.consensus.observation import Unscored, agree
from nsllm.consensus.registry import admit
from nsllm.crypto import keccak256
from nsllm.errors import EncodingError
from nsllm.governance.log_entry import (
    AdmissionEntry,
    CertifiedEntry,
    Checkpoint,
    CheckpointEntry,
    LogEntry,
    UnscoredEntry,
    admission_entry,
    certified_entry,
    certified_leaf_hash,
    checkpoint_entry,
    decode_entry,
    sign_checkpoint,
    unscored_entry,
)
from nsllm.ids import TimeMs


def test_each_kind_of_entry_is_read_as_what_was_written(ledger_network) -> None:
    net = ledger_network(4)
    rows = [(key.address, (1, 2)) for key in net.keys]
    leaf = agree(net.subject(net.record("a")), keccak256(b"rubric"), ("coherence", "relevance"), rows)
    unscored = Unscored(record=leaf.record, rubric=leaf.rubric, abstainers=leaf.observers[:2])
    admission = admit(net.generator, net.network, net.member(net.stranger, ("data",)))
    state = Checkpoint(peer=net.generator.address, size=3, root=keccak256(b"root"), time_ms=TimeMs(7))
    signed = sign_checkpoint(net.generator, net.network, state)
    signed.check(net.network)
    assert decode_entry(certified_entry(leaf)) == CertifiedEntry(leaf=leaf)
    assert decode_entry(unscored_entry(unscored)) == UnscoredEntry(unscored=unscored)
    assert decode_entry(admission_entry(admission)) == AdmissionEntry(admission=admission)
    assert decode_entry(checkpoint_entry(signed)) == CheckpointEntry(signed=signed)
    assert certified_entry(leaf) == canonical.encode(LogEntry(entry=CertifiedEntry(leaf=leaf)))
    assert certified_leaf_hash(leaf) == merkle.leaf_hash(certified_entry(leaf))


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"entry": None},
        {"entry": {"type": "unheard-of"}},
        {"entry": {"type": "certified"}},
        {"entry": {"type": "certified", "leaf": {}}},
        {"entry": {}},
        [],
    ],
)
def test_anything_else_is_no_entry(plain) -> None:
    with pytest.raises(EncodingError):
        decode_entry(canonical.pack(plain))
