"""Directed forgeries of handovers: who claims that other validators hold office now must show it."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from nsllm.consensus.certificate import Certificate
from nsllm.consensus.epoch import EpochChange
from nsllm.consensus.errors import CertificateError
from nsllm.crypto import MemberKey
from nsllm.governance.light_client import EpochProof, LightClient
from nsllm.ids import ZERO_DIGEST, Digest, Epoch, Height
from nsllm.simulations.mutants.holds import holds, refused
from nsllm.simulations.mutants.made import NETWORK, certify, make_block, make_keys, make_set

KEYS = 8
OLD, NEW = slice(0, 4), slice(4, 8)
"""Who validates before the handover, and after it."""


def a_handover_is_certified() -> None:
    """Two of four validators hand over to strangers."""
    keys = make_keys(KEYS)
    change = _change(keys, 1)
    good = EpochProof(certificate=_last_of_epoch(keys, change.digest(), signers=keys[:3]), change=change)
    after = _trusted(keys).advance(good)
    holds(after.validators == change.validators and after.since == 1, "a certified handover is followed")
    forged = EpochProof(certificate=_last_of_epoch(keys, change.digest(), signers=keys[:2]), change=change)
    refused(CertificateError, partial(_trusted(keys).advance, forged), "two of four hand over")


def a_handover_names_its_validators() -> None:
    """A genuine header with somebody else's validators; a header that ends nothing."""
    keys = make_keys(KEYS)
    named, other = _change(keys, 1), EpochChange(validators=make_set(keys[2:6], 1), policy_digest=ZERO_DIGEST)
    forged = EpochProof(certificate=_last_of_epoch(keys, named.digest(), signers=keys[OLD]), change=other)
    refused(CertificateError, partial(_trusted(keys).advance, forged), "validators whom nobody named hold office")


def epochs_follow_each_other() -> None:
    """From epoch 0 to epoch 2."""
    keys = make_keys(KEYS)
    change = _change(keys, 2)
    forged = EpochProof(certificate=_last_of_epoch(keys, change.digest(), signers=keys[OLD]), change=change)
    refused(CertificateError, partial(_trusted(keys).advance, forged), "an epoch is left out")


def a_certificate_is_of_its_epoch() -> None:
    """Validators of epoch 0 certify a header of epoch 1; and, after the handover, once more one of their own."""
    keys = make_keys(KEYS)
    trusted = _trusted(keys)
    block = make_block(trusted.validators, 2, proposer=keys[0].address)
    later = certify(keys[OLD], replace(block, header=replace(block.header, epoch=Epoch(1)))).certificate
    refused(CertificateError, partial(trusted.check, later), "a certificate of another epoch counts")
    change = _change(keys, 1)
    proof = EpochProof(certificate=_last_of_epoch(keys, change.digest(), signers=keys[OLD]), change=change)
    after = trusted.advance(proof)
    block = make_block(change.validators, 1, proposer=keys[4].address)
    rewritten = certify(keys[NEW], replace(block, header=replace(block.header, epoch=Epoch(1)))).certificate
    refused(CertificateError, partial(after.check, rewritten), "new validators rewrite what was before them")


def _trusted(keys: list[MemberKey]) -> LightClient:
    return LightClient(NETWORK, make_set(keys[OLD]), ZERO_DIGEST, Height(0))


def _change(keys: list[MemberKey], epoch: int) -> EpochChange:
    return EpochChange(validators=make_set(keys[NEW], epoch), policy_digest=ZERO_DIGEST)


def _last_of_epoch(keys: list[MemberKey], next_epoch: Digest, *, signers: list[MemberKey]) -> Certificate:
    block = make_block(make_set(keys[OLD]), proposer=keys[0].address)
    return certify(signers, replace(block, header=replace(block.header, next_epoch=next_epoch))).certificate
