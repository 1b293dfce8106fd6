"""What holds for all tests: no property has a deadline, because the time that a busy machine takes says nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from ledgers import LedgerNetwork

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def ledger_network() -> Callable[..., LedgerNetwork]:
    """Makes a network of so many validators: `ledger_network(4)`."""
    return LedgerNetwork
