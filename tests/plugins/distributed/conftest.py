"""Two and four processes, started when first asked for and shared by all tests."""

import pytest

from tests.ranks import Ranks


def _ranks(size):
    ranks = Ranks(size)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def one_rank():
    yield from _ranks(1)


@pytest.fixture(scope="session")
def two_ranks():
    yield from _ranks(2)


@pytest.fixture(scope="session")
def four_ranks():
    yield from _ranks(4)
