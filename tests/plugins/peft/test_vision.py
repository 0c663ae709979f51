"""Which modules of models that see are adapted, and how such adapters open in PEFT."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from automodel_core.parts import parts_of
from automodel_peft.selection import Patterns, choose
from tests.plugins.datasets.seeing import FAMILIES
from tests.vision import CONFIGURATIONS

family = pytest.mark.parametrize("name", CONFIGURATIONS)


def unread(name):
    configuration = CONFIGURATIONS[name](FAMILIES[name][0]())
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(configuration)


@family
def test_by_default_only_layers_of_the_language_model_are_adapted(name):
    model = unread(name)
    adapted = set(choose(model, Patterns()).adapted)
    language = parts_of(model)["language_model"].parameters
    layers = {key.removesuffix(".weight") for key in language if key.endswith("_proj.weight")}
    assert adapted == layers
    assert len(adapted) == 14, "seven in each of two layers"


@family
def test_every_linear_layer_leaves_out_a_frozen_tower_unless_it_is_named(name):
    model = unread(name)
    tower = parts_of(model)["vision_tower"]
    for parameter in tower.parameters.values():
        parameter.requires_grad_(False)
    (root,) = tower.modules

    def inside(patterns):
        return [each for each in choose(model, patterns).adapted if each.startswith(f"{root}.")]

    frozen = [each for each in inside(Patterns(match_all_linear=True)) if "merger" not in each]
    assert not frozen
    assert not [each for each in inside(Patterns(include=["*_proj"])) if "merger" not in each]
    assert inside(Patterns(include=[f"{root}.*", "*.q_proj"]))
