"""The floating-point operations that a step of a language model needs, by formula.

As in "PaLM" (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B): a matrix product
takes 2 operations for each weight and token, its backward pass as many for the activations and as
many again for the weights if they train. So full fine-tuning takes 6 N for each token, and adapters
beside a frozen base 4 N + 6 N_adapters. N counts linear layers, the output embeddings among them,
and not the lookup of the input embeddings. What is computed twice (activation checkpointing), or
left out (rows that nothing is learned from, before the output embeddings), changes neither.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

CONVENTION = "model FLOPs: 6N + causal attention for each real token, 4N where weights are frozen"

# Dense bfloat16 products on tensor cores, FLOP/s, by what the device's name holds (makers' sheets).
PEAK_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@attrs.frozen
class StepFlops:
    """What a step costs.

    Attributes:
        weights: Operations for each token in products with weights.
        attention: Operations for each token and token before it, in all layers.
    """

    weights: int
    attention: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> StepFlops | None:
        """Count a model that is ready to train; None for one that the formula doesn't fit: with
        towers beside its language model, with experts, or without softmax attention."""
        config = model.config
        text = config.get_text_config()
        heads = getattr(text, "num_attention_heads", None)
        experts = ("num_experts", "num_local_experts", "n_routed_experts")
        if text is not config or not heads or any(getattr(text, each, None) for each in experts):
            return None
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        linear = {
            id(module.weight): module.weight
            for module in model.modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        head = model.get_output_embeddings()
        if head is not None:  # tied or not, it is multiplied with
            linear[id(head.weight)] = head.weight
        base = sum(4 * w.numel() + 2 * w.numel() * w.requires_grad for w in linear.values())
        lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        beside = sum(
            p.numel()
            for p in model.parameters()
            if p.requires_grad and p.dim() == 2 and id(p) not in linear.keys() | lookups
        )
        return cls(base + 6 * beside, 12 * text.num_hidden_layers * heads * head_dim)

    def step(self, lengths: Iterable[int]) -> float:
        """All operations of a step.

        Args:
            lengths: Tokens of each document in it; token i attends to i others on average half.
        """
        return float(sum(n * self.weights + self.attention * n * n / 2 for n in lengths))


def peak_of(device: torch.device) -> float | None:
    """The device's peak in bfloat16, FLOP/s; None if it isn't known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)
