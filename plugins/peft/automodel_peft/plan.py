"""What is about to be done to a model: each module that changes, and with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from torch import nn
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_peft.candidates import embedding_layers, linear_layers
from automodel_peft.files import SavedAdapter
from automodel_peft.globs import first_match, matches
from automodel_peft.layers import AdaptedLayer
from automodel_peft.selection import Patterns, choose


@attrs.frozen
class Planned:
    """One module that gets an adapter."""

    module: nn.Module
    rank: int
    alpha: float


@attrs.frozen
class Plan:
    """The modules that change, by their whole names in the model's order.

    Attributes:
        adapted: Those that get an adapter.
        trained: Those that train as a whole.
        notes: What the user should know about the choice.
    """

    adapted: dict[str, Planned]
    trained: dict[str, nn.Module]
    notes: tuple[str, ...] = ()


@attrs.frozen
class Sizes:
    """Ranks and alphas as a YAML file writes them: one for all, others per pattern."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = attrs.field(factory=dict)
    alpha_pattern: Mapping[str, float] = attrs.field(factory=dict)


def plan_from_patterns(model: PreTrainedModel, patterns: Patterns, sizes: Sizes) -> Plan:
    """The plan that the YAML's patterns make for a model.

    Raises:
        UserError: They choose nothing, contradict each other, or name a module that isn't chosen.
    """
    chosen = choose(model, patterns)
    for argument in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(sizes, argument):
            if not any(matches(pattern, name) for name in chosen.adapted):
                raise UserError(
                    f"No adapted module is meant by {pattern}.",
                    fix="write a pattern as in include_modules, such as '*.q_proj'",
                    argument=argument,
                )
    adapted = {
        name: Planned(
            module,
            rank=first_match(sizes.rank_pattern, name, sizes.rank),
            alpha=first_match(sizes.alpha_pattern, name, sizes.alpha),
        )
        for name, module in chosen.adapted.items()
    }
    return Plan(adapted, chosen.trained, chosen.notes)


def plan_from_file(model: PreTrainedModel, saved: SavedAdapter) -> Plan:
    """The plan that gives a saved adapter the modules it was saved from.

    Raises:
        UserError: It belongs to another model.
    """
    adaptable = linear_layers(model) | embedding_layers(model)
    missing = [name for name in saved.adapted if name not in adaptable]
    if missing:
        raise UserError(
            f"{saved.folder} adapts {missing[0]}, which {type(model).__name__} doesn't have"
            + (f", and {len(missing) - 1} more modules like it." if missing[1:] else "."),
            fix=f"write the model that it was trained on: "
            f"{saved.config.get('base_model_name_or_path') or 'its file does not say which'}",
            argument="adapter_path",
        )
    adapted = {
        name: Planned(adaptable[name], rank=saved.rank(name), alpha=saved.alpha(name))
        for name in adaptable
        if name in saved.adapted
    }
    return Plan(adapted, _trained_in(model, saved))


def starting_from_weights(
    plan: Plan, variant: str, kind: Callable[[nn.Module], type[AdaptedLayer]]
) -> list[tuple[str, str, nn.Module]]:
    """The modules of a plan whose weights are read when it is carried out: what reads them, in
    words, the module's name, and the module.

    Args:
        variant: Its name.
        kind: The class that it makes of a module.
    """
    adapted = [
        (variant, name, planned.module)
        for name, planned in plan.adapted.items()
        if kind(planned.module).starts_from_weights
    ]
    return adapted + [("What trains as a whole", *item) for item in plan.trained.items()]


def check_weights(
    plan: Plan, variant: str, kind: Callable[[nn.Module], type[AdaptedLayer]]
) -> None:
    """Refuse modules without weights (on the meta device) where what is added starts from them.

    Args:
        plan, variant, kind: As for `starting_from_weights`.

    Raises:
        UserError: A module has none, and needs them.
    """
    for what, name, module in starting_from_weights(plan, variant, kind):
        if any(parameter.is_meta for parameter in module.parameters()):
            raise UserError(
                f"{what} starts from the model's weights, and those of {name} aren't read yet.",
                fix="apply the adapter after the weights are read",
            )


def _trained_in(model: nn.Module, saved: SavedAdapter) -> dict[str, nn.Module]:
    """The modules whose whole weights are in the file, by PEFT's rule: their names' ends."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith(saved.trained) and any(key.startswith(f"{name}.") for key in saved.others)
    }
