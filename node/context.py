"""What every part of a peer shares: who we are, which network this is, and the world's ports."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nsllm.clock import Clock
from nsllm.consensus.registry import MemberRegistry
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import MemberKey
from nsllm.governance.genesis import Genesis
from nsllm.governance.policy import Policy
from nsllm.ids import Address, NetworkId
from nsllm.node.events import EventBus
from nsllm.offload import Offload


@dataclass(frozen=True, slots=True)
class PeerContext:
    """Shared by the parts of one peer; holds no behaviour."""

    genesis: Genesis
    network_id: NetworkId
    registry: MemberRegistry
    validators: ValidatorSet
    key: MemberKey
    clock: Clock
    offload: Offload
    rng: random.Random
    events: EventBus

    @property
    def address(self) -> Address:
        """Our member address."""
        return self.key.address

    @property
    def policy(self) -> Policy:
        """The policy in force: the genesis policy, until votes can change it."""
        return self.genesis.policy

    @property
    def is_validator(self) -> bool:
        """True if we are in the validator set."""
        return self.key.address in self.validators
