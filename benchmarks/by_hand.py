"""The training loop that somebody would write for one Llama alone, as a contestant of benchmarks.

    torchrun --standalone --nproc-per-node 2 benchmarks/by_hand.py MODEL OUT.json --with fsdp2

bfloat16 weights, torch.compile on each decoder layer, SDPA with cuDNN's kernels first, the head and
its loss in chunks of 2,048 tokens that are computed again in the backward pass, fused AdamW. On
several GPUs by PyTorch's FSDP2 alone, or by accelerate's; or torchtitan's model with its own of all
these. A step ends with an event on the device; nothing waits in between. Writes seconds of each
step, losses and peak memory of rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CHUNK, MASKED = 2048, 0.3
ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


class WithLoss(nn.Module):
    """A language model whose forward pass ends in the mean loss."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return self.loss(hidden, labels)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean over what is learned, of the base model's last hidden states."""
        hidden, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = sum(
            checkpoint(self.chunk, some, wanted, use_reentrant=False)
            for some, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        )
        return total / (targets != -100).sum()

    def chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return summed(self.model.lm_head(hidden), targets)


@torch.compile(disable=not torch.cuda.is_available())
def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in float32, in one kernel that never stores the logits in it."""
    return cross_entropy(logits.float(), targets, reduction="sum")


def llama(folder: Path) -> WithLoss:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    for layer in model.model.layers:
        layer.compile()
    return WithLoss(model).train()


def fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def with_fsdp2(folder: Path, length: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """PyTorch alone; on one GPU the model as it is."""
    model = llama(folder)
    if dist.get_world_size() > 1:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for layer in model.model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    return model, fused_adamw(model)


def with_accelerate(folder: Path, length: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """accelerate's FSDP2, which also needs to be told the layers' class."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
    )
    accelerator = Accelerator(fsdp_plugin=plugin if dist.get_world_size() > 1 else None)
    model = llama(folder)
    return accelerator.prepare(model, fused_adamw(model))


def with_torchtitan(folder: Path, length: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """torchtitan's model, compilation, loss and FSDP2 in this loop."""
    from titan import Titan

    model = Titan(folder, length, torch.device("cuda")).train()
    if dist.get_world_size() > 1:
        model.shard(init_device_mesh("cuda", (dist.get_world_size(),)))
    return model, fused_adamw(model)


WAYS = {"fsdp2": with_fsdp2, "accelerate": with_accelerate, "torchtitan": with_torchtitan}


def batch(vocabulary: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, of which the first 30% of each row aren't learned."""
    ids = torch.randint(0, vocabulary, (rows, length), device="cuda")
    labels = ids.clone()
    labels[:, : int(MASKED * length)] = -100
    return ids, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--with", dest="way", choices=WAYS, default="fsdp2")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    torch.manual_seed(rank)
    model, optimizer = WAYS[options.way](options.model, options.length)
    vocabulary = AutoConfig.from_pretrained(options.model).vocab_size
    ids, labels = batch(vocabulary, options.rows, options.length)
    ends, losses = [torch.cuda.Event(enable_timing=True)], []
    ends[0].record()
    with sdpa_kernel(ORDER, set_priority=True):
        for _ in range(options.steps):
            loss = model(ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record()
    torch.cuda.synchronize()
    found = {
        "seconds": [a.elapsed_time(b) / 1000 for a, b in pairwise(ends)],
        "losses": [each.item() for each in losses],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    if rank == 0:
        options.out.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
