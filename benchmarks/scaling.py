"""What a second GPU adds: tokens per second per GPU, full tuning of a 1B-shaped Llama under FSDP2.

    python benchmarks/scaling.py [--rounds 2] [--steps 14] [--json FILE]

Two sequences of 4,096 random tokens a GPU, 30% of them not learned, bfloat16 weights, compiled
layers, fused AdamW, no activation checkpointing: each at its best on one GPU and on two. Our engine
runs from a YAML file, through `automodel bench`; beside it the loop of `by_hand.py`, under FSDP2 as
PyTorch has it and as accelerate sets it up (on one GPU the two are the same), and torchtitan's
model, loss and FSDP2 in the same loop, where it is installed. All take turns; a
figure is the median of the rounds' medians over the steps after the first eight. Prints the
environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

LENGTH, BATCH, WARM_UP = 4096, 2, 8


@attrs.define
class Found:
    """Of one contestant on so many GPUs, over all rounds."""

    seconds: list[float] = attrs.field(factory=list)
    peak_gib: float = 0.0
    failed: str = ""

    @property
    def rate(self) -> float:
        """Tokens per second per GPU."""
        return BATCH * LENGTH / statistics.median(self.seconds)

    def add(self, seconds: list[float], peak_gib: float) -> None:
        self.seconds += seconds
        self.peak_gib = max(self.peak_gib, peak_gib)


def torchrun(processes: int, *command: str) -> str:
    """Run something on so many GPUs; what it printed, which is shown if it fails."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launch, *command],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "8"},
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        raise RuntimeError(errors[0] if errors else done.stderr[-300:])
    return done.stdout


def ours(folder: Path, processes: int, steps: int) -> tuple[list[float], float]:
    told = torchrun(
        processes, "-m", "automodel_core", "bench", str(folder / "1b-full.yaml"), "--json",
        f"--warmup={WARM_UP}", f"--steps={steps}", "compile=true",
        "distributed={_target_: fsdp2}",
    )  # fmt: skip
    found = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    return [found["step_seconds"]["p50"]], found["peak_memory_gib"]


def by_hand(way: str, folder: Path, processes: int, steps: int) -> tuple[list[float], float]:
    out = folder / "by_hand.json"
    torchrun(
        processes, str(ROOT / "benchmarks" / "by_hand.py"), str(folder / "1b"), str(out),
        f"--with={way}", f"--steps={WARM_UP + steps}",
    )  # fmt: skip
    found = json.loads(out.read_text())
    return [statistics.median(found["seconds"][WARM_UP:])], found["peak_gib"]


def contest(folder: Path, rounds: int, steps: int) -> dict[tuple[str, int], Found]:
    """All contestants in turn, `rounds` times."""
    sides = {
        ("automodel", 1): ours,
        ("automodel", 2): ours,
        ("by hand, FSDP2", 1): lambda *case: by_hand("fsdp2", *case),
        ("by hand, FSDP2", 2): lambda *case: by_hand("fsdp2", *case),
        ("by hand, accelerate", 2): lambda *case: by_hand("accelerate", *case),
        ("torchtitan", 1): lambda *case: by_hand("torchtitan", *case),
        ("torchtitan", 2): lambda *case: by_hand("torchtitan", *case),
    }
    found = {key: Found() for key in sides}
    for _ in range(rounds):
        for (name, processes), side in sides.items():
            each = found[name, processes]
            try:
                each.add(*side(folder, processes, steps))
                print(f"{name}, {processes}: {each.rate:,.0f}", flush=True)
            except RuntimeError as problem:
                each.failed = str(problem)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import shapes

    from automodel_core.bench.environment import environment

    with tempfile.TemporaryDirectory() as place:
        shapes.write(Path(place), "1b", LENGTH, weights=True)
        found = contest(Path(place), options.rounds, options.steps)
    about = environment("torch", "transformers", "accelerate", "torchtitan", "triton")
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    best = max(each.rate for (_, count), each in found.items() if count == 1 and each.seconds)
    print(f"\n| tokens/s per GPU | GPUs | rate | of one GPU's best, {best:,.0f} | peak GiB |")
    print("|---|---|---|---|---|")
    for (name, processes), each in found.items():
        if not each.seconds:
            print(f"| {name} | {processes} | {each.failed} | | |")
            continue
        share = each.rate / best
        print(f"| {name} | {processes} | {each.rate:,.0f} | {share:.3f} | {each.peak_gib:.2f} |")
    if options.json:
        rows = {f"{name}, {count}": attrs.asdict(each) for (name, count), each in found.items()}
        options.json.write_text(json.dumps({"environment": about, "found": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
