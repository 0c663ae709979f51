"""Without its package or without a GPU, nvFSDP says which of them it lacks."""

import importlib.util

import pytest
import torch

from automodel_core.errors import UserError
from automodel_distributed.nvfsdp import NvFSDPManager


@pytest.mark.skipif(
    importlib.util.find_spec("megatron_fsdp") is not None, reason="the package is installed"
)
def test_without_its_package_it_is_refused_by_name():
    with pytest.raises(UserError, match="megatron-fsdp, which isn't installed") as refused:
        NvFSDPManager()
    assert "pip install megatron-fsdp" in refused.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(tmp_path, monkeypatch):
    (tmp_path / "megatron_fsdp.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs NVIDIA GPUs"):
        NvFSDPManager()


@pytest.mark.parametrize("name", ["tp_size", "cp_size"])
def test_tensor_and_context_parallelism_are_left_to_fsdp2(name):
    with pytest.raises(UserError, match=r"no (tensor|context) parallelism") as refused:
        NvFSDPManager(**{name: 2})
    assert refused.value.argument == name
