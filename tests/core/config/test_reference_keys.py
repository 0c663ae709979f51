"""Each key of the reference, and the test that shows what it does, or the refusal until it does."""

import ast
from pathlib import Path

import pytest

from automodel_core.config.document import dotted, paths_below
from automodel_core.config.reading import Reader, compose
from tests.core.config.test_reference import (
    BLOCKS,
    REFERENCE,
    REFUSED,
)

ROOT = Path(__file__).parents[3]
KEYS = "tests/e2e/test_keys.py"
MANAGERS = "tests/plugins/distributed/test_managers.py"
WANDB = "tests/plugins/loggers/test_wandb.py"
ALIASES = "tests/core/config/test_aliases.py::test_the_other_spelling_is_moved"
NAMES = f"{KEYS}::test_names_of_the_reference_mean_ours"
VALIDATION = f"{KEYS}::test_validation_dataset"
VALIDATION_LOADER = f"{KEYS}::test_validation_dataloader"
SIZES = f"{KEYS}::test_distributed_sizes_above_one_are_refused_by_name"
ADAM = f"{KEYS}::test_optimizer_weight_decay_betas_eps"
LR = f"{KEYS}::test_optimizer_lr_and_lr_scheduler"
WAITS = f"{KEYS}::test_dist_env_in_one_process_says_that_it_waits"
SENT = f"{WANDB}::test_project_entity_name_group_tags_and_save_dir"
ADAPTERS = "tests/e2e/test_adapters.py"
PEFT = f"{ADAPTERS}::test_the_references_peft_keys_are_honoured"
IMAGES = "tests/plugins/datasets/test_image_sets.py"
MARKER = (
    "tests/plugins/datasets/test_image_collate.py::"
    "test_answers_and_their_ends_are_learned_and_nothing_else"
)
FREEZING = "tests/core/train/test_freezing.py"
SLURM = "tests/plugins/launchers/test_slurm.py"
SUBMITTED = f"{SLURM}::test_each_key_has_its_line"
CARRIED = f"{SLURM}::test_secrets_travel_by_the_environment_alone"
PATTERN = "There is no key `component`."

