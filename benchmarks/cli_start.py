"""How much CPU time a command takes before it has done anything: user and system, median of 20.

    python benchmarks/cli_start.py [--runs 20] [--json FILE]

Each command runs in a fresh process, in the environment as it is and again with 200 more
distributions on the path, as in a well-used environment. Modules are read as Python compiled them
on their first import, which a shell may have forbidden it to keep (PYTHONDONTWRITEBYTECODE): a
folder of the benchmark keeps them. Exits 1 if a median is over its budget.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from automodel_core.bench.environment import environment

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "quickstart.yaml"
OTHERS = 200

# Seconds of CPU time on two cores.
COMMANDS = {
    "--help": (["--help"], 0.15),
    "list-plugins": (["list-plugins"], 0.2),
    "validate": (["validate", str(EXAMPLE)], 0.3),
}


def other_distributions(folder: Path, count: int) -> None:
    """Metadata as pip leaves it: half with console scripts, a tenth with plugins for us."""
    for number in range(count):
        name = f"other_{number:03}"
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / f"{name}.py").write_text(
            '"""A module."""\n\n\ndef make(a: int = 1):\n    """Make."""\n'
        )
        if number % 2:
            text = f"[console_scripts]\n{name} = {name}:main\n"
            if number % 10 == 1:
                text += f"[automodel.losses]\n{name} = {name}:make\n"
            (info / "entry_points.txt").write_text(text)


def cpu_seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """User and system time of one run of the command."""
    command = [sys.executable, "-m", "automodel_core", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime


def measure(runs: int, compiled: Path, path: str = "") -> dict[str, float]:
    """The median of each command; one run before counts for nothing but warm caches."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if path:  # before what is there already, which may be where this project is
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (path, os.environ.get("PYTHONPATH")))
        )
    medians = {}
    for name, (arguments, _) in COMMANDS.items():
        cpu_seconds(arguments, environment)
        medians[name] = statistics.median(cpu_seconds(arguments, environment) for _ in range(runs))
    return medians


def found_on() -> dict[str, object]:
    """The environment; starting takes longer with more distributions installed."""
    return environment("automodel-core") | {"distributions": sum(1 for _ in distributions())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"environment": found_on()}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as compiled:
        other_distributions(Path(folder), OTHERS)
        found["as it is"] = measure(options.runs, Path(compiled))
        found[f"{OTHERS} more"] = measure(options.runs, Path(compiled), folder)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    print(*(f"{name}: {value}" for name, value in found["environment"].items()), sep="\n")
    print(f"\n{'command':<14}{'budget':>8}{'as it is':>10}{f'{OTHERS} more':>10}   seconds of CPU")
    over = False
    for name, (_, budget) in COMMANDS.items():
        medians = [found[key][name] for key in ("as it is", f"{OTHERS} more")]
        over |= max(medians) > budget
        verdict = "over budget" if max(medians) > budget else ""
        print(f"{name:<14}{budget:>8.2f}{medians[0]:>10.3f}{medians[1]:>10.3f}   {verdict}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
