"""Certificates and decided blocks: what proves a decision, and everything that does not."""

from __future__ import annotations

import msgspec
import pytest

from nsllm import merkle
from nsllm.consensus.certificate import Precommit
from nsllm.consensus.errors import BlockError, CertificateError
from nsllm.consensus.sync import Tip, check_decided, tip_of
from nsllm.errors import SignatureError

replace = msgspec.structs.replace


@pytest.fixture
def made(kit):
    keys = kit.keys(4)
    validators = kit.validators(keys)
    block = kit.block(validators, proposer=keys[0].address)
    return keys, validators, block


@pytest.mark.parametrize("signers", [[0, 1, 2], [1, 2, 3], [0, 1, 2, 3]])
def test_a_quorum_proves(kit, made, signers):
    keys, validators, block = made
    kit.certify([keys[i] for i in signers], block, round_=4).certificate.check(kit.NETWORK, validators)


def test_too_few(kit, made):
    keys, validators, block = made
    with pytest.raises(CertificateError, match="2 precommits, the quorum is 3"):
        kit.certify(keys[:2], block).certificate.check(kit.NETWORK, validators)


def test_order_repetition_and_strangers(kit, made):
    keys, validators, block = made
    good = kit.certify(keys, block).certificate
    votes = good.precommits
    for wrong in [votes[::-1], (votes[0], votes[0], *votes[1:]), (votes[1], votes[0], votes[2])]:
        with pytest.raises(CertificateError, match="ascending order"):
            replace(good, precommits=wrong).check(kit.NETWORK, validators)
    outsiders = [key for key in kit.keys(12) if key.address not in validators]
    with pytest.raises(CertificateError, match="is not a validator"):
        kit.certify([*keys[:3], outsiders[0]], block).certificate.check(kit.NETWORK, validators)


def test_any_invalid_signature_spoils_it_also_beyond_the_quorum(kit, made):
    keys, validators, block = made
    good = kit.certify(keys, block).certificate
    for place in range(4):
        votes = list(good.precommits)
        votes[place] = Precommit(validator=votes[place].validator, signature=votes[(place + 1) % 4].signature)
        with pytest.raises(SignatureError):
            replace(good, precommits=tuple(votes)).check(kit.NETWORK, validators)


def test_another_round_network_header_or_set(kit, made):
    keys, validators, block = made
    good = kit.certify(keys, block).certificate
    with pytest.raises(SignatureError):
        replace(good, round=1).check(kit.NETWORK, validators)
    with pytest.raises(SignatureError):
        good.check(bytes(32), validators)
    with pytest.raises(SignatureError):
        replace(good, header=replace(good.header, log_size=5)).check(kit.NETWORK, validators)
    with pytest.raises(CertificateError, match="another validator set"):
        good.check(kit.NETWORK, kit.validators(keys[:3]))


def test_decided_blocks_link(kit, made):
    keys, validators, block = made
    genesis = Tip(0, kit.NETWORK, None)
    first = kit.certify(keys[1:], block)
    check_decided(kit.NETWORK, validators, genesis, first)
    tip = tip_of(first)
    assert (tip.height, tip.header_id, tip.next()) == (1, block.header.id(), 2)
    second = kit.certify(keys, kit.block(validators, 2, proposer=keys[1].address, parent=tip.header_id))
    check_decided(kit.NETWORK, validators, tip, second)
    orphan = kit.certify(keys, kit.block(validators, 2, proposer=keys[1].address, parent=bytes(32)))
    body = replace(second.block.body, entries=(b"slipped in",))
    bad = [
        (genesis, second, BlockError, "expected 1"),
        (tip, first, BlockError, "expected 2"),
        (tip, orphan, BlockError, "has parent"),
        (tip, replace(second, certificate=first.certificate), CertificateError, "another header"),
        (tip, replace(second, block=replace(second.block, body=body)), BlockError, "under a header"),
    ]
    for below, decided, error, words in bad:
        with pytest.raises(error, match=words):
            check_decided(kit.NETWORK, validators, below, decided)
    with pytest.raises(BlockError, match="validators that are not"):
        check_decided(kit.NETWORK, kit.validators(keys[:3]), genesis, first)


def test_the_empty_score_tree(made):
    assert made[2].header.scores_root == merkle.EMPTY_ROOT
