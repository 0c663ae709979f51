"""A frozen linear layer and its LoRA in one function, which adds in place.

Between the frozen product and the update autograd would keep two results and add them into a third.
Here `y = x W^T + b` is made once and the update added where it lies, as is what the adapter
contributes to `dx = dy W`; kept for the backward pass are `x`, `scale * x A^T`, rank wide, and the
factors. That sum is an operator, opaque to torch.compile, which would else copy `y` before it adds
to it, and to selective activation checkpointing, which may keep it. All else the compiler sees, and
calls without the way through Python.

Operators are registered one by one and not by `torch.library.custom_op`, whose checks took the host
50 to 230 us a call: in a model of many narrow layers the device waited for it.
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
for schema in (
    "lora_product(Tensor x, Tensor weight, Tensor? bias, Tensor reduced, Tensor factor, "
    "bool triton) -> Tensor",
    "lora_reduce(Tensor x, Tensor factor) -> Tensor",
    "lora_gradient(Tensor x, Tensor reduced, bool transposed) -> Tensor",
    "lora_reduce_and_gradient(Tensor x, Tensor factor, Tensor reduced) -> (Tensor, Tensor)",
):
    OPERATORS.define(schema, tags=torch.Tag.pt2_compliant_tag)

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
    return _LoraLinear.apply(x, weight, bias, *factors, scale, method)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: torch.Tensor,
        method: str,
    ) -> torch.Tensor:
        # In the dtype of the products, once for both passes.
        scaled_a, low_b = (a * scale).to(x.dtype), b.to(x.dtype)
        rows = _rows(x)
        reduced = reduce(rows, scaled_a, method)
        y = product(rows, weight, bias, (reduced, low_b), method)
        ctx.save_for_backward(x, weight, scaled_a, low_b, scale, reduced)
        ctx.method, ctx.dtype = method, a.dtype
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scaled_a, low_b, scale, reduced = ctx.saved_tensors
        dy, rows, method = _rows(gradient), _rows(x), ctx.method
        if "once" in METHODS[method]:
            of_reduced, of_b = torch.ops.automodel_peft.lora_reduce_and_gradient(dy, low_b, reduced)
        else:
            of_reduced = reduce(dy, low_b.t(), method)
            of_b = factor_gradient(dy, reduced, method)
        of_a = factor_gradient(rows, of_reduced, method, transposed=True)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(dy, weight.t(), None, (of_reduced, scaled_a.t()), method).view(x.shape)
        return of_x, None, None, of_a.to(ctx.dtype) * scale, of_b.to(ctx.dtype), None, None


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: tuple[torch.Tensor, torch.Tensor],
    method: str,
) -> torch.Tensor:
    """`x W^T + b + reduced factor^T`, `[tokens, features]`; `update` is what is reduced, `[tokens,
    rank]`, and the factor, `[features, rank]`."""
    triton = "add" in METHODS[method]
    return torch.ops.automodel_peft.lora_product(x, weight, bias, *update, triton)


def reduce(x: torch.Tensor, factor: torch.Tensor, method: str) -> torch.Tensor:
    """`x factor^T`, `[tokens, rank]`; `factor` is `[rank, features]`."""
    if "reduce" in METHODS[method]:
        return torch.ops.automodel_peft.lora_reduce(x, factor)
    return x @ factor.t()


def factor_gradient(
    x: torch.Tensor, reduced: torch.Tensor, method: str, *, transposed: bool = False
) -> torch.Tensor:
    """`x^T reduced`, `[features, rank]`, or as `[rank, features]`; Triton's is in float32."""
    if "factor" in METHODS[method]:
        return torch.ops.automodel_peft.lora_gradient(x, reduced, transposed)
    return reduced.t() @ x if transposed else x.t() @ reduced


@torch.library.impl(OPERATORS, "lora_product", "CompositeExplicitAutograd")
def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    reduced: torch.Tensor,
    factor: torch.Tensor,
    triton: bool,
) -> torch.Tensor:
    y = functional.linear(x, weight, bias)
    if triton and len(x):
        _triton().add_expanded(y, reduced, factor)
    else:
        y.addmm_(reduced, factor.t())
    return y


@torch.library.register_fake("automodel_peft::lora_product", lib=OPERATORS)
def _(x, weight, bias, reduced, factor, triton):
    return x.new_empty(len(x), len(weight))


# An expert that no token was sent to has nothing for a kernel to do.
@torch.library.impl(OPERATORS, "lora_reduce", "CompositeExplicitAutograd")
def _reduce(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _triton().reduce(x, factor) if len(x) else x.new_empty(0, len(factor))


@torch.library.register_fake("automodel_peft::lora_reduce", lib=OPERATORS)
def _(x, factor):
    return x.new_empty(len(x), len(factor))


@torch.library.impl(OPERATORS, "lora_gradient", "CompositeExplicitAutograd")
def _gradient(x: torch.Tensor, reduced: torch.Tensor, transposed: bool) -> torch.Tensor:
    if not len(x):
        return _empty_gradient(x, reduced, transposed).zero_()
    return _triton().factor_gradient(x, reduced, transposed)


@torch.library.register_fake("automodel_peft::lora_gradient", lib=OPERATORS)
def _empty_gradient(x, reduced, transposed):
    features, rank = x.shape[1], reduced.shape[1]
    size = (rank, features) if transposed else (features, rank)
    return x.new_empty(size, dtype=torch.float32)


@torch.library.impl(OPERATORS, "lora_reduce_and_gradient", "CompositeExplicitAutograd")
def _reduce_and_gradient(
    x: torch.Tensor, factor: torch.Tensor, reduced: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not len(x):
        return torch.empty_like(reduced), _empty_gradient(x, reduced, False).zero_()
    return _triton().reduce_and_gradient(x, factor, reduced)


@torch.library.register_fake("automodel_peft::lora_reduce_and_gradient", lib=OPERATORS)
def _(x, factor, reduced):
    return torch.empty_like(reduced), _empty_gradient(x, reduced, False)


# FlopCounterMode sees no products inside an operator, and selective activation checkpointing knows
# by the formula that what one gives is dear. Of tensors they are given the shapes.
@register_flop_formula(torch.ops.automodel_peft.lora_product)
def _(x, weight, bias, reduced, *_, **__):
    return 2 * math.prod(weight) * x[0] + 2 * math.prod(reduced) * weight[0]


@register_flop_formula(torch.ops.automodel_peft.lora_reduce)
def _(x, factor, *_, **__):
    return 2 * math.prod(x) * factor[0]


@register_flop_formula(torch.ops.automodel_peft.lora_gradient)
def _(x, reduced, *_, **__):
    return 2 * math.prod(x) * reduced[1]


@register_flop_formula(torch.ops.automodel_peft.lora_reduce_and_gradient)
def _(x, factor, *_, **__):
    return 4 * math.prod(x) * factor[1]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`[tokens, features]`, each row in one piece."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _triton() -> Any:
    """Imported where it is used: the CPU does without Triton."""
    return importlib.import_module("automodel_peft.low_rank_triton")
