"""torchtitan's Llama, with its own compiled layers, attention and compiled loss, as a contestant.

Its head isn't tied to the embedding: it starts as a copy and trains on its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class Titan(nn.Module):
    """A language model whose forward pass ends in the mean loss.

    Args:
        folder: A Llama as transformers stores it, in one file.
        length: Tokens of a row.
        device: Layers and loss are compiled on a GPU.
    """

    def __init__(self, folder: Path, length: int, device: torch.device) -> None:
        super().__init__()
        from torchtitan.components.loss import build_cross_entropy_loss
        from torchtitan.config import JobConfig
        from torchtitan.models.llama3.infra.parallelize import apply_compile

        self.model = stored(folder, length, device)
        job = JobConfig()
        job.compile.enable = device.type == "cuda"
        job.compile.components = ["model", "loss"]
        if job.compile.enable:
            apply_compile(self.model, job.compile)
        self.loss = build_cross_entropy_loss(job)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return self.loss(self.model(ids), targets) / (targets != -100).sum()

    def shard(self, mesh: torch.distributed.DeviceMesh) -> None:
        """Spread over several GPUs, as torchtitan does it: FSDP2, gradients reduced in float32."""
        from torchtitan.models.llama3.infra.parallelize import apply_fsdp

        apply_fsdp(self.model, mesh, torch.bfloat16, torch.float32, pp_enabled=False)


def stored(folder: Path, length: int, device: torch.device) -> nn.Module:
    """torchtitan's model with the weights of transformers', in bfloat16."""
    from safetensors.torch import load_file
    from torchtitan.models.llama3.model.args import RoPEScalingArgs, TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer
    from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
    from transformers import AutoConfig

    llama = AutoConfig.from_pretrained(folder)
    args = TransformerModelArgs(
        dim=llama.hidden_size,
        n_layers=llama.num_hidden_layers,
        n_heads=llama.num_attention_heads,
        n_kv_heads=llama.num_key_value_heads,
        vocab_size=llama.vocab_size,
        ffn_dim_multiplier=0.5,  # of 8/3 of the width, rounded up to a multiple of what it is
        multiple_of=llama.intermediate_size,
        norm_eps=llama.rms_norm_eps,
        rope_theta=llama.rope_parameters["rope_theta"],
        rope_scaling_args=RoPEScalingArgs(scaling_factor=1.0),
        max_seq_len=length,
    )
    with device:
        model = Transformer(args)
        angles = model.freqs_cis
    for each in model.parameters():
        each.data = each.data.bfloat16()
    weights = load_file(folder / "model.safetensors", device=str(device))
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(Llama3StateDictAdapter(args, None).from_hf(weights))
    model.freqs_cis = angles
    return model
