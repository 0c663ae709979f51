"""Sizes of one are plain one process; anything else is refused by name."""

import pytest

from automodel_core.errors import UserError
from automodel_distributed.managers import DDPManager, FSDP2Manager


def test_the_references_example_is_one_process():
    sizes = {"dp_size": None, "dp_replicate_size": 1, "tp_size": 1, "cp_size": 1}
    assert FSDP2Manager(**sizes, sequence_parallel=False) == FSDP2Manager()
    assert FSDP2Manager(dp_size=1).dp_size == 1
    DDPManager()


@pytest.mark.parametrize("name", ["dp_size", "dp_replicate_size", "tp_size", "cp_size"])
@pytest.mark.parametrize("size", [2, 8])
def test_larger_sizes_are_not_available_yet(name, size):
    with pytest.raises(UserError, match=f"{name}: {size} isn't available yet") as refused:
        FSDP2Manager(**{name: size})
    assert refused.value.argument == name


@pytest.mark.parametrize("name", ["dp_size", "dp_replicate_size", "tp_size", "cp_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_make_no_sense(name, size):
    with pytest.raises(UserError, match="counts ranks") as refused:
        FSDP2Manager(**{name: size})
    assert refused.value.argument == name


def test_sequence_parallel_needs_tensor_parallelism():
    with pytest.raises(UserError, match="tensor parallelism") as refused:
        FSDP2Manager(sequence_parallel=True)
    assert refused.value.argument == "sequence_parallel"
