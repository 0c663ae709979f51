"""Which modules get an adapter: what the YAML's patterns choose, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from torch import nn
from transformers import PreTrainedModel

from automodel_core.errors import UserError
from automodel_peft.candidates import (
    embedding_layers,
    grouped,
    language_model_layers,
    linear_layers,
)
from automodel_peft.globs import matches, matches_any


@attrs.frozen
class Patterns:
    """The choice as a YAML file writes it.

    Attributes:
        match_all_linear: Every linear layer there is.
        include: Patterns of what to adapt; None for the linear layers of the language model.
        exclude: Patterns of what to leave alone in any case.
        train: Patterns of modules that train as a whole.
    """

    match_all_linear: bool = False
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    train: Sequence[str] = ()


@attrs.frozen
class Chosen:
    """The modules of one model that the patterns mean, by their whole names in the model's order.

    Attributes:
        adapted: Linear layers and embeddings that get an adapter.
        trained: Modules that train as a whole.
        notes: Patterns that mean nothing here.
    """

    adapted: dict[str, nn.Module]
    trained: dict[str, nn.Module]
    notes: tuple[str, ...] = ()


def choose(model: PreTrainedModel, patterns: Patterns) -> Chosen:
    """Apply the patterns to a model.

    Raises:
        UserError: They contradict each other, or choose nothing.
    """
    if patterns.match_all_linear and patterns.include is not None:
        raise UserError(
            "match_all_linear takes every linear layer, so include_modules has nothing to add.",
            fix="write one of the two; exclude_modules subtracts from either",
            argument="include_modules",
        )
    trained = _trained(model, patterns.train)
    wanted, notes = _wanted(model, patterns)
    wanted = wanted and _unfrozen(model, patterns, wanted)
    kept = {
        name: module
        for name, module in wanted.items()
        if not matches_any(patterns.exclude, name) and not _inside(name, trained)
    }
    if not kept:
        raise _nothing(model, patterns, excluded=bool(wanted))
    return Chosen(kept, trained, notes)


def _wanted(
    model: PreTrainedModel, patterns: Patterns
) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """What is chosen before anything is subtracted, and the patterns that mean nothing."""
    if patterns.match_all_linear:
        return linear_layers(model), ()
    if patterns.include is None:
        return language_model_layers(model), ()
    linears, embeddings = linear_layers(model), embedding_layers(model)
    found: set[str] = set()
    silent = []
    for pattern in patterns.include:
        # `*` means every linear layer; embeddings are meant by patterns that mean nothing else.
        names = _matching(pattern, linears) or _matching(pattern, embeddings)
        found.update(names)
        if not names:
            silent.append(f"include_modules: {pattern} matches no linear layer of this model")
    adaptable = linears | embeddings
    order = [name for name, _ in model.named_modules() if name in found]
    return {name: adaptable[name] for name in order}, tuple(silent)


def _unfrozen(
    model: PreTrainedModel, patterns: Patterns, wanted: dict[str, nn.Module]
) -> dict[str, nn.Module]:
    """What is wanted and trains; a pattern that means frozen modules alone does mean them.

    Raises:
        UserError: `freeze_config` froze all of it.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return wanted
    trains = {
        name for name, each in wanted.items() if any(p.requires_grad for p in each.parameters())
    }
    meant = [set(_matching(pattern, wanted)) for pattern in patterns.include or ()]
    kept = trains.union(*(names for names in meant if not names & trains))
    if not kept:
        raise UserError(
            "freeze_config freezes every module that would be adapted.",
            fix="adapters leave their base as it is, so leave it out; or name frozen modules in "
            "include_modules",
        )
    return {name: each for name, each in wanted.items() if name in kept}


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if matches(pattern, name)]


def _trained(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that train as a whole; one inside another is part of it."""
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not _matching(pattern, modules):
            raise UserError(
                f"No module of this model is meant by {pattern}.",
                fix="write whole dotted names such as model.norm; `*` stands for any text",
                argument="modules_to_save",
            )
    named = [name for name in modules if matches_any(patterns, name)]
    bare = [name for name in named if not any(True for _ in modules[name].parameters())]
    if bare:
        raise UserError(
            f"{bare[0]} has no parameters to train.",
            fix="leave it out",
            argument="modules_to_save",
        )
    return {
        name: modules[name]
        for name in named
        if not any(name.startswith(f"{other}.") for other in named)
    }


def _inside(name: str, trained: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{each}.") for each in trained)


def _nothing(model: PreTrainedModel, patterns: Patterns, *, excluded: bool) -> UserError:
    """What to say when nothing is chosen: what there would be to choose from."""
    linears = grouped(linear_layers(model))
    if excluded:
        argument, message = "exclude_modules", "exclude_modules leaves no module to adapt."
    elif patterns.include is not None:
        argument = "include_modules"
        message = f"No linear layer or embedding is meant by {', '.join(patterns.include)}."
    else:
        argument, message = None, f"{type(model).__name__} has no linear layer to adapt."
    return UserError(
        "\n  ".join([message, "Its linear layers are:" if linears else "It has none.", *linears]),
        fix="write include_modules: ['*.q_proj', '*.v_proj'], for instance" if linears else "",
        argument=argument,
    )
