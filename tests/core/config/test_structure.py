"""What the sections mean, and what holds where they are left out."""

import attrs
import pytest

from automodel_core.config.schema import Slot, Target
from tests.core.config.conftest import BASE


def test_defaults(read):
    config = read().config
    assert config.optimizer == Target(
        "adamw", "optimizers", {"weight_decay": 0.0, "lr": 2e-5}, ("optimizer",), "partial"
    )
    assert config.loss_fn == Target("cross_entropy", "losses", {}, ("loss_fn",))
    assert config.dataloader.loader.name == "stateful"
    assert config.dataloader.batch_size == 1
    assert config.dataloader.shuffle is False
    assert config.dataloader.collate_fn.name == "default_collater"
    assert config.rng.target.name == "stateful_rng"
    assert config.rng.seed == 42
    assert config.clip_grad_norm == 1.0
    assert config.lr_scheduler.lr_decay_style == "constant"
    assert config.lr_scheduler.min_lr == 0.0
    assert config.checkpoint.enabled
    assert config.checkpoint.save_every_steps is None
    assert config.step_scheduler.grad_acc_steps is None
    assert config.distributed is None
    assert "torch_dtype" not in config.model.arguments


OPTIMIZERS = {
    "": {"lr": 2e-5, "weight_decay": 0.0},
    "optimizer: {}\n": {"lr": 2e-5, "weight_decay": 0.0},
    "optimizer: {lr: 1}\n": {"lr": 1, "weight_decay": 0.0},
    "optimizer: torch.optim.Adam\n": {"lr": 2e-5},
    "optimizer: {_target_: torch.optim.Adam}\n": {"lr": 2e-5},
    "optimizer: {_target_: torch.optim.Adam, lr: 1e-5}\n": {"lr": 1e-5},
}


@pytest.mark.parametrize("text", OPTIMIZERS)
def test_optimizer_defaults(text, read):
    assert read(text).config.optimizer.arguments == OPTIMIZERS[text]


def test_a_target_is_a_section_or_a_name(read):
    section = read("loss_fn: {_target_: chunked_ce, chunk_len: 8}\n").config.loss_fn
    assert section == Target("chunked_ce", "losses", {"chunk_len": 8}, ("loss_fn",))
    assert read("loss_fn: chunked_ce\n").config.loss_fn.name == "chunked_ce"
    collate = read("dataloader: {collate_fn: my.collate}\n").config.dataloader.collate_fn
    assert collate == Target("my.collate", "collators", {}, ("dataloader", "collate_fn"), "partial")


def test_sections_with_a_target_pass_on_what_they_do_not_know(read):
    loader = read("dataloader: {batch_size: 8, num_workers: 2}\n").config.dataloader
    assert loader.batch_size == 8
    assert loader.loader.arguments == {"num_workers": 2}
    assert loader.loader.path == ("dataloader",)


def test_targets_inside_arguments(read):
    text = "optimizer:\n  _target_: adamw\n  deep: [{x: {_target_: a.B, y: [{_target_: c.D}]}}]\n"
    [deep] = read(text).config.optimizer.arguments["deep"]
    inner = Target("c.D", None, {}, ("optimizer", "deep", 0, "x", "y", 0))
    assert deep == {"x": Target("a.B", None, {"y": [inner]}, ("optimizer", "deep", 0, "x"))}


def test_one_validation_set_or_several_by_name(read):
    assert read("validation_dataset: {_target_: squad}\n").config.validation_dataset.name == "squad"
    several = read("validation_dataset: {a: {_target_: squad}, b: {_target_: x.Y}}\n").config
    names = {name: target.name for name, target in several.validation_dataset.items()}
    assert names == {"a": "squad", "b": "x.Y"}


def test_the_validation_loader_inherits_all_but_the_order(read):
    text = """\
dataloader: {batch_size: 8, shuffle: true, num_workers: 2, collate_fn: my.collate}
validation_dataloader: {batch_size: 4}
"""
    loader = read(text).config.validation_dataloader
    assert (loader.batch_size, loader.shuffle) == (4, False)
    assert loader.loader.arguments == {"num_workers": 2}
    assert loader.collate_fn.name == "my.collate"
    assert read().config.validation_dataloader is None


def test_a_mistake_in_what_is_inherited_is_told_once(findings, file):
    text = "dataloader: {batch_size: x, nonsense: 1}\nvalidation_dataloader: {}\n"
    problems = set(findings([file(BASE + text)]))
    assert sorted(each.message for each in problems) == [
        "`dataloader.batch_size` must be a whole number, not the text \"x\".",
        "`stateful` takes no argument `nonsense`.",
    ]  # fmt: skip


def test_what_is_wrong_is_none_and_the_rest_is_there(read):
    text = "dataloader: {batch_size: x, collate_fn: my.collate}\nloss_fn: 5\n"
    result = read(text)
    assert len(result.problems) == 2
    assert result.config.loss_fn is None
    assert result.config.dataloader.batch_size is None
    assert result.config.dataloader.collate_fn.name == "my.collate"


OFF = [
    "compile: false\n",
    "compile:\n",
    "activation_checkpointing: none\n",
    "compile: {enabled: false, mode: default}\n",
    "peft:\n",
    "packed_sequence: {packed_sequence_size: 0}\n",
    "slurm: none\n",
]


@pytest.mark.parametrize("text", OFF)
def test_what_may_be_off(text, read):
    assert read(text).problems == []


def test_the_recipe_is_fine_tuning_by_one_of_its_names(read, refusal):
    old = "nemo_automodel.recipes.llm.finetune.FinetuneRecipeForNextTokenPrediction"
    assert read(f"recipe: {old}\n").config.recipe == old
    assert "recipe" in refusal("recipe: pretrain\n")


def test_sections_of_ones_own_are_never_read(read):
    assert read("x-anything: {_target_: 5}\n_mine: [no, off]\n").problems == []


def test_every_key_is_documented():
    from automodel_core.config import schema

    sections = [each for each in vars(schema).values() if attrs.has(each)]
    for section in sections:
        if section in (Target, Slot):
            continue
        assert section.__doc__
        for field in attrs.fields(section):
            assert field.metadata["doc"].endswith("."), field.name


MISSPELT = {
    "rng.sead=1": "did you mean `seed`?",
    "dataloader.batchsize=2": "did you mean `batch_size`?",
    "dataloader.num_worker=2": "did you mean `num_workers`?",
    "wandb.enabled=true": "did you mean `enable`?",
    "wandb.proyect=x": "did you mean `project`?",
}


@pytest.mark.parametrize("word", MISSPELT)
def test_the_keys_of_a_section_and_of_its_target_are_both_offered(word, findings, file):
    [problem] = findings([file(BASE), word])
    assert problem.hint == MISSPELT[word]
