"""What a validator of a schedule acts on: the port that `nsllm.simulations.core.world.World` implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from nsllm.consensus.block import Block, DecidedBlock
from nsllm.consensus.effects import Accuse
from nsllm.consensus.inputs import Input
from nsllm.consensus.message import Body as Message
from nsllm.consensus.validators import ValidatorSet
from nsllm.consensus.vote import Proposal, Vote
from nsllm.ids import Height, TimeMs

if TYPE_CHECKING:
    from nsllm.simulations.core.validator import Validator


class PowerCut(Exception):  # noqa: N818 - not an error: it is planned
    """The validator lost power here."""


class Surroundings(Protocol):
    """Time, links, the application's verdict, and a place to say what happened."""

    validators: ValidatorSet
    now_s: float

    def send(self, sender: Validator, to: Iterable[int], body: Message, delay_s: float = 0.0) -> None:
        """Put a message on its way to some validators."""
        ...

    def whisper(self, sender: Validator, to: int, world: int, body: Message) -> None:
        """Put a message on its way to whoever stands in one of two worlds, see the guide "two worlds"."""
        ...

    def stands_in(self, index: int, world: int) -> bool:
        """Whether a validator stands in one of two worlds; Byzantine ones stand in both."""
        ...

    def later(self, validator: Validator, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so long by the validator's clock, unless it restarts before."""
        ...

    def wall_ms(self, validator: Validator) -> TimeMs:
        """What the validator's clock shows."""
        ...

    def signs(self, validator: Validator, message: Vote | Proposal) -> None:
        """A signature leaves a validator."""
        ...

    def refuses(self, validator: Validator, message: Vote | Proposal) -> None:
        """A validator's guard refuses to sign."""
        ...

    def builds(self, block: Block) -> None:
        """A block exists."""
        ...

    def commits(self, validator: Validator, decided: DecidedBlock) -> None:
        """A validator decided, or caught up."""
        ...

    def accuses(self, validator: Validator, effect: Accuse) -> None:
        """A validator reports two messages that contradict each other."""
        ...

    def keeps(self, log: list[Input]) -> None:
        """An honest validator is done with a height: this is its log."""
        ...

    def block_after(self, asker: Validator, height: Height) -> DecidedBlock | None:
        """A block from some peer that can be reached, if it has it."""
        ...

    def victim(self, height: int) -> int:
        """Whom the adversary treats apart at a height."""
        ...

    def secret_round(self, height: int) -> int:
        """The round in which the victim is to decide."""
        ...

    def forgetful(self, height: int) -> bool:
        """Whether schemers rather forget than contradict themselves at a height; they must be more than f."""
        ...

    def wanted(self, validator: Validator) -> bool:
        """Whether a block is wanted at the height where the validator stands."""
        ...

    def survives(self, synced: int, written: int) -> int:
        """How many entries of a log are left after a power cut."""
        ...
