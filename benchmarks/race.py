"""The race: our engine and others fine-tune the same weights on the same rows, in turn, on one GPU.

    python benchmarks/race.py --columns 1b-full 1b-lora [--rounds 3] [--steps 12] [--out FOLDER]
    python benchmarks/race.py --smoke      # tiny, for a CPU: who runs there

bfloat16 weights, 30% of the labels masked, AdamW, clipping to 1, no activation checkpointing; each
contestant at its best: see `race_contestants.py`. Each lives in a process of its own, warms up
alone, and then they take turns, `--rounds` times. A figure is the median of all timed steps. Losses
of all are compared, step by step, with ours. Who can't run is shown with the reason. Writes
`race.json` and `race.md`, and exits with 1 if losses differ.

Tokens are all tokens, learned or not. Peak memory is of the timed steps, allocated by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

OURS = "automodel"
# After its turn began, a contestant fetches its memory again; these steps aren't counted.
SETTLING = 2
# A contestant that says nothing for so long is stuck, seconds.
PATIENCE = 240
# Losses are near 11.8 and computed in bfloat16.
AGREE = 0.03
PACKAGES = ("torch", "transformers", "triton", "unsloth", "unsloth_zoo", "torchtitan",
            "liger-kernel", "peft", "trl", "accelerate", "torchao")  # fmt: skip


@attrs.frozen
class Column:
    """A shape and a kind of tuning.

    Attributes:
        groups: Who is on the GPU together; ours is in each, for it is what others are compared to.
    """

    shape: str
    kind: str
    batch: int
    groups: tuple[tuple[str, ...], ...]
    length: int = 4096
    shortest: int = 0


COLUMNS = {
    "1b-full": Column("1b", "full", 2, (("by hand", "torchtitan + compile", "unsloth"),)),
    "1b-lora": Column("1b", "lora", 2, (("by hand", "unsloth", "Trainer + Liger"),)),
    # Weights of four don't fit beside one's activations.
    "8b-lora": Column("8b", "lora", 1, (("by hand", "unsloth"), ("Trainer + Liger",))),
    "1b-packed": Column("1b", "packed", 2, (("by hand", "Trainer + Liger"),), shortest=256),
}
CPU = ("by hand", "Trainer")
SMOKE = {
    f"tiny-{kind}": Column("tiny", kind, 2, (CPU,), 64, 8 if kind == "packed" else 0)
    for kind in ("full", "lora", "packed")
}


class Died(Exception):
    """A contestant ended; the message is why, as far as it said."""


class Contestant:
    """A process that trains when it is asked to."""

    def __init__(self, name: str, case: dict[str, Any], folder: Path) -> None:
        self.log = folder / f"{name.replace(' ', '-')}.log"
        script = str(ROOT / "benchmarks" / "race_contestants.py")
        case = case | {"scratch": str(folder / name.replace(" ", "-"))}
        self.process = subprocess.Popen(
            [sys.executable, script, name, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            cwd=folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def ask(self, steps: int) -> dict[str, Any]:
        """Train so many steps. Raises Died."""
        alarm = threading.Timer(PATIENCE, self.process.kill)
        alarm.start()
        try:
            print(json.dumps({"steps": steps}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            self.close()
            raise Died(self.last_error())
        return json.loads(line)

    def last_error(self) -> str:
        lines = [each for each in self.log.read_text().splitlines() if each.strip()]
        errors = [each for each in lines if "Error" in each and not each.startswith(" ")]
        return ([*lines[-1:], *errors[-1:]] or ["ended without a word"])[-1].strip()[:300]

    def close(self) -> None:
        """End it, and wait until its memory is free."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@attrs.define
class Found:
    """Of one contestant in one column.

    Attributes:
        seconds: Of each timed step.
        losses: Of each step, from the first of the warm-up.
        first_step: Seconds from the start of its process to the end of its warm-up.
    """

    seconds: list[float] = attrs.field(factory=list)
    rounds: list[float] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    peak_gib: float = 0.0
    warm_up: float = 0.0
    failed: str = ""

    def add(self, told: dict[str, Any], skip: int) -> None:
        timed = told["seconds"][skip:]
        self.seconds += timed
        self.rounds.append(statistics.median(timed))
        self.losses += told["losses"]
        self.peak_gib = max(self.peak_gib, told["peak_gib"])


