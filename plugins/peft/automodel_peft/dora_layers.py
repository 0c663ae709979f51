"""DoRA: the direction of each row of a weight is tuned by a low-rank update, its length by itself.

Liu et al. 2024, https://arxiv.org/abs/2402.09353: `m * (W + s B A) / |W + s B A|`, with one length
and one `m` per output feature. The lengths follow the update without a gradient (section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from automodel_peft.layers import (
    AdaptedLayer,
    LayerSettings,
    LoraEmbedding,
    LoraLinear,
    new_parameter,
    oriented_weight,
)


class _Lengths(AdaptedLayer):
    """The part that linear layers and embeddings have in common."""

    starts_from_weights: ClassVar[bool] = True

    def adapt(self, settings: LayerSettings) -> None:
        super().adapt(settings)
        squared = torch.linalg.vector_norm(oriented_weight(self), dim=1, dtype=torch.float32) ** 2
        self.register_buffer("base_lengths_squared", squared, persistent=False)
        self.lora_magnitude_vector = new_parameter(self.lengths(), self, settings)

    @classmethod
    def parameters_needed(cls, features_in: int, features_out: int, rank: int) -> int:
        return super().parameters_needed(features_in, features_out, rank) + features_out

    @torch.no_grad()
    def lengths(self) -> torch.Tensor:
        """`|W + s B A|` of every output feature, float32, without making the sum of the matrices.

        `|w + s b A|^2 = |w|^2 + 2 s (A w) . b + s^2 b (A A^T) . b`, row by row.
        """
        a, b = (factor.float() for factor in self.factors())
        weight, scale = oriented_weight(self), self.lora_scale
        crossed = (weight @ a.t().to(weight.dtype)).float() * b
        squared = (b @ (a @ a.t())) * b
        update = (2 * scale * crossed + scale**2 * squared).sum(dim=1)
        return (self.base_lengths_squared + update).sqrt()

    def rescale(self, combined: torch.Tensor) -> torch.Tensor:
        """`(W + s B A) x` with every output feature brought to its trained length."""
        return _ScaleFeatures.apply(combined, self.lora_magnitude_vector / self.lengths())


class DoraLinear(_Lengths, LoraLinear):
    """`m / |W + s B A| * (W + s B A) x + b`; the bias is not rescaled.

    With dropout only the update's input is dropped, not the frozen weight's.
    """

    stored: ClassVar[Mapping[str, str]] = LoraLinear.stored | {
        "lora_magnitude_vector": "lora_magnitude_vector"
    }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., features_in]` to `[..., features_out]`."""
        combined, bias = super().forward(x), getattr(self, "bias", None)
        if bias is None:
            return self.rescale(combined)
        return self.rescale(combined - bias) + bias


class DoraEmbedding(_Lengths, LoraEmbedding):
    """The rows of an embedding's transpose are rescaled: one length per feature."""

    stored: ClassVar[Mapping[str, str]] = LoraEmbedding.stored | {
        "lora_magnitude_vector": "lora_magnitude_vector"
    }

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[..., features]`."""
        return self.rescale(super().forward(token_ids))


class _ScaleFeatures(torch.autograd.Function):
    """`x * factors` rounded once, to the dtype of `x`; keeps `x` as it is rather than in float32.

    A factor of 1.001 is 1 in bfloat16, so the product itself must not be taken in it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, factors)
        scaled = x * factors
        # `.to` that has nothing to do returns the tensor itself, and torch 2.11 then compiles this
        # function to gradients of zero (pytorch/pytorch#180642).
        return scaled if scaled.dtype == x.dtype else scaled.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, factors = ctx.saved_tensors
        of_x = (gradient * factors).to(x.dtype)
        of_factors = (gradient.to(factors.dtype) * x).flatten(0, -2).sum(dim=0)
        return of_x, of_factors
