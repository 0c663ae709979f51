"""The table of docs/many_gpus.md, made from the results of tests/e2e/test_ranks.py.

python -m tests.matrix           run the tests, write the table (some minutes)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.e2e.test_ranks import FOUR, KINDS, TWO, refusal

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "many_gpus.md"
BEGIN, END = "<!-- matrix -->\n", "<!-- /matrix -->\n"
CASES = {2: ("test_two_processes", TWO), 4: ("test_four_processes", FOUR)}
SHOWN = {"passed": "✓", "refused": "refused", "failed": "✗", "absent": "?"}

# (ranks, layout, kind) -> passed, refused (as it is to be), failed or absent.
Results = Mapping[tuple[int, str, str], str]


def run_tests() -> Results:
    """Run every case, slow ones too."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [
            f"tests/e2e/test_ranks.py::{name}_{ending}"
            for name, _ in CASES.values()
            for ending in ("follow_one", "are_refused")
        ]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "slow or not slow"]
        subprocess.run([*command, f"--junit-xml={report}", *tests], cwd=ROOT, check=False)
        return results(report)


def results(report: Path) -> Results:
    """What a JUnit report says of each case."""
    said = {
        case.get("name"): "failed" if len(case.findall("failure") + case.findall("error"))
        else "absent" if case.find("skipped") is not None else "passed"
        for case in ElementTree.parse(report).iter("testcase")
    }  # fmt: skip
    found = {}
    for ranks, layout, kind in cells():
        test, layouts = CASES[ranks]
        if refusal(layouts[layout], kind) is None:
            cell = said.get(f"{test}_follow_one[{layout}-{kind}]", "absent")
        else:
            cell = said.get(f"{test}_are_refused[{layout}-{kind}]", "absent")
            cell = "refused" if cell == "passed" else cell
        found[ranks, layout, kind] = cell
    return found


def cells() -> list[tuple[int, str, str]]:
    """The table's, a row after the other."""
    return [
        (ranks, layout, kind)
        for ranks, (_, layouts) in CASES.items()
        for layout in layouts
        for kind in KINDS
    ]


def table(found: Results) -> str:
    """A row for each layout and number of ranks, a column for each kind of run."""
    rows = [["layout", "ranks", *KINDS], ["---"] * (2 + len(KINDS))]
    for ranks, (_, layouts) in CASES.items():
        for layout in layouts:
            cells = [SHOWN[found[ranks, layout, kind]] for kind in KINDS]
            rows.append([layout, str(ranks), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written() -> str:
    """The page's table."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def write(text: str) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.split(END)[1])


if __name__ == "__main__":
    write(table(run_tests()))
