"""AdamW's update of many tensors in one Triton kernel.

An update is bound by memory: of each weight it reads weight, gradient and two means, and writes all
but the gradient. Where the tensors lie stands in a table, so that one launch does for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import attrs
import torch
import triton
import triton.language as tl

# What a program updates, and how many numbers of it at a time.
CHUNK, BLOCK, WARPS = 16384, 2048, 4
# Bytes of the widest load.
WIDEST = 16


@attrs.frozen
class Rates:
    """What an update is computed with."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@attrs.frozen
class Updated:
    """A parameter with its gradient and running means, of one dtype and stored alike, and the
    number of the update, counted from 1, a float32 scalar on the device."""

    parameter: torch.Tensor
    gradient: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    step: torch.Tensor

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        tensors = self.parameter, self.gradient, self.mean, self.square
        return tuple(each.data_ptr() for each in tensors)

    @property
    def bytes_at_once(self) -> int:
        """How wide loads of it may be."""
        width = self.parameter.element_size()
        numbers = *self.addresses, self.parameter.numel() * width
        return width if any(each % WIDEST for each in numbers) else WIDEST


def update(
    tensors: Sequence[Updated],
    rates: Rates,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    """Update parameters and means in place.

    With `g` the gradient divided by `grad_scale` and `t` the step, `m = b1 m + (1 - b1) g` and
    `v = b2 v + (1 - b2) g^2`, and then
    `p = (1 - lr wd) p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)`
    (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), in float32 and rounded once.

    Args:
        tensors: On one device.
        rates: Of the update.
        grad_scale: A scalar on the device.
        found_inf: A scalar on the device; unless it is 0 nothing changes.
    """
    alike: dict[tuple[torch.dtype, int], list[Updated]] = {}
    for each in tensors:
        if each.parameter.numel():
            alike.setdefault((each.parameter.dtype, each.bytes_at_once), []).append(each)
    for (dtype, at_once), group in alike.items():
        origin = group[0].parameter
        chunks = _chunks(tuple(each.parameter.numel() for each in group), origin.device)
        factors = _factors(group, rates, grad_scale)
        _update[(len(chunks),)](
            origin, _distances(group), chunks, factors,
            factors if found_inf is None else found_inf,
            1 - rates.lr * rates.weight_decay, rates.beta1, 1 - rates.beta1,
            rates.beta2, 1 - rates.beta2, rates.eps,
            SKIPS=found_inf is not None, MULTIPLE=at_once // dtype.itemsize,
            CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@lru_cache(maxsize=16)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Of each program: its tensor's number, where its chunk begins, and the tensor's size."""
    rows = [
        (number, start, size)
        for number, size in enumerate(sizes)
        for start in range(0, size, CHUNK)
    ]
    return torch.tensor(rows).to(device)


def _distances(group: Sequence[Updated]) -> torch.Tensor:
    """How far all tensors lie from the first parameter, in numbers. An address alone wouldn't do:
    Triton loads number by number where it can't tell how a pointer is aligned."""
    origin, width = group[0].parameter, group[0].parameter.element_size()
    found = torch.tensor(
        [[(each - origin.data_ptr()) // width for each in one.addresses] for one in group]
    )
    if origin.is_cuda:  # gradients lie elsewhere in every step, and nobody waits for this
        found = found.pin_memory().to(origin.device, non_blocking=True)
    return found


def _factors(
    group: Sequence[Updated], rates: Rates, grad_scale: torch.Tensor | None
) -> torch.Tensor:
    """Of each tensor the step's size and what its root of squares is multiplied by, since the means
    began at zero, and what its gradient is multiplied by."""
    steps = torch.stack([each.step for each in group]).double()
    size = rates.lr / (1 - rates.beta1**steps)
    root = (1 - rates.beta2**steps).rsqrt()
    scale = torch.ones_like(root) if grad_scale is None else 1 / grad_scale.to(root).expand_as(root)
    return torch.stack([size, root, scale], dim=1).float()


@triton.jit
def _update(
    origin, distances, chunks, factors, found_inf,
    keep, beta1, rest1, beta2, rest2, eps,
    SKIPS: tl.constexpr, MULTIPLE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = chunks + tl.program_id(0) * 3
    tensor, start, size = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    start, size = tl.multiple_of(start, CHUNK), tl.multiple_of(size, MULTIPLE)
    if SKIPS:
        size = tl.where(tl.load(found_inf) == 0, size, 0)
    distances += tensor * 4
    parameters = origin + tl.multiple_of(tl.load(distances), MULTIPLE)
    gradients = origin + tl.multiple_of(tl.load(distances + 1), MULTIPLE)
    means = origin + tl.multiple_of(tl.load(distances + 2), MULTIPLE)
    squares = origin + tl.multiple_of(tl.load(distances + 3), MULTIPLE)
    factors += tensor * 3
    step_size, of_root, of_gradient = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    for first in range(0, CHUNK, BLOCK):
        places = start + first + tl.arange(0, BLOCK)
        inside = places < size
        gradient = tl.load(gradients + places, mask=inside).to(tl.float32) * of_gradient
        mean = tl.load(means + places, mask=inside).to(tl.float32)
        mean = beta1 * mean + rest1 * gradient
        square = tl.load(squares + places, mask=inside).to(tl.float32)
        square = beta2 * square + rest2 * gradient * gradient
        parameter = tl.load(parameters + places, mask=inside).to(tl.float32) * keep
        parameter -= step_size * mean / (tl.sqrt(square) * of_root + eps)
        tl.store(parameters + places, parameter, mask=inside)
        tl.store(means + places, mean, mask=inside)
        tl.store(squares + places, square, mask=inside)
