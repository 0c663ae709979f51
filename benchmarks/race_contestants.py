"""One contestant of `race.py`, in a process of its own: it trains as many steps as it is told to.

`race_gate.py` says how it is told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


from race_gate import Gate  # noqa: E402

# What all contestants train with.
RATE, CLIP = 1e-5, 1.0
RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "k_proj", "v_proj", "o_proj")


@attrs.frozen
class Case:
    """What is to be trained.

    Attributes:
        model: A folder with configuration and weights.
        rows: What `race_rows.write_rows` wrote.
        kind: "full", "lora", "packed", or "ragged": full, documents of many lengths.
        batch: Rows of a step; documents of one, where they are ragged.
        length: Tokens of a row; of the longest document.
        yaml: The same for automodel.
        scratch: A folder for whatever a contestant writes.
    """

    model: Path
    rows: Path
    kind: str
    batch: int
    length: int
    yaml: Path
    scratch: Path

    @property
    def on_gpu(self) -> bool:
        return torch.cuda.is_available()

    @property
    def device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"


def automodel(case: Case, gate: Gate, **changes: Any) -> None:
    """Ours, from a YAML file, with sections changed or, by None, left out."""
    from ruamel.yaml import YAML

    from automodel_core.bench.measuring import ready
    from automodel_core.cli.loading import load
    from automodel_core.train.build import no_hooks
    from automodel_core.train.context import RunContext
    from automodel_core.train.loop import optimizer_step
    from automodel_core.train.signals import StopRequest

    file = case.yaml
    if changes:
        reader = YAML(typ="safe")
        asked = reader.load(file)
        asked = {name: value for name, value in (asked | changes).items() if value is not None}
        case.scratch.mkdir()
        file = case.scratch / "changed.yaml"
        reader.dump(asked, file)
    loaded = load([str(file)], allow=["race_rows."], strict=True)
    context = RunContext(targets=loaded.targets, hooks=no_hooks(), effective={})
    with ready(loaded.require(), context) as (run, _):
        while True:
            gate.before()
            reading = optimizer_step(run, StopRequest())
            gate.after(
                lambda each=reading: each.metrics().loss,
                lambda each=reading: each.metrics().num_label_tokens,
            )


def automodel_with(attention: str, case: Case, gate: Gate) -> None:
    """Ours with an attention that `auto` may not choose."""
    model = {
        "_target_": "causal_lm",
        "pretrained_model_name_or_path": str(case.model),
        "torch_dtype": "bfloat16",
        "attn_implementation": attention,
    }
    automodel(case, gate, model=model)


def automodel_unpacked(case: Case, gate: Gate) -> None:
    """Ours on rows of one document each, of other tokens."""
    mock = {"_target_": "mock", "length": case.length}
    automodel(case, gate, dataset=mock, packed_sequence=None)


def automodel_triton_adamw(case: Case, gate: Gate) -> None:
    """Ours with our kernel for updates."""
    adamw = {"_target_": "triton_adamw", "lr": RATE, "weight_decay": 0.0}
    automodel(case, gate, optimizer=adamw)


def by_hand(case: Case, gate: Gate) -> None:
    """The loop that somebody would write for this model alone."""
    import race_loops

    race_loops.by_hand(case, gate)


def torchtitan(case: Case, gate: Gate) -> None:
    """torchtitan's model, compiled layers and loss, in a bare loop."""
    import race_loops

    race_loops.torchtitan(case, gate)


def trainer_liger(case: Case, gate: Gate) -> None:
    """transformers' Trainer with Liger's kernels."""
    with_trainer(case, gate, liger=True)


def trainer(case: Case, gate: Gate) -> None:
    """transformers' Trainer."""
    with_trainer(case, gate, liger=False)


def with_trainer(case: Case, gate: Gate, liger: bool) -> None:
    from race_rows import Ragged, Rows, padded, stacked
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    if liger:
        import liger_kernel.transformers  # noqa: F401  fails here and not in the middle
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.bfloat16)
    if case.kind == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        model = get_peft_model(model, lora)
    arguments = TrainingArguments(**trainer_arguments(case), use_liger_kernel=liger)
    if case.kind == "ragged":
        rows, collate = Ragged(case.rows), padded
    else:
        rows, collate = Rows(case.rows, packed=case.kind == "packed"), stacked
    race_trainer(Trainer, gate, rows, model=model, args=arguments, data_collator=collate)


