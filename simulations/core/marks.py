"""Marks on the blocks of a schedule: what stands for their content, since bodies are left out."""

from __future__ import annotations

from typing import Final

from nsllm.consensus.block import Block

SALTS: Final = 1000
"""A header's `log_size` is the number of the build times this, plus the block's mark."""
SOUND: Final = 0
OTHERWISE: Final = 1
"""A second block by the same proposer for the same round."""
CENSORED: Final = 3
"""Leaves out what every honest proposer would put in."""
REFUSED: Final = 7
"""The application refuses it."""


def is_refused(block: Block) -> bool:
    """Whether every honest application finds the block invalid."""
    return block.header.log_size % SALTS == REFUSED


def is_censored(block: Block) -> bool:
    """Whether the block leaves out what honest validators want decided."""
    return block.header.log_size % SALTS == CENSORED
