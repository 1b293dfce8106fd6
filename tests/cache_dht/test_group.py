"""Group keys: salts, envelopes and their padding."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.cache_dht.group import Group, padded_length
from nsllm.cache_dht.sealed import CertifiedSealed, sign_sealed
from nsllm.cache_dht.sealed_store import SealedStore
from nsllm.clock import SystemClock
from nsllm.consensus.certified import CertifiedRecord
from nsllm.crypto import MemberKey
from nsllm.errors import PeerFault
from nsllm.ids import NetworkId
from nsllm.offload import InlineOffload
from nsllm.record import sign_record

NETWORK = NetworkId(b"\x07" * 32)
LAB, OTHERS = Group("lab", b"\x01" * 32), Group("others", b"\x02" * 32)
replace = msgspec.structs.replace


@pytest.fixture
def certify_in(net, certify):
    """A record of a group, certified."""

    def make(group: Group, question: str = "why?", answer: str = "because") -> CertifiedRecord:
        plain = certify(question, answer).signed.record
        salt = group.salt(NETWORK, plain.request)
        record = replace(plain, visibility="group", salt=salt)
        return certify(question, answer, record=record)

    return make


def sealed_of(certified: CertifiedRecord, group: Group, key: MemberKey) -> CertifiedSealed:
    sealed = group.seal(NETWORK, certified.signed, key.address)
    return CertifiedSealed(
        envelope=sign_sealed(key, NETWORK, sealed),
        leaf=certified.leaf,
        inclusion=certified.inclusion,
        certificate=certified.certificate,
    )


def test_equal_questions_of_different_groups_have_nothing_in_common(certify, certify_in) -> None:
    public, ours, theirs = certify(), certify_in(LAB), certify_in(OTHERS)
    keys = {each.signed.record.key() for each in (public, ours, theirs)}
    assert len(keys) == 3
    assert len({each.signed.record.digest() for each in (public, ours, theirs)}) == 3
    assert ours.signed.record.key() == certify_in(LAB, answer="another").signed.record.key(), "but within one group"
    assert LAB.owns(ours.signed)
    assert not OTHERS.owns(ours.signed)
    assert not LAB.owns(public.signed)


def test_a_group_record_needs_a_salt_and_a_public_one_has_none(certify) -> None:
    record = certify().signed.record
    for wrong in ({"salt": bytes(32)}, {"visibility": "group"}, {"visibility": "group", "salt": bytes(31)}):
        with pytest.raises(ValueError, match="bytes of salt"):
            replace(record, **wrong)


def test_what_is_sealed_opens_within_the_group_only(net, certify_in) -> None:
    signed = certify_in(LAB, answer="the secret words").signed
    sealed = LAB.seal(NETWORK, signed, net.keys[0].address)
    assert b"secret words" not in sealed.body
    assert signed.record.salt not in sealed.body
    assert LAB.open(NETWORK, sealed) == signed
    assert OTHERS.open(NETWORK, sealed) is None
    assert LAB.open(NetworkId(bytes(32)), sealed) is None
    assert LAB.seal(NETWORK, signed, net.keys[0].address) == sealed, "the same by whoever seals it"


def test_another_signature_gets_another_nonce(net, certify_in) -> None:
    signed = certify_in(LAB).signed
    again = replace(signed, signature=bytes([*signed.signature[:-1], signed.signature[-1] ^ 1]))
    first, second = (LAB.seal(NETWORK, each, net.keys[0].address).body for each in (signed, again))
    assert first[:24] != second[:24]


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), field=st.sampled_from(["body", "record", "request_key"]))
def test_no_bit_of_an_envelope_changes_unnoticed(envelope, at, bit, field) -> None:
    group, sealed = envelope
    data = bytearray(getattr(sealed, field))
    data[at % len(data)] ^= 1 << bit
    assert group.open(NETWORK, replace(sealed, **{field: bytes(data)})) is None


@pytest.fixture(scope="module")
def envelope(net, certify):
    plain = certify().signed.record
    record = replace(plain, visibility="group", salt=LAB.salt(NETWORK, plain.request))
    return LAB, LAB.seal(NETWORK, sign_record(net.keys[0], record), net.keys[0].address)


def test_a_member_that_seals_something_else_is_refused(net, certify, certify_in) -> None:
    ours, public = certify_in(LAB), certify()
    stranger = certify_in(OTHERS)
    for wrong in (public.signed, stranger.signed):
        with pytest.raises(RecordRefusedError, match="holds something else"):
            LAB.open(NETWORK, LAB.seal(NETWORK, wrong, net.keys[0].address))
    assert LAB.open(NETWORK, replace(LAB.seal(NETWORK, ours.signed, net.keys[0].address), body=b"short")) is None


@given(st.integers(0, 600_000))
def test_padding_hides_length_within_an_eighth(length) -> None:
    padded = padded_length(length)
    assert length <= padded <= length * 9 / 8 + 1
    assert padded_length(padded) == padded
    assert padded_length(length + 1) >= padded


def test_lengths_are_few() -> None:
    assert len({padded_length(n) for n in range(10_000, 200_000)}) < 100


def test_a_holder_outside_checks_scores_and_sealer(net, certify_in) -> None:
    certified = certify_in(LAB)
    generator, observer, stranger = net.keys[0], net.keys[1], MemberKey(b"\x11" * 32)
    for key in (generator, observer):
        sealed_of(certified, LAB, key).check(NETWORK, net.validators)
    good = sealed_of(certified, LAB, generator)
    other = sealed_of(certify_in(LAB, "else?"), LAB, generator)
    wrong = {
        "sealed by a stranger": sealed_of(certified, LAB, stranger),
        "another's scores": replace(good, leaf=other.leaf),
        "another envelope": replace(good, envelope=other.envelope),
        "forged signature": replace(good, envelope=replace(good.envelope, signature=other.envelope.signature)),
        "better scores": replace(good, leaf=replace(good.leaf, scores=(replace(good.leaf.scores[0], ppm=999_999),))),
    }
    for name, bad in wrong.items():
        with pytest.raises(PeerFault):
            bad.check(NETWORK, net.validators)
            raise AssertionError(name)


async def test_the_store_keeps_the_generators_envelope_and_stays_within_its_bound(net, certify_in, tmp_path) -> None:
    path = tmp_path / "sealed.sqlite"
    store = SealedStore.open(path, SystemClock(), InlineOffload(), max_bytes=40_000)
    certified = certify_in(LAB, answer="unmistakable words " * 40)
    theirs, own = (sealed_of(certified, LAB, net.keys[i]) for i in (1, 0))
    key, record = certified.leaf.request_key, certified.leaf.record
    assert await store.put(theirs) is True
    assert await store.put(own) is False
    assert await store.put(theirs) is False
    assert await store.get(key) == own, "its generator's own takes the place of a validator's"
    assert all(b"unmistakable" not in file.read_bytes() for file in tmp_path.iterdir()), "nothing is readable at rest"
    store.close()
    store = SealedStore.open(path, SystemClock(), InlineOffload(), max_bytes=40_000)
    assert await store.get(key) == own
    for number in range(20):
        await store.put(sealed_of(certify_in(LAB, f"question {number}?"), LAB, net.keys[0]))
    assert await store.get(key) is None, "the oldest leaves"
    assert 3 < await store.count() < 20
    last = sealed_of(certify_in(LAB, "question 19?"), LAB, net.keys[0])
    assert await store.holds(last.leaf.record)
    assert await store.erase([last.leaf.record, record]) == (last.leaf.record,)
    assert last.envelope.sealed.body not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    store.close()
