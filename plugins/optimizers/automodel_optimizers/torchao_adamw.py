"""torchao's 8-bit AdamW with plain tensors for its state and plain numbers for its rates, which is
what checkpoints and schedules work with. Importing this needs torchao."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torchao.optim
from torch.distributed.tensor import DTensor
from torchao.optim.subclass_8bit import OptimState8bit

# What is in a parameter's state, and whether it can be negative.
MEANS = {"exp_avg": True, "exp_avg_sq": False}
SCALE = "_scale"


class AdamW8bit(torchao.optim.AdamW8bit):
    """Between steps, `state` has codes (uint8, shaped as the parameter) under `exp_avg` and
    `exp_avg_sq`, and the blocks' scales (float32) under `exp_avg_scale` and `exp_avg_sq_scale`.

    Raises:
        ValueError: A parameter is cut over ranks: blocks would end elsewhere on other layouts.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torchao makes a tensor of the rate; schedules write numbers."""
        rate = param_group.get("lr", self.defaults["lr"])
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(isinstance(each, DTensor) for each in group["params"]):
            raise ValueError(
                "adamw_8bit can't have parameters that are cut over GPUs, as fsdp2 does: use "
                "`distributed: ddp`, or `optimizer._target_: adamw`"
            )
        group["lr"] = rate

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
        for parameter, state in self.state.items():
            quantize_again(state, parameter.dtype)
        try:
            return super().step(closure)
        finally:
            for state in self.state.values():
                as_plain_tensors(state)
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def quantize_again(state: dict[str, Any], dtype: torch.dtype) -> None:
    """Codes and scales as the tensors that torchao computes with."""
    for name, signed in MEANS.items():
        scale = state.pop(name + SCALE, None)
        if scale is not None:
            codes = state[name]
            levels = levels_of(signed, codes.device)
            state[name] = OptimState8bit(codes, scale, levels, signed, dtype)


def as_plain_tensors(state: dict[str, Any]) -> None:
    """The other way."""
    for name in MEANS:
        mean = state.get(name)
        if isinstance(mean, OptimState8bit):
            state[name], state[name + SCALE] = mean.codes, mean.scale


@cache
def levels_of(signed: bool, device: torch.device) -> torch.Tensor:
    """The 256 numbers that codes stand for, as parts of a block's scale."""
    return OptimState8bit.zeros((256,), signed, 256, device).qmap
