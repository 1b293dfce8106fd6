"""Messages: what each signature binds, one spelling on the wire, bounds."""

from __future__ import annotations

import msgspec
import pytest

from nsllm import canonical
from nsllm.consensus.block import MAX_BLOCK_BYTES
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.evidence import signed_part
from nsllm.consensus.header import precommit_digest
from nsllm.consensus.message import (
    MAX_MESSAGE_BYTES,
    HeightCertificate,
    PolkaCertificate,
    Recalled,
    Request,
    RoundCertificate,
    decode_message,
    encode_message,
)
from nsllm.consensus.vote import Choice, check_signature
from nsllm.errors import EncodingError, SignatureError

VALUE, OTHER = bytes([1] * 32), bytes([2] * 32)


@pytest.fixture
def bodies(kit):
    keys = kit.keys(4)
    validators = kit.validators(keys)
    block = kit.block(validators, proposer=keys[0].address)
    votes = tuple(kit.vote(key, "prevote", block.header.id()) for key in keys)
    return [
        votes[0],
        kit.vote(keys[1], "precommit", None, round_=3),
        kit.proposal(keys[0], block),
        kit.proposal(keys[0], block, round_=2, valid_round=0, polka=votes),
        PolkaCertificate(votes=votes),
        RoundCertificate(votes=tuple(kit.vote(key, "precommit", None) for key in keys)),
        HeightCertificate(certificate=kit.certify(keys, block).certificate),
        Request(height=4, round=1, value=VALUE),
        Request(height=4, round=1),
        Request(height=4, round=1, asked_ms=7),
        Recalled(asked_ms=7, height=4, vote=votes[0], proposal=signed_part(kit.proposal(keys[0], block))),
        Recalled(asked_ms=7, height=4, vote=None, proposal=None),
    ]


def test_every_message_round_trips_and_stays_in_bounds(bodies):
    for body in bodies:
        data = encode_message(body)
        assert decode_message(data) == body
        assert type(decode_message(data)) is type(body)
        for broken in (data[:-1], data + b"\0", b"\x81" + data):
            with pytest.raises(EncodingError):
                decode_message(broken)


def test_the_largest_proposal_fits(kit):
    """A full block and 256 prevotes."""
    keys = kit.keys(1)
    vote = kit.vote(
        keys[0], "prevote", VALUE, height=2**62, round_=2**31 - 1, lock=(2**31 - 2, OTHER), valid_round=2**31 - 2
    )
    assert MAX_BLOCK_BYTES + 256 * (len(canonical.encode(vote)) + 8) + 1024 < MAX_MESSAGE_BYTES
    with pytest.raises(EncodingError, match="the limit is"):
        decode_message(bytes(MAX_MESSAGE_BYTES + 1))


def test_too_many_votes_are_refused(kit):
    vote = kit.vote(kit.keys(1)[0], "prevote", VALUE)
    with pytest.raises(EncodingError):
        decode_message(encode_message(PolkaCertificate(votes=(vote,) * 257)))


@pytest.mark.parametrize("kind", ["prevote", "precommit"])
@pytest.mark.parametrize("value", [VALUE, None])
def test_a_vote_binds_every_field(kit, kind, value):
    key, other = kit.keys(2)
    vote = kit.vote(key, kind, value, height=5, round_=3)
    check_signature(vote, kit.NETWORK)
    changes = {
        "kind": "precommit" if kind == "prevote" else "prevote",
        "epoch": 1,
        "height": 6,
        "round": 4,
        "value": OTHER,
        "validator": other.address,
    }
    if kind == "prevote":
        changes["lock"] = Choice(round=1, value=VALUE)
    for name, changed in changes.items():
        with pytest.raises(SignatureError):
            check_signature(msgspec.structs.replace(vote, **{name: changed}), kit.NETWORK)
    with pytest.raises(SignatureError):
        check_signature(vote, bytes(32))
    if value is not None:
        with pytest.raises(SignatureError):
            check_signature(msgspec.structs.replace(vote, value=None), kit.NETWORK)
    if kind == "prevote" and value is not None:
        states = kit.vote(key, kind, value, height=5, round_=3, lock=(1, VALUE), valid_round=2)
        check_signature(states, kit.NETWORK)
        for name, changed in {"lock": Choice(round=0, value=VALUE), "valid_round": 1}.items():
            for other_one in (changed, None):
                with pytest.raises(SignatureError):
                    check_signature(msgspec.structs.replace(states, **{name: other_one}), kit.NETWORK)


def test_a_precommit_for_a_value_is_the_certificates_signature(kit):
    (key,) = kit.keys(1)
    validators = kit.validators([key])
    header = kit.block(validators, proposer=key.address).header
    vote = kit.vote(key, "precommit", header.id(), round_=2)
    assert vote.digest(kit.NETWORK) == precommit_digest(kit.NETWORK, 0, 1, 2, header.id())
    precommit = kit.certify([key], kit.block(validators, proposer=key.address), round_=2).certificate.precommits[0]
    assert precommit.signature == vote.signature
    Certificate(header=header, round=2, precommits=(precommit,)).check(kit.NETWORK, validators)


def test_a_proposal_binds_every_field_but_its_polka(kit):
    key, other = kit.keys(2)
    validators = kit.validators(kit.keys(2))
    block, another = (kit.block(validators, proposer=key.address, salt=i) for i in range(2))
    proposal = kit.proposal(key, block, round_=3, valid_round=1)
    check_signature(proposal, kit.NETWORK)
    changes = {"block": another, "epoch": 1, "height": 9, "round": 4, "valid_round": None, "proposer": other.address}
    for name, changed in changes.items():
        with pytest.raises(SignatureError):
            check_signature(msgspec.structs.replace(proposal, **{name: changed}), kit.NETWORK)
    votes = (kit.vote(key, "prevote", block.header.id(), round_=1),)
    check_signature(msgspec.structs.replace(proposal, polka=votes), kit.NETWORK)
