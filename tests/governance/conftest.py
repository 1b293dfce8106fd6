"""Networks of known keys; see `tests/ledgers.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ledgers import AnchorNetwork, LedgerNetwork


@pytest.fixture
def anchor_network() -> Callable[..., AnchorNetwork]:
    """Makes a network of so many validators: `anchor_network(4)`, `anchor_network(4, "another")`."""
    return AnchorNetwork.of


@pytest.fixture
def net(ledger_network: Callable[..., LedgerNetwork]) -> LedgerNetwork:
    """Four validators."""
    return ledger_network(4)
