"""How long saving stalls a run, and how long resuming takes, beside transformers.Trainer.

    python benchmarks/checkpoint.py [--layers 12] [--saves 3] [--json FILE]

One Llama of about 100 million parameters, made from its configuration, is trained on the CPU for a
few steps by both, on the same disk, the runs taking turns. A stall is the time from the start of a
save until the run may go on. Ours flushes to the disk and hashes; Trainer does not. Saves are far
enough apart that one is on the disk before the next begins: otherwise the next waits for it.
Resuming is timed from the start of the process to the end of its first step. Exits 1 if our
asynchronous stall is more than half of Trainer's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from automodel_core.bench.environment import environment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

ALLOWED, STEPS_BETWEEN, TOKENS = 0.5, 25, 32


def write_model(folder: Path, layers: int) -> int:
    """A configuration with a tokenizer beside it; returns its parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.tiny import tiny_tokenizer

    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    tiny_tokenizer(folder)
    config.save_pretrained(folder)
    return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


# Ours


def our_config(folder: Path, steps: int, *, background: bool) -> Path:
    from ruamel.yaml import YAML

    from tests.conftest import QUESTIONS

    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    config = {
        "model": {"_target_": "causal_lm_from_config", "config": str(folder / "model")},
        "dataset": {"_target_": "squad", "dataset_name": str(data), "split": "train"},
        "dataloader": {"batch_size": 1},
        "step_scheduler": {"max_steps": steps},
        "optimizer": {"_target_": "adamw", "lr": 1e-5},
        "checkpoint": {
            "checkpoint_dir": str(folder / f"ours-{'async' if background else 'sync'}"),
            "save_every_steps": STEPS_BETWEEN,
            "keep_last": 1,
            "async_save": background,
        },
    }
    path = folder / f"{'async' if background else 'sync'}.yaml"
    with path.open("w") as handle:
        YAML(typ="safe").dump(config, handle)
    return path


def our_stalls(folder: Path, steps: int, *, background: bool) -> list[float]:
    """Of every save of a run; the last one waits for the disk, so it is left out."""
    from automodel_core.cli import main as automodel
    from automodel_core.train import loop

    stalls, save = [], loop.save

    def timed(run: Any) -> Path:
        started = time.perf_counter()
        try:
            return save(run)
        finally:
            stalls.append(time.perf_counter() - started)

    loop.save = timed
    if automodel(["run", str(our_config(folder, steps, background=background)), "--quiet"]):
        raise SystemExit("our run failed")
    return stalls[:-1]


# Theirs


def trainer(folder: Path, steps: int) -> Any:
    """Trainer on the same model, with saves as often as ours."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    ids = torch.arange(TOKENS) % 256
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}] * 24
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=1e-5,
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=STEPS_BETWEEN,
        save_total_limit=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )


def trainer_stalls(folder: Path, steps: int) -> list[float]:
    theirs, stalls = trainer(folder, steps), []
    save = theirs._save_checkpoint

    def timed(*args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        save(*args, **kwargs)
        stalls.append(time.perf_counter() - started)

    theirs._save_checkpoint = timed
    theirs.train()
    return stalls[:-1]


def resume_trainer(folder: Path, steps: int) -> None:
    """In a process of its own: go on, and say when a step is done."""
    from transformers import TrainerCallback

    class Says(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            print("step", flush=True)

    theirs = trainer(folder, steps)
    theirs.args.save_strategy = "no"
    theirs.add_callback(Says())
    theirs.train(resume_from_checkpoint=True)


# Resuming


def seconds_until(command: list[str], done: Any) -> float:
    """From the start of a process until `done(its output so far)`."""
    with tempfile.TemporaryFile("w+b") as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while not done(out):
                if process.poll() is not None and not done(out):
                    out.seek(0)
                    raise SystemExit(out.read().decode())
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def our_resume(folder: Path, steps: int) -> float:
    config = our_config(folder, steps + 50, background=False)
    log = folder / "ours-sync" / "training.jsonl"
    left = log.read_bytes()
    command = [sys.executable, "-m", "automodel_core", "run", str(config), "--quiet"]

    def stepped(out: Any) -> bool:
        found = log.read_bytes()
        return found != left and found.count(b"\n") > steps

    return seconds_until(command, stepped)


def trainer_resume(folder: Path, steps: int, layers: int) -> float:
    command = [sys.executable, __file__, "--resume-trainer", str(folder), "--layers", str(layers)]

    def stepped(out: Any) -> bool:
        return b"step\n" in os.pread(out.fileno(), 1 << 20, 0)

    return seconds_until([*command, "--steps", str(steps + 50)], stepped)


def isolated(kind: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """The stalls of one run in a process of its own, so that no run inherits another's memory."""
    command = [sys.executable, __file__, "--stalls", kind, "--folder", str(folder)]
    command += ["--saves", str(options.saves)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--resumes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    for hidden in ("--stalls", "--folder", "--resume-trainer", "--steps"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = STEPS_BETWEEN * (options.saves + 1)
    if options.resume_trainer:
        resume_trainer(Path(options.resume_trainer), int(options.steps))
        return 0
    if options.stalls:
        folder = Path(options.folder)
        stalls = (
            trainer_stalls(folder, steps)
            if options.stalls == "trainer"
            else our_stalls(folder, steps, background=options.stalls == "async")
        )
        print(json.dumps(stalls))
        return 0

    found = {"environment": environment("torch", "transformers")}
    folder = Path(tempfile.mkdtemp())
    try:
        found["parameters"] = write_model(folder / "model", options.layers)
        found["stalls"] = {k: isolated(k, folder, options) for k in ("trainer", "sync", "async")}
        resumes: dict[str, list[float]] = {"trainer": [], "ours": []}
        for _ in range(options.resumes):
            resumes["trainer"].append(trainer_resume(folder, steps, options.layers))
            resumes["ours"].append(our_resume(folder, steps))
        found["resume"] = resumes
    finally:
        shutil.rmtree(folder)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    print(*(f"{name}: {value}" for name, value in found["environment"].items()), sep="\n")
    print(f"parameters: {found['parameters']:,}\n")
    print(f"{'':<28}{'seconds':>9}{'/ Trainer':>11}   median of {options.saves} and its range")
    theirs = statistics.median(found["stalls"]["trainer"])
    for kind, stalls in found["stalls"].items():
        middle = statistics.median(stalls)
        spread = f"{min(stalls):.2f} to {max(stalls):.2f}"
        print(f"stall, {kind:<21}{middle:>9.2f}{middle / theirs:>11.2f}   {spread}")
    slowest = statistics.median(found["resume"]["trainer"])
    for kind, seconds in found["resume"].items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"start to step, {kind:<13}{middle:>9.2f}{middle / slowest:>11.2f}   {spread}")
    return int(statistics.median(found["stalls"]["async"]) > ALLOWED * theirs)


if __name__ == "__main__":
    sys.exit(main())
