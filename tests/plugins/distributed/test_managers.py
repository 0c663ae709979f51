"""The sizes of a mesh, what is refused, and that one process pays nothing."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from automodel_core.errors import UserError
from automodel_core.protocols import Sizes
from automodel_core.train.precision import PrecisionPlan
from automodel_distributed.fully_sharded import are_small
from automodel_distributed.managers import DDPManager, FSDP2Manager
from tests.plugins.distributed.training import Case, build_model

NAMES = ["dp_size", "dp_replicate_size", "tp_size", "cp_size"]


def test_the_references_example_is_one_process():
    sizes = {"dp_size": None, "dp_replicate_size": 1, "tp_size": 1, "cp_size": 1}
    assert FSDP2Manager(**sizes, sequence_parallel=False) == FSDP2Manager()
    assert FSDP2Manager(dp_size=1).sizes(1) == Sizes(1, 1, 1, 1)
    assert DDPManager().sizes(1) == Sizes(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("world_size", "options", "expected"),
    [
        (8, {}, Sizes(1, 8, 1, 1)),
        (8, {"dp_size": 8, "dp_replicate_size": 2}, Sizes(2, 4, 1, 1)),
        (8, {"dp_replicate_size": 8}, Sizes(8, 1, 1, 1)),
        (8, {"tp_size": 2}, Sizes(1, 4, 1, 2)),
        (8, {"tp_size": 2, "cp_size": 2, "dp_replicate_size": 2}, Sizes(2, 1, 2, 2)),
    ],
)
def test_ranks_left_over_are_data_parallel(world_size, options, expected):
    assert FSDP2Manager(**options).sizes(world_size) == expected


@pytest.mark.parametrize(
    ("world_size", "options", "message", "argument"),
    [
        (8, {"dp_size": 4}, "dp_size 4 x tp_size 1 x cp_size 1 = 4 ranks.*8 processes", "dp_size"),
        (1, {"tp_size": 2}, "tp_size 2 x cp_size 1 = 2 ranks.*1 process of", "tp_size"),
        (6, {"cp_size": 4}, "tp_size 1 x cp_size 4 = 4 ranks.*6 processes", "cp_size"),
        (8, {"dp_replicate_size": 3}, "8 / 3 leaves a rest of 2", "dp_replicate_size"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_world_are_refused_with_the_arithmetic(
    world_size, options, message, argument
):
    with pytest.raises(UserError, match=message) as refused:
        FSDP2Manager(**options).sizes(world_size)
    assert refused.value.argument == argument


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_make_no_sense(name, size):
    with pytest.raises(UserError, match="counts ranks") as refused:
        FSDP2Manager(**{name: size})
    assert refused.value.argument == name


def test_sequence_parallel_needs_tensor_parallelism():
    with pytest.raises(UserError, match="tensor parallelism") as refused:
        FSDP2Manager(sequence_parallel=True)
    assert refused.value.argument == "sequence_parallel"


@pytest.mark.parametrize("manager", [DDPManager(), FSDP2Manager()])
def test_one_process_leaves_the_model_as_it_is(manager):
    model = build_model(Case())
    before = (type(model), list(model.parameters()), len(model._forward_hooks))
    spread = manager.parallelize(
        model, None, PrecisionPlan(torch.float32, torch.bfloat16, False, "")
    )
    assert spread is model
    assert before[0] is type(model)
    assert all(x is y for x, y in zip(before[1], model.parameters(), strict=True))
    assert before[2] == len(model._forward_hooks)
    assert manager.one_pass(spread, len) is len


def kept(memories):
    """What a rank decides for a layer of 256 bytes, on GPUs of so many."""
    found = SimpleNamespace(total_memory=memories[dist.get_rank()])
    with mock.patch("torch.cuda.get_device_properties", return_value=found):
        layers = [[torch.nn.Linear(8, 8, bias=False)]]
        return are_small(layers, torch.float32, SimpleNamespace(device_type="cuda"))


@pytest.mark.parametrize(
    ("memories", "expected"), [((8192, 8192), True), ((8192, 8191), False), ((8191, 8192), False)]
)
def test_ranks_of_unlike_gpus_agree_on_which_layers_they_keep(two_ranks, memories, expected):
    assert two_ranks.run(kept, memories) == [expected, expected]
