"""LoRA on a model that sees, beside Trainer with PEFT: tokens and images a second, peak memory.

    python benchmarks/vision_step.py --shape gemma3-4b              # on the first GPU
    python benchmarks/vision_step.py --shape tiny --steps 6         # on the CPU

Both sides read the same random weights in bfloat16, freeze the vision tower, adapt the same linear
layers of the language model in float32, and take the same samples through the same collator in as
many loader workers; images are PNG files that are decoded as they are needed. The sides take turns,
each in a process of its own, and what the first steps cost, compiling included, is left out. Needs
`peft`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from automodel_core.bench.environment import environment

# The shape of Gemma 3 4B (https://huggingface.co/google/gemma-3-4b-pt), and one for a laptop.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
                 "vocab_size": 512},
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        "tokens_per_image": 4,
    },
    "gemma3-4b": {
        "text": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                 "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                 "sliding_window": 1024, "vocab_size": 262208},
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                   "num_attention_heads": 16, "image_size": 896, "patch_size": 14},
        "tokens_per_image": 256,
    },
}  # fmt: skip
WORDS = [f"w{number}" for number in range(400)]
BOI, EOI, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", BOI, EOI, IMAGE, "<unk>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '"
    + BOI
    + "' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_turn>' }}{% endfor %}"
)
RANK, ALPHA, LR = 16, 32, 1e-4
# The linear layers of the language model, as both sides adapt them.
PEFT_LAYERS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """Random weights, a processor, images and conversations about them."""
    import numpy as np
    import torch
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        PreTrainedTokenizerFast,
    )

    try:
        from transformers import Gemma3ImageProcessorPil as ImageProcessor
    except ImportError:
        from transformers import Gemma3ImageProcessor as ImageProcessor

    shape = SHAPES[arguments.shape]
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=SPECIAL[3:5],
        extra_special_tokens={"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE},
    )  # fmt: skip
    size = shape["vision"]["image_size"]
    Gemma3Processor(
        ImageProcessor(size={"height": size, "width": size}),
        tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=shape["tokens_per_image"],
    ).save_pretrained(folder / "model")
    token = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config={**shape["text"], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=shape["vision"],
        mm_tokens_per_image=shape["tokens_per_image"],
        boi_token_index=token(BOI),
        eoi_token_index=token(EOI),
        image_token_index=token(IMAGE),
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    chance, noise, lines = random.Random(0), np.random.default_rng(0), []
    for number in range(arguments.batch * arguments.steps):
        pixels = noise.integers(0, 255, (size // 2, size // 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        asked = [
            {"type": "image", "image": f"{number}.png"},
            {"type": "text", "text": " ".join(["", *chance.choices(WORDS, k=16)])},
        ]
        answer = " ".join([*chance.choices(WORDS, k=arguments.words), ""])
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": said}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")


def ours(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """A run of `automodel`, by its own log."""
    import torch

    from automodel_core.cli import main

    config = {
        "model": {
            "_target_": "image_text",
            "pretrained_model_name_or_path": str(folder / "model"),
            "torch_dtype": "bfloat16",
        },
        "freeze_config": {"freeze_vision_tower": True},
        "peft": {"_target_": "lora", "dim": RANK, "alpha": ALPHA},
        "dataset": {
            "_target_": "image_conversations",
            "path_or_dataset": str(folder / "data.jsonl"),
        },
        "dataloader": {
            "batch_size": arguments.batch,
            "num_workers": arguments.workers,
            "shuffle": False,
            "pin_memory": torch.cuda.is_available(),  # as Trainer does
            "collate_fn": {"_target_": "image_text", "pixel_dtype": "bfloat16"},
        },
        "loss_fn": {"_target_": arguments.loss},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": LR, "fused": True},
        # `auto` compiles what runs for long enough to repay it, as these few steps do not; the
        # first of them, which compile, are left out.
        "compile": arguments.compile and torch.cuda.is_available(),
        "step_scheduler": {"max_steps": arguments.steps},
        "checkpoint": {"enabled": False, "checkpoint_dir": str(folder / f"run-{time.time_ns()}")},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    if main(["run", str(path), "--nproc-per-node", "1"]):
        raise SystemExit("the run failed")
    log = Path(config["checkpoint"]["checkpoint_dir"]) / "training.jsonl"
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    counted = steps[arguments.warmup :]
    return {
        "seconds": sum(step["seconds"] for step in counted),
        "waited": sum(step["data_seconds"] for step in counted),
        "tokens": sum(step["num_tokens"] for step in counted),
        "peak": counted[-1]["memory_gib"],
        "loss": counted[-1]["loss"],
        "compiled": config["compile"],
    }


def theirs(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Trainer with PEFT's adapters, between the end of the first steps and the last."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from automodel_core.train.metrics import peak_memory_gib
    from automodel_datasets.image_collate import image_text_collater
    from automodel_datasets.image_conversations import make_image_conversations

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PEFT_LAYERS)
    model = get_peft_model(model.to(device), config)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, _, state: Any, __, **___: Any) -> None:
            if state.global_step in (arguments.warmup, arguments.steps):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    class Sequential(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        dataloader_num_workers=arguments.workers,
        learning_rate=LR,
        lr_scheduler_type="constant",
        bf16=device.type == "cuda",
        use_cpu=device.type == "cpu",
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    data = make_image_conversations(str(folder / "data.jsonl"))
    trainer = Sequential(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=lambda rows: image_text_collater(rows, processor),
        callbacks=[Clock()],
    )
    trainer.train()
    last = [each["loss"] for each in trainer.state.log_history if "loss" in each][-1]
    counted = range(arguments.warmup * arguments.batch, arguments.steps * arguments.batch)
    batch = image_text_collater([data[i] for i in counted[: arguments.batch]], processor)
    each = int(batch["attention_mask"].sum()) / arguments.batch  # all samples are as long
    return {
        "seconds": times[-1] - times[0],
        "waited": None,
        "tokens": each * len(counted),
        "peak": peak_memory_gib(device),
        "loss": last,
    }


SIDES = {"ours": ours, "theirs": theirs}


def in_a_process(side: str, folder: Path) -> None:
    """Run one side, or `prepare`, where nothing else has been measured."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    log = folder / f"{side}.log"
    with log.open("w") as handle:
        code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{side} failed:\n{log.read_text()[-4000:]}")


