"""Observations that wait for a block: bounded, in memory only; validators send theirs again until a block has them.

Each validator has its own bound, so a faulty one that floods drops its own observations, never another's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from nsllm.consensus.observation import Observation, SignedObservation
from nsllm.ids import Address, Digest

PER_VALIDATOR: Final = 1024
"""Observations kept a validator: half a megabyte of the default rubric's."""
EXPIRY_S: Final = 600.0
WAIT_FOR_ALL_S: Final = 0.3
"""How long a record with enough observations waits for the remaining validators' ones."""


@dataclass(slots=True)
class _Pending:
    by_validator: dict[Address, SignedObservation] = field(default_factory=dict[Address, SignedObservation])
    enough_since: float | None = None


class ObservationPool:
    """Observations by record and validator; the caller has checked their signatures and tells the time (seconds)."""

    def __init__(self, validators: int, enough: int) -> None:
        """An empty pool.

        Args:
            validators: n, the size of the validator set.
            enough: n-f, how many observations a score needs.
        """
        self._all = validators
        self._enough = enough
        self._records: OrderedDict[Digest, _Pending] = OrderedDict()
        self._held: dict[Address, OrderedDict[Digest, float]] = {}

    def add(self, signed: SignedObservation, now: float) -> bool:
        """Keep an observation; False if this validator's observation of this record is here already."""
        record, validator = signed.observation.record, signed.observation.validator
        pending = self._records.get(record)
        if pending is not None and validator in pending.by_validator:
            return False
        held = self._held.setdefault(validator, OrderedDict())
        if len(held) >= PER_VALIDATOR:
            self._forget(next(iter(held)), validator)
        held[record] = now
        pending = self._records.setdefault(record, _Pending())
        pending.by_validator[validator] = signed
        if pending.enough_since is None and len(_agreeing(pending)) >= self._enough:
            pending.enough_since = now
        return True

    def holds(self, signed: SignedObservation) -> bool:
        """Is exactly this observation, signature included, in the pool (so that it was checked before)?"""
        pending = self._records.get(signed.observation.record)
        return pending is not None and pending.by_validator.get(signed.observation.validator) == signed

    def of(self, record: Digest) -> tuple[SignedObservation, ...]:
        """Observations of one record, ascending by validator."""
        pending = self._records.get(record)
        if pending is None:
            return ()
        return tuple(pending.by_validator[validator] for validator in sorted(pending.by_validator))

    def all(self) -> list[SignedObservation]:
        """Everything that waits, oldest record first."""
        return [signed for record in self._records for signed in self.of(record)]

    def enough(self) -> list[Digest]:
        """Records with enough observations, oldest first."""
        return [record for record, pending in self._records.items() if pending.enough_since is not None]

    def wait_s(self, record: Digest, now: float) -> float:
        """Seconds until a record with enough observations is due: 0.0 once all n are here."""
        pending = self._records[record]
        if pending.enough_since is None or len(_agreeing(pending)) == self._all:
            return 0.0
        return max(0.0, pending.enough_since + WAIT_FOR_ALL_S - now)

    def agreeing(self, record: Digest) -> tuple[SignedObservation, ...]:
        """The largest set of observations of `record` that belong together, ascending by validator."""
        pending = self._records.get(record)
        return _agreeing(pending) if pending is not None else ()

    def drop(self, record: Digest) -> None:
        """Forget a record: a block has it."""
        pending = self._records.pop(record, None)
        for validator in pending.by_validator if pending is not None else ():
            self._held[validator].pop(record, None)

    def expire(self, now: float) -> None:
        """Forget observations older than `EXPIRY_S`."""
        for validator, held in self._held.items():
            while held and next(iter(held.values())) + EXPIRY_S <= now:
                self._forget(next(iter(held)), validator)

    def __len__(self) -> int:
        return len(self._records)

    def _forget(self, record: Digest, validator: Address) -> None:
        del self._held[validator][record]
        pending = self._records[record]
        del pending.by_validator[validator]
        if not pending.by_validator:
            del self._records[record]
        elif len(_agreeing(pending)) < self._enough:
            pending.enough_since = None


def _agreeing(pending: _Pending) -> tuple[SignedObservation, ...]:
    groups: dict[tuple[object, ...], list[SignedObservation]] = {}
    for validator in sorted(pending.by_validator):
        signed = pending.by_validator[validator]
        groups.setdefault(_about(signed.observation), []).append(signed)
    return max((tuple(group) for group in groups.values()), key=len)


def _about(observation: Observation) -> tuple[object, ...]:
    names = tuple(score.name for score in observation.scores)
    return (observation.generator, observation.request_key, observation.rubric, names)
