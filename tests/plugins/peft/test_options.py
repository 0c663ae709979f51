"""Refusals of values, and the guards on what trains."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from automodel_core.errors import GuardStop, UserError
from automodel_peft.checks import check_trainable
from automodel_peft.choice import chosen_method, fastest
from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from automodel_peft.lora_plus import LoraPlus
from automodel_peft.pissa import Pissa
from tests.plugins.peft.models import adapted, llama, train


@pytest.mark.parametrize(
    ("make", "settings", "argument"),
    [
        (PeftConfig, {"use_triton": True, "dropout": 0.1}, "use_triton"),
        (PeftConfig, {"dim": 0}, "dim"),
        (PeftConfig, {"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        (PeftConfig, {"dropout": 1.0}, "dropout"),
        (PeftConfig, {"adapter_dtype": "int8"}, "adapter_dtype"),
        (PeftConfig, {"adapter_path": "x", "rank_pattern": {"q": 1}}, "rank_pattern"),
        (LoraPlus, {"lr_ratio": 0.0}, "lr_ratio"),
        (Pissa, {"adapter_path": "x"}, "adapter_path"),
    ],
)
def test_values_that_mean_nothing(make, settings, argument):
    with pytest.raises(UserError) as raised:
        make(**settings)
    assert raised.value.argument == argument
    assert raised.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the kernels")
def test_triton_says_what_to_do():
    with pytest.raises(UserError) as raised:
        PeftConfig(use_triton=True)
    assert "peft.use_triton=false" in raised.value.fix
    PeftConfig(use_triton=False)


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (PeftConfig, {"dropout": 0.1}, "dropout is 0.1"),
        (Dora, {}, "none for DoRA"),
    ],
)
def test_triton_says_why_not(make, settings, reason):
    with pytest.raises(UserError, match=reason):
        make(use_triton=True, **settings)
    make(use_triton="auto", **settings)


@pytest.mark.parametrize(
    ("module", "rank", "reason"),
    [
        (nn.Linear(4, 4), 512, "up to rank 256"),
        (Conv1D(4, 4), 8, "Conv1D has a product of its own"),
    ],
)
def test_triton_says_which_layer_it_has_no_kernels_for(module, rank, reason):
    with pytest.raises(UserError, match=reason):
        chosen_method(True, module, rank)
    assert chosen_method("auto", module, rank) == chosen_method(False, module, rank) == "plain"


@pytest.mark.parametrize(
    ("shape", "rank", "method"),
    [
        ((4096, 14336), 16, "triton_once"),
        ((14336, 4096), 64, "triton_add"),
        ((4096, 1024), 16, "lean"),
    ],
)
def test_auto_takes_what_measured_fastest(shape, rank, method):
    """As docs/benchmarks/lora.md has it."""
    assert fastest(*shape, rank) == method


def test_auto_leaves_layers_alone_that_were_not_measured():
    wide = nn.Linear(4096, 4096, device="meta", dtype=torch.float32)
    assert chosen_method("auto", wide, 16) == "plain"


@pytest.mark.parametrize("argument", ["rank_pattern", "alpha_pattern"])
def test_patterns_of_sizes_must_mean_an_adapted_module(argument):
    config = PeftConfig(include_modules=["q_proj"], **{argument: {"v_proj": 2}})
    with pytest.raises(UserError) as raised:
        config.select(llama())
    assert raised.value.argument == argument


def test_pissa_needs_a_weight_of_its_rank():
    with pytest.raises(UserError, match="no part of rank 20") as raised:
        Pissa(dim=20, include_modules=["k_proj"]).apply(llama())
    assert raised.value.argument == "dim"


def test_a_bfloat16_adapter_if_asked_for():
    model = adapted(PeftConfig(adapter_dtype="torch.bfloat16"), llama())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


def test_an_adapter_that_trained_passes():
    config, model = PeftConfig(), llama()
    config.apply(model)
    train(model, config.parameter_groups(model, 1e-3), 1)
    config.check(model)


def test_an_adapter_that_did_not_change_stops_the_run():
    config, model = PeftConfig(), llama()
    config.apply(model)
    train(model, config.parameter_groups(model, 0.0), 2)
    with pytest.raises(GuardStop, match="has changed since the start") as raised:
        config.check(model)
    assert raised.value.guard == "adapter_unchanged"


def test_an_update_that_stays_zero_stops_the_run():
    config, model = PeftConfig(include_modules=["q_proj"]), llama()
    config.apply(model)
    for layer in model.model.layers:
        layer.self_attn.q_proj.lora_A.data.mul_(0.5)  # as weight decay does
    with pytest.raises(GuardStop, match="still zero"):
        config.check(model)


@pytest.mark.parametrize("make", [PeftConfig, Dora, Pissa])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_frozen_weights_that_train_stop_the_run(make, name):
    config, model = make(modules_to_save=["lm_head"]), llama()
    config.apply(model)
    check_trainable(model)
    model.get_parameter(name).requires_grad_(True)
    with pytest.raises(GuardStop, match=f"belongs to no adapter: {name}.") as raised:
        config.check(model)
    assert raised.value.guard == "frozen_weights_train"
