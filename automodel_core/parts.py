"""The parts of a model, found by its structure: the sub-models that its sub-configurations made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


@attrs.frozen
class Part:
    """Some of a model's parameters.

    Attributes:
        modules: The dotted names of the modules (or single parameters) that make it up; "" is the
            whole model.
        parameters: Its parameters by their names in the model; a shared one under its first name.
    """

    modules: tuple[str, ...]
    parameters: Mapping[str, nn.Parameter]


def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """The parts that a model has: some of `embeddings`, `vision_tower`, `audio_tower`,
    `language_model` and `projector`.

    The language model includes its embeddings and the output embeddings. What a model that sees or
    hears has besides is its projector. Where a vision tower projects what it sees itself (Qwen-VL's
    `merger`), that is the projector and not of the tower.
    """
    towers = {
        kind: _submodels(model, getattr(model.config, f"{kind}_config", None))
        for kind in ("vision", "audio")
    }
    merger = tuple(each for tower in towers["vision"] for each in _merger(model, tower))
    elsewhere = (*towers["vision"], *towers["audio"], *merger)
    head = model.get_output_embeddings()
    named_head = [name for name, each in model.named_modules() if each is head][:1]
    language = (*_submodels(model, model.config.get_text_config()), *named_head)
    if not elsewhere:
        language = ("",)
    rest = tuple(_apart(model, (*elsewhere, *language)))
    embeddings = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and _within(name, language)
        and not _within(name, elsewhere)
    )
    found = {
        "embeddings": _part(model, embeddings),
        "vision_tower": _part(model, towers["vision"], but=merger),
        "audio_tower": _part(model, towers["audio"]),
        "language_model": _part(model, language, but=elsewhere),
        "projector": _part(model, (*rest, *merger)),
    }
    return {name: part for name, part in found.items() if part.parameters}


def _submodels(model: PreTrainedModel, config: PretrainedConfig | None) -> tuple[str, ...]:
    """The outermost models in `model` that configurations of this class made."""
    made: list[str] = []
    for name, module in model.named_modules():
        is_one = isinstance(module, PreTrainedModel) and type(module.config) is type(config)
        if name and is_one and not _within(name, made):
            made.append(name)
    return tuple(made)


def _merger(model: PreTrainedModel, tower: str) -> tuple[str, ...]:
    """The children of a vision tower that merge neighbouring patches and project what comes out:
    they mix the features of spatial_merge_size x spatial_merge_size patches."""
    config = model.config.vision_config
    merged = getattr(config, "spatial_merge_size", 0) ** 2
    widths = {merged * getattr(config, key, 0) for key in ("hidden_size", "embed_dim")} - {0}
    return tuple(
        f"{tower}.{name}"
        for name, child in model.get_submodule(tower).named_children()
        if any(
            isinstance(each, nn.Linear) and each.in_features == each.out_features in widths
            for each in child.modules()
        )
    )


def _part(model: nn.Module, modules: Sequence[str], but: Sequence[str] = ()) -> Part:
    every = model.named_parameters(remove_duplicate=False)
    named = {name: p for name, p in every if _within(name, modules) and not _within(name, but)}
    first = {id(parameter): name for name, parameter in reversed(named.items())}
    return Part(tuple(modules), {name: named[name] for name in reversed(first.values())})


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(not module or f"{name}.".startswith(f"{module}.") for module in modules)


def _apart(module: nn.Module, taken: Sequence[str], prefix: str = "") -> Iterator[str]:
    """The outermost modules, and parameters outside of any, that hold nothing of what is taken."""
    if "" in taken:
        return
    for name, _ in module.named_parameters(prefix, recurse=False):
        yield name
    for name, child in module.named_children():
        name = f"{prefix}.{name}" if prefix else name
        if any(f"{each}.".startswith(f"{name}.") for each in taken):
            if name not in taken:
                yield from _apart(child, taken, name)
        elif any(True for _ in child.parameters()):
            yield name
