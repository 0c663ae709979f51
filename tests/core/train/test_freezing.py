"""What `freeze_config` freezes in models of different structure, told by their configurations."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from automodel_core.config.schema import FreezeConfig
from automodel_core.errors import UserError
from automodel_core.parts import parts_of
from automodel_core.train.freezing import freeze

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4} | {
    key: VISION[key] for key in ("hidden_size", "intermediate_size")
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}

# Family -> its configuration, and where its vision tower and projector are.
FAMILIES = {
    "gemma3": (
        lambda: transformers.Gemma3Config(text_config=TEXT, vision_config=VISION),
        "model.vision_tower",
        "model.multi_modal_projector",
    ),
    "llava": (
        lambda: transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT),
            vision_config=transformers.CLIPVisionConfig(**VISION),
        ),
        "model.vision_tower",
        "model.multi_modal_projector",
    ),
    "idefics3": (
        lambda: transformers.Idefics3Config(
            text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION
        ),
        "model.vision_model",
        "model.connector",
    ),
    "qwen2_5_vl": (
        lambda: transformers.Qwen2_5_VLConfig(text_config=TEXT | ROPE, vision_config=QWEN),
        "model.visual",
        "model.visual.merger",
    ),
    "mistral3": (
        lambda: transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**TEXT),
            vision_config=transformers.PixtralVisionConfig(**VISION),
        ),
        "model.vision_tower",
        "model.multi_modal_projector",
    ),
    "pixtral": (
        lambda: transformers.LlavaConfig(
            text_config=transformers.MistralConfig(**TEXT),
            vision_config=transformers.PixtralVisionConfig(**VISION),
        ),
        "model.vision_tower",
        "model.multi_modal_projector",
    ),
}


def build(family: str) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(FAMILIES[family][0]())


def names_frozen(model) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


EACH = pytest.mark.parametrize("family", FAMILIES)


@EACH
def test_every_parameter_belongs_to_a_part_and_to_one_but_for_embeddings(family):
    model = build(family)
    parts = parts_of(model)
    count = sum(len(part.parameters) for name, part in parts.items() if name != "embeddings")
    assert count == sum(1 for _ in model.parameters())
    assert parts["embeddings"].parameters.keys() < parts["language_model"].parameters.keys()


@EACH
def test_the_vision_tower(family):
    model, (_, tower, projector) = build(family), FAMILIES[family]
    freeze(model, FreezeConfig(freeze_vision_tower=True))
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(tower) and not name.startswith(projector)
    }
    assert names_frozen(model) == expected != set()


@EACH
def test_the_projector(family):
    model = build(family)
    freeze(model, FreezeConfig(freeze_projector=True))
    projector = FAMILIES[family][2]
    expected = {name for name, _ in model.named_parameters() if name.startswith(projector)}
    assert names_frozen(model) == expected != set()


@EACH
def test_the_language_model(family):
    model, (_, tower, projector) = build(family), FAMILIES[family]
    freeze(model, FreezeConfig(freeze_language_model=True))
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert left == {
        name for name, _ in model.named_parameters() if name.startswith((tower, projector))
    }


@EACH
def test_embeddings_are_those_of_the_language_model(family):
    model = build(family)
    freeze(model, FreezeConfig(freeze_embeddings=True))
    assert names_frozen(model) == {
        name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight
    }


@EACH
def test_what_a_model_lacks_is_refused_by_name(family):
    with pytest.raises(UserError, match="no audio tower") as refused:
        freeze(build(family), FreezeConfig(freeze_audio_tower=True))
    assert "freeze_vision_tower" in refused.value.fix


def test_the_audio_tower():
    sound = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma4Config(
        text_config=TEXT | {"hidden_size_per_layer_input": 0},
        vision_config=VISION | {"num_key_value_heads": 2, "head_dim": 16},
        audio_config=sound,
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    freeze(model, FreezeConfig(freeze_audio_tower=True))
    expected = {n for n, _ in model.named_parameters() if n.startswith("model.audio_tower")}
    assert names_frozen(model) == expected != set()


def text_model(tied: bool = True) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, tie_word_embeddings=tied)
        )


def test_tied_output_embeddings_freeze_with_the_embeddings_and_it_is_said():
    model = text_model()
    (line,) = freeze(model, FreezeConfig(freeze_embeddings=True))
    assert "the output embeddings, which share them, too" in line
    assert names_frozen(model) == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_untied_output_embeddings_train():
    model = text_model(tied=False)
    (line,) = freeze(model, FreezeConfig(freeze_embeddings=True))
    assert "output" not in line
    assert model.lm_head.weight.requires_grad


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="every parameter"):
        freeze(text_model(), FreezeConfig(freeze_language_model=True))


@pytest.mark.parametrize("section", [None, FreezeConfig()])
def test_an_absent_section_or_key_freezes_nothing(section):
    model = text_model()
    assert freeze(model, section) == []
    assert names_frozen(model) == set()
