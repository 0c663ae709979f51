"""Processes that several files of tests share: starting them takes longer than a test."""

from __future__ import annotations

import pytest

from tests.processes import Processes


@pytest.fixture(scope="session")
def two():
    """Two processes of one group."""
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="session")
def four():
    """Four processes of one group."""
    with Processes(4) as processes:
        yield processes
