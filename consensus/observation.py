"""Observations: what one validator measured of one record, signed, as integers; and their lower median.

Source of the median's safety: with at least n-f observations of which at most f are Byzantine, the lower median lies
within the range of the honest ones, whoever proposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.errors import ObservationError
from nsllm.crypto import MemberKey
from nsllm.ids import AddressField, Digest, DigestField, NameField, NetworkId, Ppm, PpmField, SignatureField

MAX_DIMENSIONS = 16


class DimensionScore(Value, frozen=True, kw_only=True):
    """One dimension of the hybrid score."""

    name: NameField
    ppm: PpmField


Scores = Annotated[tuple[DimensionScore, ...], Meta(min_length=1, max_length=MAX_DIMENSIONS)]
"""Ascending by name, each name once."""


class Observation(Value, frozen=True, kw_only=True):
    """What a validator signs about a record."""

    record: DigestField
    generator: AddressField
    request_key: DigestField
    rubric: DigestField
    """Digest of the rubric that it was scored with."""
    validator: AddressField
    scores: Scores

    def digest(self, network: NetworkId) -> Digest:
        """What the validator signs: bound to network, record and rubric, never to a round."""
        return canonical.digest("observation", network, self)


class SignedObservation(Value, frozen=True, kw_only=True):
    """An observation and its validator's signature."""

    observation: Observation
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if the names are in order and the signature is the validator's.

        Raises:
            ObservationError: dimensions out of order or doubled.
            SignatureError: not the validator's signature.
        """
        names = [score.name for score in self.observation.scores]
        if names != sorted(set(names)):
            raise ObservationError(f"dimensions {names} are not in ascending order of distinct names")
        crypto.verify(self.observation.digest(network), self.signature, self.observation.validator)


class ScoreLeaf(Value, frozen=True, kw_only=True):
    """The agreed scores of one record: a leaf of the header's score tree and an entry of the network log."""

    record: DigestField
    generator: AddressField
    request_key: DigestField
    rubric: DigestField
    scores: Scores
    """Lower median of the observations, dimension by dimension."""
    observers: Annotated[tuple[AddressField, ...], Meta(min_length=1, max_length=256)]
    """Whose observations these are, ascending."""


def sign_observation(key: MemberKey, network: NetworkId, observation: Observation) -> SignedObservation:
    """The observation with its validator's signature."""
    return SignedObservation(observation=observation, signature=key.sign(observation.digest(network)))


def lower_median(values: Sequence[int]) -> Ppm:
    """Element number floor((m-1)/2) of the sorted values.

    >>> lower_median([5, 1, 9, 7])
    5
    """
    if not values:
        raise ValueError("no values to take a median of")
    return Ppm(sorted(values)[(len(values) - 1) // 2])


def agree(observations: Sequence[Observation]) -> ScoreLeaf:
    """The score leaf that a set of observations of one record gives; every validator computes the same.

    Args:
        observations: of one record under one rubric by distinct validators, in any order.

    Raises:
        ObservationError: mixed records, rubrics, generators or dimensions, or a validator twice.
    """
    if not observations:
        raise ObservationError("no observations")
    first = observations[0]
    observers = sorted({o.validator for o in observations})
    names = [score.name for score in first.scores]
    for other in observations:
        same = (other.record, other.rubric, other.generator, other.request_key) == (
            first.record,
            first.rubric,
            first.generator,
            first.request_key,
        )
        if not same or [score.name for score in other.scores] != names:
            raise ObservationError(f"observations of record {first.record.hex()[:16]} do not belong together")
    if len(observers) != len(observations):
        raise ObservationError(f"a validator observed record {first.record.hex()[:16]} twice")
    medians = tuple(
        DimensionScore(name=name, ppm=lower_median([o.scores[i].ppm for o in observations]))
        for i, name in enumerate(names)
    )
    return ScoreLeaf(
        record=first.record,
        generator=first.generator,
        request_key=first.request_key,
        rubric=first.rubric,
        scores=medians,
        observers=tuple(observers),
    )
