"""What is adapted, in words and numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import nn

from automodel_core.protocols import Selection
from automodel_peft.candidates import grouped, in_and_out
from automodel_peft.choice import without_triton
from automodel_peft.plan import Plan
from automodel_peft.trained import sharers

if TYPE_CHECKING:
    from automodel_peft.lora import PeftConfig


def described(config: PeftConfig, model: nn.Module, plan: Plan) -> Selection:
    """A plan as the core wants it; call it before the plan is carried out."""
    return Selection(
        modules=(*plan.adapted, *plan.trained),
        trainable=_trainable(config, plan),
        lines=(*_lines(config, plan), *_notes(model, plan)),
    )


def _trainable(config: PeftConfig, plan: Plan) -> int:
    adapters = sum(
        config.kind(each.module).parameters_needed(*in_and_out(each.module), each.rank)
        for each in plan.adapted.values()
    )
    return adapters + sum(p.numel() for each in plan.trained.values() for p in each.parameters())


def _lines(config: PeftConfig, plan: Plan) -> list[str]:
    sizes = Counter((each.rank, each.alpha) for each in plan.adapted.values())
    (rank, alpha), _ = sizes.most_common(1)[0]
    others = f", {sizes.total() - sizes[rank, alpha]} modules otherwise" if len(sizes) > 1 else ""
    return [
        f"{config.name} of rank {rank}, alpha {alpha:g}{others}, on {len(plan.adapted)} modules:",
        *(f"  {line}" for line in grouped({n: each.module for n, each in plan.adapted.items()})),
        *(f"trains as a whole: {name}" for name in plan.trained),
        *_methods(config, plan),
    ]


def _methods(config: PeftConfig, plan: Plan) -> list[str]:
    """Which way the adapters compute, if there was something to choose."""
    if without_triton():
        return []
    found = Counter(config.method(each) for each in plan.adapted.values())
    if config.use_triton == "auto" and set(found) == {"plain"}:
        return []
    asked = str(config.use_triton).lower()
    return [f"use_triton: {asked}: " + ", ".join(f"{m} on {n}" for m, n in found.items())]


def _notes(model: nn.Module, plan: Plan) -> list[str]:
    """What the user may not expect: patterns without a meaning, tied weights that part."""
    notes = list(plan.notes)
    for name, module in plan.trained.items():
        notes += [
            f"{name} was tied to {tied}, which stays frozen" for tied in sharers(model, module)
        ]
    for name, planned in plan.adapted.items():
        if isinstance(planned.module, nn.Embedding):
            shared = sharers(model, planned.module)
            notes += [f"{name} is tied to {tied}, which gets no update" for tied in shared]
    return notes
