"""AdamW with 8-bit means: near PyTorch's, smaller, and saved and read back exactly."""

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import distribute_tensor

from automodel_core.errors import UserError
from automodel_optimizers.eight_bit import adamw_8bit


def test_without_torchao_it_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match="torchao, which isn't installed") as refused:
        adamw_8bit([torch.nn.Parameter(torch.ones(4))])
    assert "pip install torchao" in refused.value.fix


@pytest.fixture(scope="module")
def torchao():
    return pytest.importorskip("torchao")


@pytest.mark.usefixtures("torchao")
def test_it_follows_pytorchs_adamw_with_a_byte_for_each_mean():
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    keys = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    first, second = adamw_8bit([ours], **keys), torch.optim.AdamW([theirs], **keys)
    for _ in range(10):
        theirs.grad = torch.randn(64, 128) + start.sign()
        ours.grad = theirs.grad.clone()
        first.step()
        second.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved
    assert first.param_groups[0]["lr"] == 1e-2
    sizes = {name: each.nbytes for name, each in first.state[ours].items() if each.dim()}
    assert sizes == {
        "exp_avg": 64 * 128,
        "exp_avg_scale": 4 * 32,
        "exp_avg_sq": 64 * 128,
        "exp_avg_sq_scale": 4 * 32,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
def test_a_run_with_it_resumes_bitwise(automodel):
    from tests.same_run import assert_same_losses_and_tensors, tensors

    how = {
        "model": {"torch_dtype": "bfloat16"},
        "optimizer": {"_target_": "adamw_8bit", "lr": 1e-3},
    }
    whole = automodel(how, folder="whole")
    assert whole.code == 0, whole.out
    assert any(each.dtype == torch.uint8 for each in tensors(whole).values())
    automodel({**how, "step_scheduler": {"max_steps": 2}}, folder="parts")
    assert_same_losses_and_tensors(automodel(how, folder="parts"), whole)


@pytest.mark.usefixtures("torchao")
def test_parameters_that_are_cut_over_ranks_are_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        cut = torch.nn.Parameter(distribute_tensor(torch.ones(4096, 2), mesh))
        with pytest.raises(ValueError, match="cut over GPUs"):
            adamw_8bit([cut])
    finally:
        dist.destroy_process_group()
