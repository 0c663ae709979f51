"""The race: our engine and others fine-tune the same weights on the same rows, in turn, on one GPU.

    python benchmarks/race.py --columns 1b-full 1b-lora [--rounds 3] [--steps 12] [--out FOLDER]
    python benchmarks/race.py --columns 1b-ways --together 2 --profile   # packed rows, our ways
    python benchmarks/race.py --smoke      # tiny, for a CPU: who runs there

bfloat16 weights, 30% of the labels masked, AdamW, clipping to 1, no activation checkpointing; each
contestant at its best: see `race_contestants.py`. Each lives in a process of its own, warms up
alone, and then they take turns, `--rounds` times. A figure is the median of all timed steps. Losses
of all are compared, step by step, with ours. Who can't run is shown with the reason. Writes
`race.json` and `race.md` after each round, and exits with 1 if losses differ.

Ragged documents, of lengths as chats have them, are packed by ours and padded or laid behind each
other by others, so steps aren't the same: there the figure is learned tokens per second over all
timed steps, and mean losses are compared.

Tokens are all tokens of documents, learned or not. Peak memory is of the timed steps, allocated by
PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from race_figures import OURS, Column, Found, Work, table, write  # noqa: E402

# After its turn began, a contestant fetches its memory again; these steps aren't counted.
SETTLING = 2
PROFILED = 3
# A contestant that says nothing for so long is stuck, seconds.
PATIENCE = 240
# Losses are near 11.8 and computed in bfloat16.
AGREE = 0.03
PACKAGES = ("torch", "transformers", "triton", "unsloth", "unsloth_zoo", "torchtitan",
            "liger-kernel", "peft", "trl", "accelerate", "torchao")  # fmt: skip


COLUMNS = {
    "1b-full": Column("1b", "full", 2, (("by hand", "torchtitan + compile", "unsloth"),)),
    "1b-update": Column("1b", "full", 2, (("automodel triton_adamw",),)),
    "1b-lora": Column("1b", "lora", 2, (("by hand", "unsloth", "Trainer + Liger"),)),
    # Weights of four don't fit beside one's activations.
    "8b-lora": Column("8b", "lora", 1, (("by hand", "unsloth"), ("Trainer + Liger",))),
    "1b-packed": Column("1b", "packed", 2, (("by hand", "Trainer + Liger"),), shortest=256),
    # As many tokens in 14 documents as in two full rows. A Trainer sorts 50 steps by length, and
    # needs most of the memory for the longest.
    "1b-ragged": Column(
        "1b", "ragged", 2, (("Trainer + Liger",), ("unsloth",)), documents=14, steps=50
    ),
    "1b-ways": Column(
        "1b",
        "packed",
        2,
        (("automodel flex", "automodel unpacked"), ("by hand",), ("automodel varlen",)),
        shortest=256,
    ),
}
MAIN = ("1b-full", "1b-lora", "8b-lora", "1b-packed", "1b-ragged")
CPU = ("by hand", "Trainer")
SMOKE = {
    f"tiny-{kind}": Column("tiny", kind, 2, (CPU,), 64, 8 if kind == "packed" else 0)
    for kind in ("full", "lora", "packed")
} | {"tiny-ragged": Column("tiny", "ragged", 2, (("Trainer",),), 64, documents=3)}


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

    def ask(self, command: dict[str, int]) -> dict[str, Any]:
        """Train so many steps. Raises Died."""
        alarm = threading.Timer(PATIENCE, self.process.kill)
        alarm.start()
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
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


def race(
    column: Column,
    folder: Path,
    options: argparse.Namespace,
    keep: Callable[[dict[str, Found]], None],
) -> None:
    """All groups of a column. What is known is kept after each warm-up and round: a limit on time
    may end this process at any moment."""
    found: dict[str, Found] = {}
    case = prepare(column, folder, options)
    running: dict[str, Contestant] = {}
    steps = column.steps or options.steps
    try:
        for group in column.groups:
            for name in [each for each in running if each != OURS]:
                running.pop(name).close()
            asked = [name for name in group if name in (options.contestants or group)]
            if not asked:
                continue
            new = [name for name in (OURS, *asked) if name not in found]
            for names in batched(new, options.together):
                warm_up(names, case, folder, options, running, found)
                keep(found)
            for _ in range(options.rounds):
                take_turns(running, found, {"steps": SETTLING + steps})
                keep(found)
            if options.profile:
                told = {"steps": SETTLING + PROFILED, "profiled": PROFILED}
                take_turns(running, found, told)
                keep(found)
    finally:
        for each in running.values():
            each.close()


def batched(names: list[str], most: int) -> Iterator[list[str]]:
    """So many at a time."""
    for start in range(0, len(names), most):
        yield names[start : start + most]


def warm_up(
    names: list[str],
    case: dict[str, Any],
    folder: Path,
    options: argparse.Namespace,
    running: dict[str, Contestant],
    found: dict[str, Found],
) -> None:
    """Start contestants and let them compile what they compile, all at once."""

    def start(name: str) -> None:
        found[name], started = Found(), time.perf_counter()
        contestant = Contestant(name, case, folder)
        try:
            told = contestant.ask({"steps": options.warmup})
        except Died as problem:
            found[name].failed = str(problem)
            print(f"  {name}: {problem}", flush=True)
            return
        running[name] = contestant
        found[name].losses, found[name].warm_up = told["losses"], time.perf_counter() - started
        print(f"  {name}: warm after {found[name].warm_up:.0f} s", flush=True)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(start, names))


def take_turns(
    running: dict[str, Contestant], found: dict[str, Found], command: dict[str, int]
) -> None:
    """One round; a profiled one isn't timed, for profiling takes time."""
    for name in list(running):
        try:
            told = running[name].ask(command)
        except Died as problem:
            found[name].failed = str(problem)
            del running[name]
            print(f"  {name}: {problem}", flush=True)
            continue
        if "profile" in told:
            found[name].profile = told["profile"]
            continue
        found[name].add(told, SETTLING)
        print(f"  {name}: {found[name].rounds[-1] * 1000:.1f} ms", flush=True)


