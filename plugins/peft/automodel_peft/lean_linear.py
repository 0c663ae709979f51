"""A frozen linear layer and its LoRA in one function, which adds in place.

Between the frozen product and the update autograd would keep two results and add them into a third.
Here `y = x W^T + b` is made once and the update added where it lies, as is what the adapter
contributes to `dx = dy W`; kept for the backward pass are `x` and `scale * x A^T`, rank wide. The
operators are opaque to torch.compile, which would else copy `y` before it adds to it. What the
backward pass keeps has an operator of its own, so that a compiled layer that is computed again
leaves out its last product.

They are registered one by one and not by `torch.library.custom_op`, whose checks took the host 50
to 230 us a call: in a model of many narrow layers the device waited for it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

OPERATORS = torch.library.Library("automodel_peft", "DEF")
OPERATORS.define(
    "lora_reduced(Tensor x, Tensor a, Tensor scale, str method) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
OPERATORS.define(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor reduced, Tensor a, Tensor b, "
    "Tensor scale, str method) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
OPERATORS.define(
    "lora_linear_backward(Tensor gradient, Tensor x, Tensor reduced, Tensor weight, Tensor a, "
    "Tensor b, Tensor scale, bool needs_x, str method) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)

# Method -> which products its Triton kernels make; the others are PyTorch's. `once` makes two of
# the backward pass in one reading of dy.
METHODS: Mapping[str, frozenset[str]] = {
    "lean": frozenset(),
    "triton": frozenset({"reduce", "add", "factor"}),
    "triton_add": frozenset({"add"}),
    "triton_once": frozenset({"reduce", "add", "factor", "once"}),
}


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
    method: str,
) -> torch.Tensor:
    """`x W^T + b + scale * (x A^T) B^T`; W and b get no gradient.

    Args:
        x: `[..., features_in]`, of the dtype of `weight`.
        weight: `[features_out, features_in]`.
        bias: `[features_out]`.
        factors: A `[rank, features_in]` and B `[features_out, rank]`, rounded to the dtype of `x`
            for the products.
        scale: A scalar.
        method: Of METHODS.
    """
    a, b = factors
    operators = torch.ops.automodel_peft
    reduced = operators.lora_reduced(x.detach(), a.detach(), scale, method)
    return operators.lora_linear(x, weight, bias, reduced, a, b, scale, method)


@torch.library.impl(OPERATORS, "lora_reduced", "CompositeExplicitAutograd")
def _reduced(x: torch.Tensor, a: torch.Tensor, scale: torch.Tensor, method: str) -> torch.Tensor:
    """`scale * x A^T`, `[tokens, rank]`."""
    rows = _rows(x)
    return reduce(rows, a, scale, _fitting(method, rows))


@torch.library.register_fake("automodel_peft::lora_reduced", lib=OPERATORS)
def _(x, a, scale, method):
    return x.new_empty(x.numel() // x.shape[-1], len(a))


@torch.library.impl(OPERATORS, "lora_linear", "CompositeExplicitAutograd")
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    reduced: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    method: str,
) -> torch.Tensor:
    """`[..., features_out]`; A and the scale, which `reduced` is made with, are for gradients."""
    y = functional.linear(_rows(x), weight, bias)
    add_expanded(y, reduced, b, _fitting(method, y))
    return y.view(*x.shape[:-1], len(weight))


@torch.library.register_fake("automodel_peft::lora_linear", lib=OPERATORS)
def _(x, weight, bias, reduced, a, b, scale, method):
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.impl(OPERATORS, "lora_linear_backward", "CompositeExplicitAutograd")
def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    reduced: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    needs_x: bool,
    method: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x (empty unless needed), A and B."""
    dy, rows = _rows(gradient), _rows(x)
    method = _fitting(method, rows)
    if "once" in METHODS[method]:
        of_reduced, of_b = _triton().reduce_and_gradient(dy, b, reduced, scale)
    else:
        of_reduced = reduce(dy, b.t(), scale, method)
        of_b = factor_gradient(dy, reduced, b, method)
    of_a = factor_gradient(rows, of_reduced, a.t(), method).t()
    if not needs_x:
        return x.new_empty(0), of_a, of_b
    of_x = dy @ weight
    add_expanded(of_x, of_reduced, a.t(), method)
    return of_x.view(x.shape), of_a, of_b


@torch.library.register_fake("automodel_peft::lora_linear_backward", lib=OPERATORS)
def _(gradient, x, reduced, weight, a, b, scale, needs_x, method):
    of_x = x.new_empty(x.shape) if needs_x else x.new_empty(0)
    return of_x, a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, reduced, a, b, scale, ctx.method = inputs
    ctx.save_for_backward(x, reduced, weight, a, b, scale)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs_x = ctx.needs_input_grad[0]
    of_x, of_a, of_b = torch.ops.automodel_peft.lora_linear_backward(
        gradient, *ctx.saved_tensors, needs_x, ctx.method
    )
    return of_x if needs_x else None, None, None, None, of_a, of_b, None, None


torch.library.register_autograd(
    "automodel_peft::lora_linear", _differentiate, setup_context=_keep, lib=OPERATORS
)


# FlopCounterMode sees no products inside an operator, and selective activation checkpointing knows
# by the formula that what one gives is dear. Of tensors they are given the shapes.
@register_flop_formula(torch.ops.automodel_peft.lora_reduced)
def _(x, a, *_, **__):
    return 2 * math.prod(x) * a[0]


@register_flop_formula(torch.ops.automodel_peft.lora_linear)
def _(x, weight, bias, reduced, *_, **__):
    (tokens, rank), (features_out, features_in) = reduced, weight
    return 2 * tokens * features_out * (features_in + rank)


@register_flop_formula(torch.ops.automodel_peft.lora_linear_backward)
def _(gradient, x, reduced, weight, a, b, scale, needs_x, *_, **__):
    (tokens, rank), (features_out, features_in) = reduced, weight
    of_x = (features_out + rank) * features_in if needs_x else 0
    return 2 * tokens * (rank * (2 * features_out + features_in) + of_x)


def reduce(x: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, method: str) -> torch.Tensor:
    """`scale * x factor^T`, `[tokens, rank]`; `factor` is `[rank, features]`."""
    if "reduce" in METHODS[method]:
        return _triton().reduce(x, factor, scale)
    return (x @ factor.to(x.dtype).t()).mul_(scale)


def add_expanded(y: torch.Tensor, reduced: torch.Tensor, factor: torch.Tensor, method: str) -> None:
    """`y += reduced factor^T` in place; `factor` is `[features, rank]`."""
    if "add" in METHODS[method]:
        _triton().add_expanded(y, reduced, factor)
    else:
        y.addmm_(reduced, factor.to(y.dtype).t())


def factor_gradient(
    x: torch.Tensor, reduced: torch.Tensor, like: torch.Tensor, method: str
) -> torch.Tensor:
    """`x^T reduced`, `[features, rank]`, in the dtype of `like`, and its strides."""
    if "factor" in METHODS[method]:
        return _triton().factor_gradient(x, reduced, like)
    if like.stride(1) == 1:
        return (x.t() @ reduced).to(like.dtype)
    return (reduced.t() @ x).t().to(like.dtype)


def _fitting(method: str, rows: torch.Tensor) -> str:
    """An expert that no token was sent to has nothing for a kernel to do."""
    return method if len(rows) else "lean"


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`[tokens, features]`, each row in one piece."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _triton() -> Any:
    """Imported where it is used: the CPU does without Triton."""
    return importlib.import_module("automodel_peft.low_rank_triton")
