"""Two spellings of one key."""

import pytest

from automodel_core.config.aliases import MOVES

SAME = {
    "step_scheduler: {ckpt_every_steps: 5}": ("checkpoint.save_every_steps", 5),
    "step_scheduler: {local_batch_size: 5}": ("dataloader.batch_size", 5),
    "lr_scheduler: {lr_warmup_steps: 5}": ("lr_scheduler.warmup_steps", 5),
    "seed: 5": ("rng.seed", 5),
    "clip_grad_norm: {max_norm: 0.5}": ("clip_grad_norm", 0.5),
    "distributed: {strategy: fsdp2}": ("distributed._target_", "fsdp2"),
    "recipe: {_target_: some.Recipe}": ("recipe", "some.Recipe"),
    "logger: {wandb_project: p}": ("wandb.project", "p"),
    "logger: {wandb_entity: p}": ("wandb.entity", "p"),
    "logger: {wandb_exp_name: p}": ("wandb.name", "p"),
    "logger: {wandb_save_dir: p}": ("wandb.save_dir", "p"),
    "wandb: {dir: p}": ("wandb.save_dir", "p"),
    "peft: {target_modules: [a]}": ("peft.include_modules", ["a"]),
    "distributed: {activation_checkpointing: full}": ("activation_checkpointing", "full"),
    "model: {dtype: bfloat16}": ("model.torch_dtype", "bfloat16"),
}


def at(tree, dotted):
    for name in dotted.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize("text", SAME)
def test_the_other_spelling_is_moved(text, read):
    ours, value = SAME[text]
    document = read(text + "\n", base="").document
    assert at(document.tree, ours) == value
    path = tuple(ours.split("."))
    assert document.wrote(path).line == 1
    assert document.name(path) != ours


def test_every_alias_is_tested():
    written = {line.partition(":")[0] for line in SAME}
    assert len(SAME) == len(MOVES)
    assert {path[0] for path in MOVES} == written


def test_both_spellings_with_one_value_agree(read):
    result = read(
        "checkpoint: {save_every_steps: 5}\n", "step_scheduler={ckpt_every_steps: 5, max_steps: 9}"
    )
    assert result.problems == []
    assert result.config.checkpoint.save_every_steps == 5


def test_wandb_and_logger_are_merged(read):
    text = "wandb: {project: a, entity: b}\nlogger: {wandb_exp_name: c, wandb_project: a}\n"
    wandb = read(text).config.wandb
    assert wandb.target.arguments == {"project": "a", "entity": "b", "name": "c"}


CONFLICTS = {
    "sections": "wandb:\n  project: a\nlogger:\n  wandb_project: b\n",
    "inside one": "lr_scheduler:\n  warmup_steps: 1\n  lr_warmup_steps: 2\n",
    "none and a value": "rng:\n  seed: none\nseed: 2\n",
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_both_spellings_with_different_values_name_both_lines(case, refusal, snapshot):
    assert refusal(CONFLICTS[case]) == snapshot


WRONG = {
    "named as it was written": "lr_scheduler:\n  lr_warmup_steps: many\n",
    "unknown in logger": "logger:\n  wandb_projekt: a\n",
    "beside other keys": "clip_grad_norm:\n  max_norm: 1.0\n  norm_type: 2\n",
    "into what is no section": "rng: 5\nseed: 3\n",
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_in_the_users_spelling(case, refusal, snapshot):
    assert refusal(WRONG[case]) == snapshot


# The keys and spellings that NeMo Automodel's own recipes have today.
TODAY = """\
recipe:
  _target_: nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction
step_scheduler:
  global_batch_size: 64
  local_batch_size: 8
  ckpt_every_steps: 1000
  val_every_steps: 10
  num_epochs: 1
dist_env:
  backend: nccl
  timeout_minutes: 1
rng:
  _target_: nemo_automodel.components.training.rng.StatefulRNG
  seed: 1111
  ranked: true
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: meta-llama/Llama-3.2-1B
  dtype: bfloat16
compile:
  enabled: false
  mode: "default"
  fullgraph: false
clip_grad_norm:
  max_norm: 1.0
distributed:
  strategy: fsdp2
  dp_size: none
  tp_size: 1
  cp_size: 1
loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy
dataset:
  _target_: nemo_automodel.components.datasets.llm.squad.make_squad_dataset
  dataset_name: rajpurkar/squad
  split: train
packed_sequence:
  packed_sequence_size: 0
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: nemo_automodel.components.datasets.utils.default_collater
  shuffle: false
validation_dataset:
  _target_: nemo_automodel.components.datasets.llm.squad.make_squad_dataset
  dataset_name: rajpurkar/squad
  split: validation
  limit_dataset_samples: 64
validation_dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: nemo_automodel.components.datasets.utils.default_collater
optimizer:
  _target_: torch.optim.Adam
  betas: [0.9, 0.999]
  eps: 1e-8
  lr: 1.0e-5
  weight_decay: 0
lr_scheduler:
  lr_decay_style: cosine
  min_lr: 1.0e-6
  lr_warmup_steps: 10
checkpoint:
  enabled: true
  save_consolidated: true
wandb:
  enable: false
  project: tiny
  dir: logs
"""


def test_todays_recipes_are_accepted(read, findings, file):
    assert findings([file(TODAY)]) == []
    config = read(TODAY, base="").config
    assert config.dataloader.batch_size == config.validation_dataloader.batch_size == 8
    assert config.checkpoint.save_every_steps == 1000
    assert config.lr_scheduler.warmup_steps == 10
    assert config.distributed.name == "fsdp2"
    assert config.model.arguments["torch_dtype"] == "bfloat16"
