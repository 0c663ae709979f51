"""PiSSA: the update starts from the principal part of the weight.

Meng et al. 2024, https://arxiv.org/abs/2404.02948: with `W = U S V^T`, `A = sqrt(S_r / s) V_r^T`
and `B = U_r sqrt(S_r / s)` train, and the rest of W is frozen. Here W stays whole, and what trains
are the changes dA and dB of the two factors: the update is

    (B + dB) (A + dA) - B A  =  dB (A + dA) + B dA,

a matrix of rank 2r that is exactly zero at the start. It has the gradients of PiSSA, loses no digit
of a bfloat16 weight, and is what other programs open: a LoRA of rank 2r on the original model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from automodel_core.errors import UserError
from automodel_peft.layers import (
    AdaptedLayer,
    LayerSettings,
    LoraEmbedding,
    LoraLinear,
    oriented_weight,
)

# Of the randomised decomposition: power iterations (16 come close to the exact one, their section
# 4.4), and dimensions beyond the rank, which make its last ones as good as its first.
ITERATIONS, OVERSAMPLING = 16, 8


class _Principal(AdaptedLayer):
    """The part that linear layers and embeddings have in common."""

    starts_from_weights: ClassVar[bool] = True

    def adapt(self, settings: LayerSettings) -> None:
        super().adapt(settings)
        for parameter in self.trained_factors():
            parameter.data.zero_()
        a, b = principal_factors(oriented_weight(self), settings)
        self.register_buffer("start_A", a.to(settings.dtype), persistent=False)
        self.register_buffer("start_B", b.to(settings.dtype), persistent=False)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[A + dA; dA]` and `[dB, B]`, the update of rank 2r."""
        change_a, change_b = self.trained_factors()
        return (
            torch.cat([self.start_A + change_a, change_a]),
            torch.cat([change_b, self.start_B], dim=1),
        )

    @property
    def stored_rank(self) -> int:
        return 2 * self.settings.rank

    @property
    def stored_alpha(self) -> float:
        return 2 * self.settings.alpha

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.stored, self.factors(), strict=True))

    def load_stored(self, tensors: Mapping[str, torch.Tensor]) -> None:
        a, b = (tensors[name] for name in self.stored)
        moved_a, change_a = a.chunk(2)
        change_b, start_b = b.chunk(2, dim=1)
        for parameter, change in zip(self.trained_factors(), (change_a, change_b), strict=True):
            parameter.data.copy_(change)
        # On the machine that wrote it, the decomposition is the same to the last bit.
        if not torch.equal(self.start_B.cpu(), start_b.cpu()):
            self.start_A.copy_(moved_a - change_a)
            self.start_B.copy_(start_b)


class PissaLinear(_Principal, LoraLinear):
    """A linear layer whose principal part trains."""


class PissaEmbedding(_Principal, LoraEmbedding):
    """An embedding whose principal part trains."""


@torch.no_grad()
def principal_factors(
    weight: torch.Tensor, settings: LayerSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """A `[rank, features_in]` and B `[features_out, rank]`; `scale * B A` is the principal part.

    By the randomised decomposition of Halko et al. 2009 (https://arxiv.org/abs/0909.4061), which
    is many times faster than the exact one on large weights.

    Raises:
        UserError: The weight is too small for that rank.
    """
    rank, device = settings.rank, weight.device
    if rank > min(weight.shape):
        raise UserError(
            f"A weight of {weight.shape[0]} x {weight.shape[1]} has no part of rank {rank}.",
            fix="write a smaller dim, or a smaller rank for that module in rank_pattern",
            argument="dim",
        )
    dimensions = min(rank + OVERSAMPLING, *weight.shape)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        u, s, v = torch.svd_lowrank(weight.float(), q=dimensions, niter=ITERATIONS)
    root = (s[:rank] / settings.scale).sqrt()
    return (v[:, :rank] * root).t().contiguous(), u[:, :rank] * root
