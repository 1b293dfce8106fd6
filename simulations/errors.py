"""What can go wrong with whole networks.

SimulationError
├── DevnetError            a devnet that cannot start: says which peer and shows the end of its log
├── ScenarioError          what must hold in a simulation did not: says how to replay it
│   └── InvariantError     agreement broke a promise in a schedule of faults
├── UnknownScenarioError   (UsageError) no scenario of that name
├── PlanError              (UsageError) not a schedule's plan
└── PatchError             a mutant's text does not stand in the code any more
"""

from __future__ import annotations

from nsllm.errors import NsllmError, UsageError


class SimulationError(NsllmError):
    """Root of this room's errors."""

    code = "simulation_error"


class DevnetError(SimulationError):
    """A devnet that cannot start."""

    code = "devnet_failed"


class ScenarioError(SimulationError):
    """What must hold in a simulation did not."""

    code = "scenario_failed"


class UnknownScenarioError(SimulationError, UsageError):
    """No scenario of that name."""

    code = "unknown_scenario"


class InvariantError(ScenarioError):
    """Something that consensus promises did not hold in a schedule."""

    code = "invariant_broken"


class PlanError(SimulationError, UsageError):
    """Not the plan of a schedule."""

    code = "bad_plan"


class PatchError(SimulationError):
    """A mutant's text does not stand in the module as it should."""

    code = "bad_patch"
