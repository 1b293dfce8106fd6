"""What can go wrong with whole networks.

SimulationError
└── DevnetError    a devnet that cannot start: says which peer and shows the end of its log
"""

from __future__ import annotations

from nsllm.errors import NsllmError


class SimulationError(NsllmError):
    """Root of this room's errors."""

    code = "simulation_error"


class DevnetError(SimulationError):
    """A devnet that cannot start."""

    code = "devnet_failed"
