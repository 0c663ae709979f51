"""The helper that runs a function on many ranks tells what went wrong, and goes on."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import Ranks


def add_ranks():
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return total.item()


def fail_on_one():
    if dist.get_rank() == 1:
        raise ValueError("the one at fault")
    add_ranks()


def die_on_one():
    if dist.get_rank() == 1:
        os._exit(7)
    add_ranks()


def sleep():
    time.sleep(60)


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_does_not_spoil_the_next():
    ranks = Ranks(2)
    try:
        assert ranks.run(add_ranks) == [1.0, 1.0]
        with pytest.raises(RuntimeError, match="the one at fault"):
            ranks.run(fail_on_one)
        with pytest.raises(RuntimeError, match=r"rank \d of 2"):
            ranks.run(die_on_one)
        with pytest.raises(RuntimeError, match="took too long"):
            ranks.run(sleep, timeout=20)
        assert ranks.run(add_ranks) == [1.0, 1.0]
    finally:
        ranks.stop()
