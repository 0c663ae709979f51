"""How long it takes from starting a process to the end of its first training step: ours and others.

    python benchmarks/first_step.py --columns 1b-lora --contestants unsloth [--warm 2] [--json FILE]

The contestants, weights and rows of `race.py`; each is alone on the machine, in a process of its
own. Once with empty folders for what compilers keep, and then, in turn, with what that start left
there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import race  # noqa: E402
from race_figures import OURS, Column  # noqa: E402

# Where compilers keep what they made, and under which names that is looked for.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")


def seconds_to_first_step(name: str, case: dict[str, Any], folder: Path, caches: Path) -> float:
    """Start a contestant with these caches, and end it after a step. Raises race.Died."""
    os.environ.update({each: str(caches / each.lower()) for each in CACHES})
    # unsloth keeps its own where it is started; a contestant of race.py starts in its folder.
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    contestant = race.Contestant(name, case, folder)
    try:
        contestant.ask({"steps": 1})
        return time.perf_counter() - started
    finally:
        contestant.close()


def starts(
    name: str, column: Column, place: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """All contestants of a column: cold, and then warm in turn."""
    work = place / name
    work.mkdir()
    case = race.prepare(column, work, options)
    found: dict[str, dict[str, Any]] = {}
    for turn in range(1 + options.warm):
        for contestant in (OURS, *options.contestants):
            each = found.setdefault(contestant, {"cold": None, "warm": [], "failed": ""})
            if each["failed"]:
                continue
            at = work / contestant.replace(" ", "-")
            try:
                seconds = seconds_to_first_step(contestant, case, at, at / "caches")
            except race.Died as problem:
                each["failed"] = str(problem)
                continue
            if turn:
                each["warm"].append(seconds)
            else:
                each["cold"] = seconds
            print(
                f"{name}, {contestant}, {'warm' if turn else 'cold'}: {seconds:.1f} s", flush=True
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--columns", nargs="+", choices=race.COLUMNS, default=["1b-lora"])
    parser.add_argument("--contestants", nargs="+", metavar="NAME", default=["unsloth"])
    parser.add_argument("--warm", type=int, default=2, help="starts after the cold one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    options = parser.parse_args()
    # What `race.prepare` counts its rows by.
    options.rounds, options.profile, options.warmup, options.steps = 0, 0, 1, 0
    import shapes

    from automodel_core.bench.environment import environment

    columns = (
        {"tiny-lora": race.SMOKE["tiny-lora"]}
        if options.smoke
        else {name: race.COLUMNS[name] for name in options.columns}
    )
    done = {}
    with tempfile.TemporaryDirectory(prefix="first-") as temporary:
        place = Path(temporary)
        for shape in {column.shape for column in columns.values()}:
            shapes.write(place, shape, 4096, weights=True)
        for name, column in columns.items():
            done[name] = starts(name, column, place, options)
            if options.json:
                about = environment(*race.PACKAGES)
                options.json.write_text(json.dumps({"environment": about, "found": done}, indent=1))
    print("| | | cold, s | warm, s |\n|---|---|---|---|")
    for name, found in done.items():
        for contestant, each in found.items():
            cold = f"{each['cold']:.1f}" if each["cold"] else each["failed"]
            print(
                f"| {name} | {contestant} | {cold} | {' '.join(f'{s:.1f}' for s in each['warm'])} |"
            )
    print(", ".join(f"{name} {value}" for name, value in environment(*race.PACKAGES).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
