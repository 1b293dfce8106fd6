"""Reuse rules: when an answer from the cache may stand in for a generation, and when a found record may be served.

Exact matches only: the request key covers model digest, messages, attachments and every parameter that the caller set,
so an explicit seed or temperature matches exactly or not at all.
"""

from __future__ import annotations

from nsllm.cache_dht.errors import RecordRefusedError
from nsllm.consensus.certified import CertifiedRecord
from nsllm.consensus.validators import ValidatorSet
from nsllm.ids import Digest, NetworkId, Ppm
from nsllm.record import Sampling, request_key


def may_stand_in(sampling: Sampling) -> bool:
    """True where the caller left sampling to the peer or asked for determinism (a seed, or temperature 0).

    >>> may_stand_in(Sampling()), may_stand_in(Sampling(temperature_micro=700_000))
    (True, False)
    """
    left_open = sampling.temperature_micro is None and sampling.top_p_micro is None and sampling.top_k is None
    return left_open or sampling.temperature_micro == 0 or sampling.seed is not None


def check_found(
    found: CertifiedRecord, key: Digest, network: NetworkId, validators: ValidatorSet, hybrid_ppm: Ppm, minimum: Ppm
) -> None:
    """Pass silently if a record that somebody gave us for `key` may be served.

    Args:
        found: from the store or from another peer; nothing about it is trusted.
        key: the request key that we asked for.
        network: our network.
        validators: validator set of the certificate's epoch.
        hybrid_ppm: its hybrid score under the policy in force.
        minimum: the policy's `reuse_min_ppm`.

    Raises:
        RecordRefusedError: another request's record, or below the policy's threshold.
        CertificateError, SignatureError, EncodingError: see `CertifiedRecord.check`.
    """
    if request_key(network, found.signed.record.request) != key:
        raise RecordRefusedError(f"asked for request {key.hex()[:16]}, got another request's record")
    found.check(network, validators)
    if hybrid_ppm < minimum:
        raise RecordRefusedError(f"hybrid score {hybrid_ppm} ppm is below the policy's {minimum} ppm")
