"""Losses of other packages, for whom they are faster or already trusted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.head import Head, Linear


class LigerFusedLinearCrossEntropy:
    """Liger's fused linear cross-entropy (Hsu et al. 2024, https://arxiv.org/abs/2410.10989).

    Needs the package `liger-kernel` and a GPU.
    """

    input: ClassVar[Literal["hidden_states"]] = "hidden_states"

    def __init__(self) -> None:
        check_usable("liger_fused_linear_ce", "liger_kernel", "liger-kernel")

    def __call__(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `FusedLinearCrossEntropy`.

        Raises:
            UserError: The head is no plain product.
        """
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        linear = linear_of(head, "liger_fused_linear_ce")
        loss = LigerFusedLinearCrossEntropyLoss(
            ignore_index=IGNORE_INDEX, reduction="sum", softcap=linear.cap
        )
        hidden, weight = in_compute_dtype(hidden_states.flatten(0, -2), linear.weight)
        bias = None if linear.bias is None else linear.bias.to(weight.dtype) * linear.scale
        return loss(weight, hidden * linear.scale, labels.flatten(), bias).float()


class CutCrossEntropy:
    """Apple's cut cross-entropy (Wijmans et al. 2024, https://arxiv.org/abs/2411.09009), which has
    no logits in memory at all, and leaves out gradients too small for bfloat16.

    Needs the package `cut-cross-entropy` and a GPU. It looks for the supervised tokens on the GPU,
    which the host waits for.
    """

    input: ClassVar[Literal["hidden_states"]] = "hidden_states"

    def __init__(self) -> None:
        check_usable("cut_cross_entropy", "cut_cross_entropy", "cut-cross-entropy")

    def __call__(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `FusedLinearCrossEntropy`.

        Raises:
            UserError: The head is no plain product, or has a bias.
        """
        from cut_cross_entropy import linear_cross_entropy

        linear = linear_of(head, "cut_cross_entropy")
        if linear.bias is not None:
            raise unusable("cut_cross_entropy", "they have a bias")
        hidden, weight = in_compute_dtype(hidden_states.flatten(0, -2), linear.weight)
        return linear_cross_entropy(
            hidden * linear.scale,
            weight,
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            softcap=linear.cap,
            reduction="sum",
        ).float()


def check_usable(name: str, module: str, package: str) -> None:
    """Refuse what isn't installed, or can't run.

    Raises:
        UserError: With what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{name} is the package {package}, which isn't installed.",
            fix=f"pip install {package}, or write _target_: fused_linear_ce",
            argument="_target_",
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"{name} runs on GPUs, and PyTorch sees none.",
            fix="write _target_: fused_linear_ce, which runs on CPUs too",
            argument="_target_",
        )


def linear_of(head: Head | Callable[[torch.Tensor], torch.Tensor], name: str) -> Linear:
    """The head's parameters.

    Raises:
        UserError: It is no plain product.
    """
    linear = head.linear() if isinstance(head, Head) else None
    if linear is None:
        raise unusable(name, "they are adapted, quantized or shared by ranks")
    return linear


def unusable(name: str, why: str) -> UserError:
    return UserError(
        f"{name} can't compute with this model's output embeddings: {why}.",
        fix="write loss_fn: {_target_: fused_linear_ce}",
        path=("loss_fn",),
    )


def in_compute_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """As autocast would hand them to a product, or as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [each.to(torch.get_autocast_dtype(device)) for each in tensors]
