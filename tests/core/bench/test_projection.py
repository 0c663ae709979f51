"""What the documentation projects for many GPUs is what the script says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "many_gpus.md"


def printed(*options: str) -> str:
    script = [sys.executable, str(ROOT / "benchmarks" / "projection.py")]
    return subprocess.run([*script, *options], capture_output=True, text=True, check=True).stdout


def cells(text: str) -> dict[tuple[str, str], list[str]]:
    """The rows of a table by GPUs and layout."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {(row[0], row[1]): row[2:] for row in rows}


def test_the_documented_projection_is_what_the_script_prints():
    documented = PAGE.read_text().split("<!-- projection -->\n")[1].split("<!-- /projection -->")[0]
    assert documented == printed()


def test_two_gpus_wait_for_the_first_gathers_and_the_last_reductions_alone():
    """By hand: half of everything crosses at 331 GB/s, in 17 + 16 gathers and 17 reductions."""
    ends = 128_256 * 2_048 + 2_048
    layers = 1_235_814_400 - ends
    wire = (2 * (layers + ends) + 2 * layers + 4 * (layers + ends)) / 2 / 331e9 + 50 * 3.4e-6
    shown = (2 + 4) * (layers / 16 + ends) / 2 / 331e9 + 4 * 3.4e-6
    row = [float(cell.replace(",", "")) for cell in cells(printed())["2", "FSDP2"]]
    assert row[:3] == pytest.approx([1e3 * wire, 1e3 * shown, 136.7 + 1e3 * shown], abs=0.051)
    assert row[3] == pytest.approx(8192 / (0.1367 + shown), abs=0.51)
    assert row[5] == pytest.approx(136.7 / 161.4, abs=5.1e-4)


def test_figures_beside_the_table_are_those_of_a_slower_network():
    slower = cells(printed("--net-gb", "6.25"))
    found = [slower[gpus, how][4] for gpus in ("16", "256") for how in ("FSDP2", "HSDP")]
    assert [f"0{each}" for each in (".874", ".814", ".565", ".532")] == found
