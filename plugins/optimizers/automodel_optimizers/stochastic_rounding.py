"""AdamW for bfloat16 weights without float32 copies of them: updates are rounded at random.

A bfloat16 weight has 8 significant bits, so an update below 1/512 of it is lost when rounded to the
nearest. Rounded up or down with a probability given by the distance, it is right on average (Gupta
et al. 2015, https://arxiv.org/abs/1502.02551; for language models, Zamirai et al. 2020,
https://arxiv.org/abs/2010.06192).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

# float32 and bfloat16 share sign and exponent: the lower 16 bits are what bfloat16 drops.
DROPPED_BITS = 16


def round_stochastically(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 to bfloat16, up or down at random, so that the expectation is `exact`.

    Adding a random number to the bits that are dropped carries into those that are kept, with just
    the right probability. Infinities and NaN stay what they are.
    """
    bits = exact.contiguous().view(torch.int32)
    noise = torch.randint(
        0, 1 << DROPPED_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    rounded = ((bits + noise) & -(1 << DROPPED_BITS)).view(torch.float32)
    return torch.where(exact.isfinite(), rounded, exact).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101),
    computed in float32 and stored in the weights' own dtype; bfloat16 by stochastic rounding.

    The rounding of a step depends on the seed, the step's number and the parameter's place alone:
    replicas on several ranks stay equal, and a resumed run goes on bit for bit.

    Args:
        params: Parameters or groups of them, in bfloat16 or float32.
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second mean.
        weight_decay: Share of each weight that a step of rate 1 takes away.
        seed: The run's seed.

    Raises:
        ValueError: A value is out of its range.
    """

    # What the guard for lost updates asks: most weights stay where they are in a step, on purpose.
    rounds_stochastically = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError("lr, eps and weight_decay can't be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        self.seed = seed
        super().__init__(
            params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, place)
                place += 1
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        gradient = parameter.grad.float()
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

        spread = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        exact = parameter.float() * (1 - group["lr"] * group["weight_decay"])
        exact.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))
        if parameter.dtype == torch.bfloat16:
            generator = torch.Generator(parameter.device)
            generator.manual_seed(hash((self.seed, step, place)) & (2**63 - 1))
            parameter.copy_(round_stochastically(exact, generator))
        else:
            parameter.copy_(exact)
