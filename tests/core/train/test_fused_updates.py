"""Which optimizers are fused where the YAML doesn't say."""

from types import SimpleNamespace

import pytest

from automodel_core.config.schema import Target
from automodel_core.registry import Registry
from automodel_core.targets import Targets
from automodel_core.train.build import may_be_fused
from automodel_core.trust import Trust

ON_A_GPU = {"is_cuda": True, "requires_grad": True}


@pytest.mark.parametrize(
    ("name", "arguments", "parameter", "fused"),
    [
        ("adamw", {}, ON_A_GPU, True),
        ("sgd", {}, ON_A_GPU, True),
        ("adamw", {}, ON_A_GPU | {"device_mesh": "two ranks"}, True),
        ("sgd", {}, ON_A_GPU | {"device_mesh": "two ranks"}, False),  # PyTorch has no such kernel
        ("adamw", {"foreach": True}, ON_A_GPU, False),
        ("stochastic_adamw", {}, ON_A_GPU, False),
        ("adamw", {}, ON_A_GPU | {"is_cuda": False}, False),
    ],
)
def test_updates_are_fused_where_there_is_a_kernel_and_the_yaml_leaves_the_choice(
    name, arguments, parameter, fused
):
    targets = Targets(Registry.discover(), Trust.from_environment())
    config = SimpleNamespace(optimizer=Target(name, "optimizers", arguments, ("optimizer",)))
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(**parameter)])
    assert may_be_fused(config, SimpleNamespace(targets=targets), model) == fused
