"""transformers.Trainer as the referee of whole runs, on the very same batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from automodel_core.protocols import Batch, Dataset
from automodel_datasets.collate import default_collater
from automodel_datasets.squad import make_squad_dataset

STEPS, MICRO_BATCH, ACCUMULATION, LR = 50, 2, 2, 1e-3

# The same in our words.
SAME = {
    "step_scheduler": {"max_steps": STEPS, "grad_acc_steps": ACCUMULATION},
    "dataloader": {"batch_size": MICRO_BATCH, "shuffle": False},
    "optimizer": {"lr": LR, "weight_decay": 0.01, "betas": [0.9, 0.95]},
    "lr_scheduler": {"lr_decay_style": "cosine"},
}


class RawLosses(Trainer):
    """Keeps the unrounded loss of every optimizer step, and the order of the data."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Some models that see tell Trainer otherwise, which then averages micro-batches however
        # many tokens each has. Their loss takes the step's count like any other's.
        self.model_accepts_loss_kwargs = True
        self.micro_losses = []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.micro_losses.append(loss.item())
        return loss

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def get_decay_parameter_names(self, model):
        return [name for name, _ in model.named_parameters()]


def trainer_losses(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Path,
    scratch: Path,
) -> list[float]:
    """Train a float32 model on SQuAD's columns in `data`; the loss of every optimizer step."""
    dataset = make_squad_dataset(
        tokenizer=tokenizer, model_config=model.config, dataset_name=str(data), split="train"
    )
    return losses_on(dataset, model, lambda rows: default_collater(rows, tokenizer), scratch, STEPS)


def losses_on(
    dataset: Dataset,
    model: PreTrainedModel | PeftModel,
    collate: Callable[[list[Any]], Batch],
    scratch: Path,
    steps: int,
) -> list[float]:
    """Train a float32 model on samples in their order; the loss of every optimizer step."""
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=LR,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = RawLosses(
        model=model,
        args=arguments,
        train_dataset=[dataset[i] for i in range(len(dataset))],
        data_collator=collate,
    )
    trainer.train()
    # Trainer divides each micro-batch by the tokens of the whole step: a step's loss is their sum.
    pairs = zip(*[iter(trainer.micro_losses)] * ACCUMULATION, strict=True)
    return [sum(pair) for pair in pairs]