def race(column: Column, folder: Path, options: argparse.Namespace) -> dict[str, Found]:
    """All groups of a column."""
    found: dict[str, Found] = {}
    case = prepare(column, folder, options)
    running: dict[str, Contestant] = {}
    try:
        for number, group in enumerate(column.groups):
            for name in [each for each in running if each != OURS]:
                running.pop(name).close()
            for name in (OURS, *group):
                if name in options.without or (name == OURS and number):
                    continue
                warm_up(name, case, folder, options, running, found)
            for _ in range(options.rounds):
                take_turns(running, found, options)
    finally:
        for each in running.values():
            each.close()
    return found


def warm_up(
    name: str,
    case: dict[str, Any],
    folder: Path,
    options: argparse.Namespace,
    running: dict[str, Contestant],
    found: dict[str, Found],
) -> None:
    """Start a contestant and let it compile what it compiles, alone."""
    found[name], started = Found(), time.perf_counter()
    contestant = Contestant(name, case, folder)
    try:
        told = contestant.ask(options.warmup)
    except Died as problem:
        found[name].failed = str(problem)
        print(f"  {name}: {problem}", flush=True)
        return
    running[name] = contestant
    found[name].losses, found[name].warm_up = told["losses"], time.perf_counter() - started
    print(f"  {name}: warm after {found[name].warm_up:.0f} s", flush=True)


def take_turns(
    running: dict[str, Contestant], found: dict[str, Found], options: argparse.Namespace
) -> None:
    """One round."""
    for name in list(running):
        try:
            found[name].add(running[name].ask(SETTLING + options.steps), SETTLING)
        except Died as problem:
            found[name].failed = str(problem)
            del running[name]
            print(f"  {name}: {problem}", flush=True)
            continue
        print(f"  {name}: {found[name].rounds[-1] * 1000:.1f} ms", flush=True)