def unsloth(case: Case, gate: Gate) -> None:
    """unsloth without what makes it slower here: accumulation, checkpointing, and, where all rows
    are of one length, its padding-free rows."""
    ragged = case.kind == "ragged"
    if not ragged:
        os.environ["UNSLOTH_DISABLE_AUTO_PADDING_FREE"] = "1"
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    from unsloth import FastLanguageModel  # noqa: I001  before trl and transformers
    from datasets import Dataset
    from race_rows import Ragged, Rows, stacked
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(case.model),
        max_seq_length=case.length,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        full_finetuning=case.kind != "lora",
        use_gradient_checkpointing=False,
    )
    if case.kind == "lora":
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=list(TARGETS),
            use_gradient_checkpointing=False,
        )
    arguments = SFTConfig(
        **trainer_arguments(case, pads=not ragged),
        max_length=case.length,
        packing=False,
        padding_free=ragged,
        # Its padding-free mode insists on cutting rows itself, and so on preparing them.
        dataset_kwargs=None if ragged else {"skip_prepare_dataset": True},
        # Each process more would import all of it, for rows that one goes through in a moment.
        dataset_num_proc=1,
    )
    columns = Ragged(case.rows).columns if ragged else Rows(case.rows, packed=False).columns
    rows = Dataset.from_dict(
        {name: [row.numpy() for row in each] for name, each in columns.items()}
    )
    race_trainer(
        SFTTrainer,
        gate,
        rows if ragged else rows.with_format("torch"),
        model=model,
        args=arguments,
        processing_class=tokenizer,
        # Its own collator lays rows of several lengths behind each other.
        data_collator=None if ragged else stacked,
    )


def trainer_arguments(case: Case, *, pads: bool = True) -> dict[str, Any]:
    """What a Trainer is told, whoever's it is. Documents that are padded stand among others of
    their length."""
    grouped = case.kind == "ragged" and pads
    return {
        "output_dir": str(case.scratch),
        "per_device_train_batch_size": case.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "max_steps": 1_000_000,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "bf16": True,
        "use_cpu": not case.on_gpu,
        "train_sampling_strategy": "group_by_length" if grouped else "sequential",
        "remove_unused_columns": False,
        "dataloader_num_workers": 2,
        "dataloader_pin_memory": case.on_gpu,
        "save_strategy": "no",
        "logging_steps": 1_000_000,
        "logging_nan_inf_filter": False,  # looks at every loss, and so waits for it
        "report_to": "none",
        "disable_tqdm": True,
    }


def race_trainer(kind: type, gate: Gate, rows: Any, **given: Any) -> None:
    """Train with a Trainer whose steps pass the gate."""
    from race_rows import IGNORED
    from transformers import TrainerCallback

    class AtGate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.before()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.after(*done.pop())

    done: list[tuple[torch.Tensor, torch.Tensor]] = []
    made = kind(train_dataset=rows, callbacks=[AtGate()], **given)
    inner = made.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        learned = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss = inner(model, inputs, *args, **kwargs).detach()
        done.append((loss, learned))
        return loss

    made.training_step = training_step
    made.train()


CONTESTANTS = {
    "automodel": automodel,
    "automodel flex": partial(automodel_with, "flex"),
    "automodel varlen": partial(automodel_with, "varlen"),
    "automodel unpacked": automodel_unpacked,
    "automodel triton_adamw": automodel_triton_adamw,
    "by hand": by_hand,
    "torchtitan + compile": torchtitan,
    "unsloth": unsloth,
    "Trainer + Liger": trainer_liger,
    "Trainer": trainer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("case", help="a Case as JSON")
    options = parser.parse_args()
    told = json.loads(options.case)
    for name in ("model", "rows", "yaml", "scratch"):
        told[name] = Path(told[name])
    # Libraries print; their words go where errors go.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.manual_seed(0)
    CONTESTANTS[options.name](Case(**told), Gate(sys.stdin, replies))


if __name__ == "__main__":
    main()