# Key -> a test, as file::function; or the message of a refusal.
EFFECTS = {
    "step_scheduler.grad_acc_steps": f"{KEYS}::test_step_scheduler_grad_acc_steps",
    "step_scheduler.max_steps": f"{KEYS}::test_step_scheduler_max_steps",
    "step_scheduler.num_epochs": f"{KEYS}::test_step_scheduler_num_epochs",
    "step_scheduler.ckpt_every_steps": f"{KEYS}::test_step_scheduler_ckpt_every_steps",
    "step_scheduler.val_every_steps": f"{KEYS}::test_step_scheduler_val_every_steps",
    "model._target_": NAMES,
    "model.pretrained_model_name_or_path": f"{KEYS}::test_model_pretrained_model_name_or_path",
    "model.torch_dtype": f"{KEYS}::test_model_torch_dtype",
    "model.use_liger_kernel": f"{KEYS}::test_model_use_liger_kernel",
    "model.use_sdpa_patching": f"{KEYS}::test_model_use_sdpa_patching",
    "model.attn_implementation": f"{KEYS}::test_model_attn_implementation",
    "distributed._target_": NAMES,
    "distributed.dp_size": SIZES,
    "distributed.dp_replicate_size": SIZES,
    "distributed.tp_size": SIZES,
    "distributed.cp_size": SIZES,
    "distributed.sequence_parallel": f"{MANAGERS}::test_sequence_parallel_needs_tensor_parallelism",
    "peft._target_": PEFT,
    "peft.match_all_linear": f"{ADAPTERS}::test_match_all_linear_adapts_every_linear_layer",
    "peft.include_modules": PEFT,
    "peft.exclude_modules": PEFT,
    "peft.dim": PEFT,
    "peft.alpha": PEFT,
    "peft.dropout": PEFT,
    "peft.use_triton": f"{ADAPTERS}::test_use_triton_true_is_refused_with_the_override",
    "dataset._target_": NAMES,
    "dataset.dataset_name": f"{KEYS}::test_dataset_split",
    "dataset.path_or_dataset": f"{IMAGES}::test_medpix_is_read_from_what_datasets_saved",
    "dataset.split": f"{KEYS}::test_dataset_split",
    "dataset.limit_dataset_samples": f"{KEYS}::test_dataset_limit_dataset_samples",
    "validation_dataset._target_": VALIDATION,
    "validation_dataset.dataset_name": VALIDATION,
    "validation_dataset.path_or_dataset": f"{IMAGES}::test_medpix_is_read_from_what_datasets_saved",
    "validation_dataset.split": VALIDATION,
    "validation_dataset.limit_dataset_samples": VALIDATION,
    "dataloader._target_": f"{KEYS}::test_dataloader_target_and_pin_memory",
    "dataloader.batch_size": f"{KEYS}::test_dataloader_batch_size",
    "dataloader.shuffle": f"{KEYS}::test_dataloader_shuffle",
    "dataloader.num_workers": f"{KEYS}::test_dataloader_num_workers",
    "dataloader.pin_memory": f"{KEYS}::test_dataloader_target_and_pin_memory",
    "dataloader.collate_fn": f"{KEYS}::test_dataloader_collate_fn",
    "dataloader.collate_fn._target_": f"{KEYS}::test_dataloader_collate_fn",
    "dataloader.collate_fn.start_of_response_token": MARKER,
    "validation_dataloader._target_": VALIDATION_LOADER,
    "validation_dataloader.batch_size": VALIDATION_LOADER,
    "validation_dataloader.collate_fn._target_": VALIDATION_LOADER,
    "validation_dataloader.collate_fn.start_of_response_token": MARKER,
    "optimizer._target_": f"{KEYS}::test_optimizer_target",
    "optimizer.lr": LR,
    "optimizer.weight_decay": ADAM,
    "optimizer.betas": ADAM,
    "optimizer.eps": ADAM,
    "lr_scheduler.lr_decay_style": LR,
    "lr_scheduler.min_lr": LR,
    "lr_scheduler.warmup_steps": LR,
    "loss_fn._target_": f"{KEYS}::test_loss_fn_target",
    "dist_env.backend": WAITS,
    "dist_env.timeout_minutes": WAITS,
    "rng._target_": NAMES,
    "rng.seed": f"{KEYS}::test_rng_seed",
    "rng.ranked": f"{KEYS}::test_rng_ranked",
    "checkpoint.enabled": f"{KEYS}::test_checkpoint_enabled",
    "checkpoint.checkpoint_dir": f"{KEYS}::test_checkpoint_checkpoint_dir",
    "checkpoint.model_save_format": f"{KEYS}::test_checkpoint_model_save_format",
    "checkpoint.save_every_steps": f"{KEYS}::test_checkpoint_save_every_steps",
    "freeze_config.freeze_embeddings": f"{KEYS}::test_freeze_config",
    "freeze_config.freeze_vision_tower": f"{FREEZING}::test_the_vision_tower",
    "freeze_config.freeze_language_model": f"{FREEZING}::test_the_language_model",
    "wandb.project": SENT,
    "wandb.entity": SENT,
    "wandb.name": SENT,
    "wandb.save_dir": SENT,
    "wandb.api_key": f"{WANDB}::test_online_the_key_opens_the_door_and_is_told_to_nobody",
    "logger.wandb_project": ALIASES,
    "logger.wandb_entity": ALIASES,
    "logger.wandb_exp_name": ALIASES,
    "logger.wandb_save_dir": ALIASES,
    "slurm.job_name": SUBMITTED,
    "slurm.nodes": SUBMITTED,
    "slurm.ntasks_per_node": SUBMITTED,
    "slurm.time": SUBMITTED,
    "slurm.account": SUBMITTED,
    "slurm.partition": SUBMITTED,
    "slurm.container_image": SUBMITTED,
    "slurm.gpus_per_node": SUBMITTED,
    "slurm.master_port": SUBMITTED,
    "slurm.hf_home": SUBMITTED,
    "slurm.wandb_key": CARRIED,
    "slurm.hf_token": CARRIED,
    # The reference's picture of a section; no section is called so.
    "component._target_": PATTERN,
    "component.parameter1": PATTERN,
    "component.parameter2": PATTERN,
}


def keys_of(block: str) -> set[str]:
    """The keys of a block, without the sections that hold them and the items of lists."""
    text = (REFERENCE / f"{block}.yaml").read_text()
    document = Reader(block, text).read(compose(text, block))
    return {
        dotted(path)
        for path in paths_below(document.tree)
        if path and isinstance(path[-1], str) and not isinstance(document.get(path), dict)
    }


IN_REFERENCE = {block: keys_of(block) for block in BLOCKS}


def test_every_key_of_the_reference_has_a_row():
    assert set(EFFECTS) == set().union(*IN_REFERENCE.values())


@pytest.mark.parametrize("effect", sorted(set(EFFECTS.values())))
def test_every_row_is_true(effect):
    if "::" in effect:
        file, _, function = effect.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
        return
    for key in [key for key, refusal in EFFECTS.items() if refusal == effect]:
        blocks = [block for block in BLOCKS if key in IN_REFERENCE[block]]
        messages = [message for block in blocks for _, message in REFUSED.get(block, [])]
        assert effect in messages, f"{key} is no longer refused: name the test of its effect"
