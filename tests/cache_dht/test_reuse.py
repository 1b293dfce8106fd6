"""Reuse rules: what may stand in for a generation, and what is refused although somebody offers it."""

from __future__ import annotations

import pytest

from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.cache_dht.reuse import check_found, may_stand_in
from nsllm.consensus.errors import CertificateError
from nsllm.errors import NsllmError, SignatureError
from nsllm.ids import NetworkId
from nsllm.record import Sampling

NETWORK = NetworkId(b"\x07" * 32)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), True),
        (Sampling(max_tokens=5), True),
        (Sampling(temperature_micro=0), True),
        (Sampling(temperature_micro=700_000), False),
        (Sampling(top_p_micro=500_000), False),
        (Sampling(top_k=5), False),
        (Sampling(temperature_micro=700_000, seed=1), True),
        (Sampling(seed=0), True),
    ],
)
def test_stands_in_only_for_open_or_deterministic_sampling(sampling: Sampling, expected: bool) -> None:
    assert may_stand_in(sampling) is expected


def test_a_good_record_is_served(net, certify) -> None:
    found = certify()
    check_found(found, found.leaf.request_key, NETWORK, net.validators, 900_000, 500_000)


def bad_cases():
    import msgspec

    def replace(value, **changes):
        return msgspec.structs.replace(value, **changes)

    return {
        "another request": lambda f, c: (c("other?"), RecordRefusedError),
        "below the threshold": lambda f, c: (f, RecordRefusedError),
        "no quorum": lambda f, c: (c(signers=2), CertificateError),
        "edited answer": lambda f, c: (
            replace(f, signed=replace(f.signed, record=replace(f.signed.record, text="no"))),
            SignatureError,
        ),
        "another network": lambda f, c: (
            replace(f, signed=replace(f.signed, record=replace(f.signed.record, network=bytes(32)))),
            NsllmError,
        ),
        "edited score": lambda f, c: (
            replace(f, leaf=replace(f.leaf, scores=(replace(f.leaf.scores[0], ppm=999_999),))),
            NsllmError,
        ),
        "leaf of another record": lambda f, c: (replace(f, leaf=c("x", "y").leaf), CertificateError),
    }


@pytest.mark.parametrize("case", bad_cases())
def test_refused(case: str, net, certify) -> None:
    good = certify()
    found, error = bad_cases()[case](good, certify)
    hybrid = 100_000 if case == "below the threshold" else 900_000
    with pytest.raises(error):
        check_found(found, good.leaf.request_key, NETWORK, net.validators, hybrid, 500_000)


def test_an_explicit_seed_or_temperature_is_part_of_the_key(certify) -> None:
    keys = {
        certify(sampling=sampling).leaf.request_key
        for sampling in (Sampling(), Sampling(seed=1), Sampling(seed=2), Sampling(temperature_micro=0))
    }
    assert len(keys) == 4
