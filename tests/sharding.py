"""Tiny models on the meta device, and the ways to shard them, with PyTorch's own means."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

# Layouts by the sizes of (replicated, sharded, tensor parallel) groups.
ALONE, FSDP_2, HSDP_2, TP_2 = (1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)
FSDP_4, HSDP_4, FSDP_TP_4, HSDP_TP_4 = (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)


def odd_llama(**changes) -> LlamaConfig:
    """Sizes that don't divide evenly where tensor parallelism doesn't need them to."""
    sizes = {
        "vocab_size": 101, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaConfig(**(sizes | changes))


def three_gigabytes() -> LlamaConfig:
    """1.5 billion parameters."""
    return LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=21,
        num_attention_heads=16, num_key_value_heads=16,
    )  # fmt: skip


def on_meta(config: PretrainedConfig, dtype: torch.dtype = torch.float32):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def shard(model, layout: tuple[int, int, int]):
    """Tensor parallel layers first, then FSDP2 over each layer and the rest."""
    if layout == ALONE:
        return model
    replicas, shards, tensor = layout
    mesh = init_device_mesh("cpu", layout, mesh_dim_names=("replicate", "shard", "tp"))
    if tensor > 1:
        column, row = ColwiseParallel(), RowwiseParallel()
        plan = {"q_proj": column, "k_proj": column, "v_proj": column, "o_proj": row,
                "gate_proj": column, "up_proj": column, "down_proj": row}  # fmt: skip
        for layer in model.model.layers:
            within = {f"self_attn.{k}" if k[1] == "_" else f"mlp.{k}": x for k, x in plan.items()}
            parallelize_module(layer, mesh["tp"], within)
    if replicas * shards > 1:
        over = mesh["replicate", "shard"] if replicas > 1 else mesh["shard"]
        for layer in model.model.layers:
            fully_shard(layer, mesh=over)
        fully_shard(model, mesh=over)
    return model


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_shards(model, other) -> None:
    """Both models hold the same: values, types and ties of parameters and buffers."""
    named, expected = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (model, other))
    assert named.keys() == expected.keys()
    for name, tensor in named.items():
        assert local(tensor).dtype == local(expected[name]).dtype, name
        assert torch.equal(local(tensor), local(expected[name])), name


def loss_of(model) -> float:
    tokens = torch.arange(40).reshape(2, 20) % model.config.vocab_size
    with torch.no_grad():
        return float(model(tokens, labels=tokens).loss)
