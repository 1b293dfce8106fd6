"""Which Byzantine validator has which habit."""

from __future__ import annotations

from typing import Final

from nsllm.simulations.core import adversary
from nsllm.simulations.core.adversary import Byzantine
from nsllm.simulations.core.plan import Fault
from nsllm.simulations.core.schemer import Schemer

HABITS: Final[dict[Fault, type[Byzantine]]] = {
    "silent": adversary.Silent,
    "equivocator": adversary.Equivocator,
    "twin": adversary.Twin,
    "selective": adversary.Selective,
    "withholding leader": adversary.WithholdingLeader,
    "censor": adversary.Censor,
    "late voter": adversary.LateVoter,
    "amnesiac": adversary.Amnesiac,
    "flooder": adversary.Flooder,
    "liar": adversary.Liar,
    "schemer": Schemer,
    "two-faced": adversary.TwoFaced,
}
