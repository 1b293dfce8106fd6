"""What every part of a peer shares: who we are, which network this is, and the world's ports."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from nsllm.clock import Clock
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import CertificateError
from nsllm.consensus.observation import ScoreLeaf
from nsllm.consensus.registry import MemberRegistry
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.governance.errors import PolicyError
from nsllm.governance.genesis import Genesis
from nsllm.governance.policy import Policy
from nsllm.ids import Address, Digest, Height, NetworkId, Ppm
from nsllm.node.events import EventBus
from nsllm.offload import Offload


class Standing(Protocol):
    """What the last block left in force, and what earlier epochs had. The ledger is one."""

    @property
    def registry(self) -> MemberRegistry:
        """Members."""
        ...

    @property
    def validators(self) -> ValidatorSet:
        """Who decides the next height."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        ...

    def validators_of(self, epoch: int) -> ValidatorSet | None:
        """The validators of an epoch; None if it has not begun."""
        ...

    def policy_of(self, epoch: int) -> Policy | None:
        """The policy of an epoch; None if it has not begun."""
        ...


@dataclass(frozen=True, slots=True)
class PeerContext:
    """Shared by the parts of one peer; holds no behaviour."""

    genesis: Genesis
    network_id: NetworkId
    standing: Standing
    key: MemberKey
    clock: Clock
    offload: Offload
    rng: random.Random
    events: EventBus

    @property
    def address(self) -> Address:
        """Our member address."""
        return self.key.address

    def retracted_at(self, record: Digest) -> Height | None:
        """Height at which validators took a record back; None if they have not."""
        return self.standing.registry.state.retracted_at(record)

    @property
    def policy(self) -> Policy:
        """The policy in force at the next height."""
        return self.standing.policy

    @property
    def registry(self) -> MemberRegistry:
        """Members after the last block."""
        return self.standing.registry

    @property
    def validators(self) -> ValidatorSet:
        """The validators that decide the next height."""
        return self.standing.validators

    def validators_of(self, certificate: Certificate) -> ValidatorSet:
        """The validators whose certificate this claims to be.

        Raises:
            CertificateError: its epoch has not begun, as far as we know.
        """
        epoch = certificate.header.epoch
        validators = self.standing.validators_of(epoch)
        if validators is None:
            raise CertificateError(f"certificate of epoch {epoch}, ours is {self.validators.epoch}")
        return validators

    def score_of(self, leaf: ScoreLeaf, epoch: int) -> Ppm:
        """Hybrid score of a record under the policy of the epoch that certified it.

        Raises:
            PolicyError: the epoch is unknown here, or its rubric is another.
        """
        policy = self.standing.policy_of(epoch)
        if policy is None:
            raise PolicyError(f"scores of epoch {epoch}, ours is {self.validators.epoch}")
        return policy.hybrid_ppm(leaf)

    @property
    def is_validator(self) -> bool:
        """True if we are in the validator set."""
        return self.key.address in self.validators