def main() -> None:
    """Read the command; a side is started by `in_a_process`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="gemma3-4b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--words", type=int, default=200, help="of each answer")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--loss", choices=["masked_ce", "chunked_ce"], default="chunked_ce")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--side", choices=["prepare", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 0 < arguments.warmup < arguments.steps:
        raise SystemExit("--warmup must be less than --steps, and at least 1")
    if arguments.side == "prepare":
        prepare(arguments.folder, arguments)
    elif arguments.side:
        found = SIDES[arguments.side](arguments.folder, arguments)
        (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(found))
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Let the sides take turns; print what each of them reached, and ours in terms of theirs."""
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        in_a_process("prepare", folder)
        import torch  # noqa: F401 (names the GPU)

        where = environment("torch", "transformers", "peft")
        for name, value in where.items():
            print(f"{name}: {value}")
        print(
            f"{arguments.shape}, LoRA of rank {RANK}, bfloat16, vision tower frozen, "
            f"{arguments.batch} samples a step, steps {arguments.warmup + 1} to {arguments.steps}"
        )
        for turn in range(arguments.rounds):
            rounds.append({})
            for side in SIDES:
                in_a_process(side, folder)
                found = json.loads((folder / f"{side}.json").read_text())
                rounds[-1][side] = rates(found, arguments)
                print(f"round {turn + 1}  {side:6}  {in_words(rounds[-1][side])}", flush=True)
    for name, unit in (("tokens_per_second", "tokens/s"), ("peak_gib", "peak memory")):
        mine, other = (median(each[side][name] for each in rounds) for side in SIDES)
        print(f"ours / theirs, {unit}: {mine / other:.3f}")
    if arguments.out is not None:
        internal = {"side", "folder", "out"}
        asked = {key: value for key, value in vars(arguments).items() if key not in internal}
        told = {"environment": where, "arguments": asked, "rounds": rounds}
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")


def rates(found: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a side reached, by the second."""
    samples, seconds = (arguments.steps - arguments.warmup) * arguments.batch, found["seconds"]
    return {
        "tokens_per_second": found["tokens"] / seconds,
        "images_per_second": samples / seconds,
        "peak_gib": found["peak"],
        "loss": found["loss"],
        "waited": found["waited"] / seconds if found["waited"] is not None else None,
        "compiled": found.get("compiled", False),
    }


def in_words(reached: dict[str, Any]) -> str:
    """A line of the figures of one side."""
    waited = reached["waited"]
    return (
        f"{reached['tokens_per_second']:9.0f} tokens/s  "
        f"{reached['images_per_second']:7.2f} images/s  "
        f"{reached['peak_gib']:6.2f} GiB  loss {reached['loss']:.4f}"
        + (f"  {waited:.1%} waiting for data" if waited is not None else "")
        + ("  compiled" if reached["compiled"] else "")
    )


if __name__ == "__main__":
    main()
