"""PyTorch's AdamW, whose fused update of tensors on a GPU is a Triton kernel of ours.

PyTorch's own fused update of 1.2e9 bfloat16 weights takes 9.4 ms on an H100, where reading and
writing what an update needs takes 5.8 ms at 3 TB/s; it writes back clipped gradients as well. What
ours takes there isn't measured yet, so `adamw` is PyTorch's.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of a group, what the kernel doesn't do.
BEYOND = ("amsgrad", "maximize", "capturable", "differentiable")
# What PyTorch's update keeps of a parameter, beside the number of steps.
MEANS = ("exp_avg", "exp_avg_sq")
# Triton's interpreter runs kernels on the CPU.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


class TritonAdamW(torch.optim.AdamW):
    """AdamW, by a Triton kernel for all weights of a group at once.

    Arguments, state and formula are `torch.optim.AdamW`'s (Loshchilov and Hutter 2019,
    https://arxiv.org/abs/1711.05101). The kernel is for `fused` updates on a GPU, which a run there
    chooses where the YAML doesn't say; other updates are PyTorch's.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second mean.
        weight_decay: Share of each weight that a step of rate 1 takes away.
        amsgrad: Divide by the largest second mean so far, by PyTorch's update.
        maximize: Go up the gradient, by PyTorch's update.
        foreach: PyTorch's update of many tensors in several kernels.
        capturable: PyTorch's update for CUDA graphs.
        differentiable: PyTorch's update that autograd goes through.
        fused: By the kernel; absent, PyTorch's update of its choice.

    Raises:
        ValueError: A value is out of its range.
    """

    # Gradients are divided by `grad_scale` as they are read; they stay what they are.
    honours_grad_scale = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient."""
        fitting = all(fits_kernel(group, self.state) for group in self.param_groups)
        if not (closure is None and fitting and with_triton()):
            return super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return None

    def _update(self, group: dict[str, Any]) -> None:
        from automodel_optimizers.adamw_kernel import Rates, Updated, update

        parameters = [each for each in group["params"] if each.grad is not None]
        if not parameters:
            return
        states = [self._state(each) for each in parameters]
        steps = [each["step"] for each in states]
        found_inf, rates = getattr(self, "found_inf", None), (group["lr"], *group["betas"])
        torch._foreach_add_(steps, 1)
        if found_inf is not None:  # a step that isn't taken isn't counted
            torch._foreach_sub_(steps, [found_inf] * len(steps))
        update(
            [
                Updated(
                    local(each),
                    local_gradient(each),
                    *(local(of[name]) for name in MEANS),
                    of["step"],
                )
                for each, of in zip(parameters, states, strict=True)
            ],
            Rates(*rates, group["eps"], group["weight_decay"]),
            getattr(self, "grad_scale", None),
            found_inf,
        )

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """What PyTorch's fused update keeps."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for name in MEANS:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def fits_kernel(group: dict[str, Any], state: Mapping[torch.Tensor, dict[str, Any]]) -> bool:
    """Whether the kernel does what a group asks, and its tensors are what the kernel reads."""
    plain = group["fused"] and not isinstance(group["lr"], torch.Tensor)
    if not plain or any(group[each] for each in BEYOND):
        return False
    trained = [each for each in group["params"] if each.grad is not None]
    return all(lies_plainly(each, state.get(each, {})) for each in trained)


def lies_plainly(parameter: torch.Tensor, state: dict[str, torch.Tensor]) -> bool:
    """Whether a parameter and its means are one piece of memory each, of numbers that the kernel
    knows, and its gradient is of the same numbers."""
    kept = [local(each) for each in (parameter, *(state[name] for name in MEANS if name in state))]
    alike = all(each.dtype == parameter.dtype for each in (*kept, parameter.grad))
    plain = local(parameter.grad).layout == torch.strided and parameter.dtype in DTYPES
    return (
        alike
        and plain
        and all(each.device.type == DEVICE and each.is_contiguous() for each in kept)
    )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A rank's part of a tensor that is cut over ranks."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """A rank's part of the gradient, as its part of the parameter lies. The gradient may be in
    parts that are to be added, where each rank has computed with some of the tokens."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient).contiguous()


@functools.cache
def with_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
