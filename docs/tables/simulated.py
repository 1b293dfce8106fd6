"""Simulated peers beside real ones."""

from __future__ import annotations

from tables.pieces import table


def messages() -> str:
    """The last measurement, with its machine."""
    from nsllm.simulations.comparison import measured

    found = measured()
    about = (
        f"{found.peers} peers, {found.questions} questions within {found.seconds:.0f} s; real ones on"
        f" {found.machine.cpu}, {found.machine.cores} cores, {found.machine.date}, `{found.machine.command}`."
    )
    rows = [
        (row.counted, f"{row.real:,}", f"{row.simulated:,}", _ratio(row.ratio), _ratio(row.per_block))
        for row in found.rows
    ]
    return f"{about}\n\n{table(('counted', 'real', 'simulated', 'simulated / real', 'for one block'), rows)}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