def prepare(column: Column, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows and the YAML file of a column; the weights are there."""
    from race_contestants import ALPHA, CLIP, RANK, RATE, TARGETS
    from race_rows import write_rows
    from ruamel.yaml import YAML
    from shapes import SHAPES

    rounds = options.rounds * len(column.groups)
    steps = options.warmup + rounds * (SETTLING + options.steps) + 8
    rows, file = folder / f"{column.kind}-{column.length}.safetensors", folder / "ours.yaml"
    vocabulary = SHAPES[column.shape]["vocab_size"]
    write_rows(rows, steps * column.batch, column.length, vocabulary, column.shortest)
    model = folder.parent / column.shape
    config: dict[str, Any] = {
        "model": {
            "_target_": "causal_lm",
            "pretrained_model_name_or_path": str(model),
            "torch_dtype": "bfloat16",
        },
        "dataset": {"_target_": "race_rows.Documents", "path": str(rows)},
        "dataloader": {"batch_size": column.batch, "num_workers": 2, "shuffle": False},
        "step_scheduler": {"max_steps": 100_000},
        "optimizer": {"_target_": "adamw", "lr": RATE, "weight_decay": 0.0},
        "clip_grad_norm": CLIP,
        "compile": column.shape != "tiny",
    }
    if column.kind == "lora":
        modules = [f"*.{each}" for each in TARGETS]
        lora = {"_target_": "lora", "dim": RANK, "alpha": ALPHA, "include_modules": modules}
        config["peft"] = lora
    if column.kind == "packed":
        config["dataset"]["packed"] = True
        config["packed_sequence"] = {"packed_sequence_size": column.length}
    with file.open("w") as out:
        YAML(typ="safe").dump(config, out)
    told = {"model": model, "rows": rows, "yaml": file}
    return {name: str(path) for name, path in told.items()} | {
        "kind": column.kind,
        "batch": column.batch,
        "length": column.length,
    }


def mean_flops(column: Column, folder: Path, rows: str) -> float:
    """Model FLOPs of a step, on average over the rows; see `automodel_core.bench.flops`."""
    import torch
    from race_contestants import RANK, TARGETS
    from race_rows import lengths_of
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from automodel_core.bench.flops import StepFlops

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / column.shape))
    if column.kind == "lora":
        model.requires_grad_(False)
        for layer in model.model.layers:
            for name in TARGETS:
                base = getattr(layer.self_attn, name)
                base.down = torch.nn.Parameter(base.weight.new_empty(RANK, base.in_features))
                base.up = torch.nn.Parameter(base.weight.new_empty(base.out_features, RANK))
    positions = load_file(rows)["positions"]
    total = StepFlops.of(model).step(lengths_of(positions))
    return total / (len(positions) / column.batch)


def largest_difference(one: list[float], other: list[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=False)), default=float("nan"))


def table(name: str, column: Column, found: dict[str, Found], flops: float) -> list[dict[str, Any]]:
    """Rows of the report."""
    import torch

    from automodel_core.bench.flops import peak_of

    peak = peak_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tokens, ours, rows = column.batch * column.length, found.get(OURS, Found()), []
    for contestant, each in found.items():
        row = {"column": name, "contestant": contestant, **attrs.asdict(each)}
        if each.seconds and not each.failed:
            seconds = statistics.median(each.seconds)
            row |= {
                "tokens_per_second": tokens / seconds,
                "mfu": flops / seconds / peak if peak else None,
                "ours_to_it": seconds / statistics.median(ours.seconds) if ours.seconds else None,
                "loss": statistics.mean(each.losses),
                "loss_difference": largest_difference(each.losses, ours.losses),
            }
        rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    from automodel_core.bench.flops import CONVENTION

    lines = [
        "| column | | tokens/s | rounds, ms | peak GiB | MFU | ours to it | mean loss "
        "| largest difference to ours | warm-up s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['column']} | {row['contestant']} | "
        if "tokens_per_second" not in row:
            reason = (row["failed"] or "not raced").replace("|", "\\|")
            lines.append(f"{head}failed: {reason} | | | | | | | |")
            continue
        rounds = " ".join(f"{each * 1000:.1f}" for each in row["rounds"])
        mfu = f"{row['mfu']:.3f}" if row["mfu"] else ""
        ratio = f"{row['ours_to_it']:.3f}" if row["ours_to_it"] else ""
        lines.append(
            f"{head}{row['tokens_per_second']:,.0f} | {rounds} | {row['peak_gib']:.2f} | {mfu} "
            f"| {ratio} | {row['loss']:.4f} | {row['loss_difference']:.4f} | {row['warm_up']:.0f} |"
        )
    versions = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([*lines, "", f"MFU: {CONVENTION}, of the device's bfloat16 peak.", versions])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--without", nargs="+", default=[], metavar="CONTESTANT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed, in each round")
    parser.add_argument("--warmup", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("race"))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    options = parser.parse_args()
    import shapes
    import torch

    from automodel_core.bench.environment import environment

    columns = SMOKE if options.smoke else {name: COLUMNS[name] for name in options.columns}
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="race-") as place:
        for shape in {column.shape for column in columns.values()}:
            shapes.write(Path(place), shape, 4096, weights=True)
        torch.cuda.empty_cache()  # the weights were drawn there
        for name, column in columns.items():
            print(name, flush=True)
            folder = Path(place, name)
            folder.mkdir()
            found = race(column, folder, options)
            stored = next(folder.glob("*.safetensors"))
            rows += table(name, column, found, mean_flops(column, Path(place), str(stored)))
            for log in folder.glob("*.log"):
                (options.out / f"{name}-{log.name}").write_bytes(log.read_bytes())
            about = environment(*PACKAGES)
            (options.out / "race.json").write_text(
                json.dumps({"environment": about, "rows": rows}, indent=1)
            )
            (options.out / "race.md").write_text(as_markdown(rows, about) + "\n")
    print((options.out / "race.md").read_text())
    return int(any(row.get("loss_difference", 0) > AGREE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
