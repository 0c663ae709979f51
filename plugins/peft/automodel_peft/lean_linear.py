"""A frozen linear layer and its LoRA in one function, which adds in place.

Between the frozen product and the update autograd would keep two results and add them into a third.
Here `y = x W^T + b` is made once and the update added where it lies, as is what the adapter
contributes to `dx = dy W`; kept for the backward pass are `x` and `scale * x A^T`, rank wide. The
two operators are opaque to torch.compile, which would else copy `y` before it adds to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

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
    return _forward(x, weight, bias, *factors, scale, method)[0]


@torch.library.custom_op("automodel_peft::lora_linear", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    method: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[..., features_out]`, and `scale * x A^T`, `[tokens, rank]`."""
    rows = _rows(x)
    y = functional.linear(rows, weight, bias)
    reduced = reduce(rows, a, scale, method)
    add_expanded(y, reduced, b, method)
    return y.view(*x.shape[:-1], len(weight)), reduced


@_forward.register_fake
def _(x, weight, bias, a, b, scale, method):
    tokens = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], len(weight)), x.new_empty(tokens, len(a))


@torch.library.custom_op("automodel_peft::lora_linear_backward", mutates_args=())
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


@_backward.register_fake
def _(gradient, x, reduced, weight, a, b, scale, needs_x, method):
    of_x = x.new_empty(x.shape) if needs_x else x.new_empty(0)
    return of_x, a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weight, _, a, b, scale, ctx.method = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], weight, a, b, scale)


def _differentiate(
    ctx: Any, gradient: torch.Tensor, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    needs_x = ctx.needs_input_grad[0]
    of_x, of_a, of_b = _backward(gradient, *ctx.saved_tensors, needs_x, ctx.method)
    return of_x if needs_x else None, None, None, of_a, of_b, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


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


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`[tokens, features]`, each row in one piece."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _triton() -> Any:
    """Imported where it is used: the CPU does without Triton."""
    return importlib.import_module("automodel_peft.low_rank_triton")