def prepare(column: Column, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows and the YAML file of a column; the weights are there."""
    from race_contestants import ALPHA, CLIP, RANK, RATE, TARGETS
    from race_rows import write_documents, write_rows
    from ruamel.yaml import YAML
    from shapes import SHAPES

    rounds = (options.rounds + options.profile) * len(column.groups)
    steps = options.warmup + rounds * (SETTLING + (column.steps or options.steps)) + 8
    rows, file = folder / f"{column.kind}-{column.length}.safetensors", folder / "ours.yaml"
    vocabulary = SHAPES[column.shape]["vocab_size"]
    if column.documents:
        write_documents(rows, steps * column.documents, column.length // 2, vocabulary)
    else:
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
    if column.kind in ("packed", "ragged"):
        config["packed_sequence"] = {"packed_sequence_size": column.length}
    with file.open("w") as out:
        YAML(typ="safe").dump(config, out)
    told = {"model": model, "rows": rows, "yaml": file}
    return {name: str(path) for name, path in told.items()} | {
        "kind": column.kind,
        "batch": column.documents or column.batch,
        "length": column.length,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(MAIN))
    parser.add_argument(
        "--contestants", nargs="+", metavar="NAME", help="beside ours; default: each column's"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed, in each round")
    parser.add_argument("--warmup", type=int, default=7)
    parser.add_argument(
        "--together", type=int, default=1, help="contestants that warm up at once, memory allowing"
    )
    parser.add_argument("--profile", action="store_true", help="and say where the time went")
    parser.add_argument("--out", type=Path, default=Path("race"))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    options = parser.parse_args()
    import shapes
    import torch

    from automodel_core.bench.environment import environment

    columns = SMOKE if options.smoke else {name: COLUMNS[name] for name in options.columns}
    about, done = environment(*PACKAGES), []
    with tempfile.TemporaryDirectory(prefix="race-") as place:
        for shape in {column.shape for column in columns.values()}:
            shapes.write(Path(place), shape, 4096, weights=True)
        torch.cuda.empty_cache()  # the weights were drawn there
        for name, column in columns.items():
            print(name, flush=True)
            done = [*done, *run_column(name, column, Path(place), options, about, done)]
    print((options.out / "race.md").read_text())
    return int(any(row.get("loss_difference", 0) > AGREE for row in done))


def run_column(
    name: str,
    column: Column,
    place: Path,
    options: argparse.Namespace,
    about: dict[str, Any],
    before: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Race a column and write what is known so far, behind the columns before it."""
    folder = place / name
    folder.mkdir()
    work: Work | None = None
    rows: list[dict[str, Any]] = []

    def keep(found: dict[str, Found]) -> None:
        nonlocal work, rows
        work = work or Work.of(column, place, str(next(folder.glob("*.safetensors"))))
        names = sorted(found, key=lambda each: each != OURS)
        rows = table(name, column, {each: found[each] for each in names}, work)
        write(options.out, [*before, *rows], about)
        for log in folder.glob("*.log"):
            (options.out / f"{name}-{log.name}").write_bytes(log.read_bytes())

    race(column, folder, options, keep)
    return rows


if __name__ == "__main__":
    sys.exit(main())
