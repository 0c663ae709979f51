"""What reading a stream costs a rank: tokens a second, memory, and the way back after a resume.

    python benchmarks/streams.py [--rows 100000] [--workers 0 1 2] [--json FILE]

The file and the tokenizer are those of `benchmarks/data.py`. The stream is packed in rows of 2,048
tokens, four in a micro-batch, and gone through to its end as training would, without a model. Then
a second reader goes on from the state that the first had at half of its steps. Each number of
workers, and a quarter of the rows, in a process of its own. Peak memory is that of the process
without its workers, less what it had before. Prints the environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.data import resident, write_inputs  # noqa: E402

SIZE, ROWS = 2048, 4


def through(folder: Path, rows: int, workers: int) -> dict[str, float]:
    """One pass, and half of another."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from transformers import AutoTokenizer

    from automodel_core.train.order import Layout
    from automodel_core.train.stream_data import Dealer, StreamData
    from automodel_core.train.stream_order import Plan
    from automodel_core.train.streams import Head, reading
    from automodel_datasets.collate import default_collater
    from automodel_datasets.text import make_text_dataset

    before = resident()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    stream = make_text_dataset(
        str(folder / "train.jsonl"),
        tokenizer=tokenizer,
        max_length=SIZE,
        limit_dataset_samples=rows,
        streaming=True,
    )

    def data() -> StreamData:
        return StreamData(
            dataset=Head.of(stream, ()),
            read=reading(partial(StatefulDataLoader, num_workers=workers), stream, 0),
            dealer=Dealer(partial(default_collater, tokenizer=tokenizer), Layout(ROWS), True),
            plan=Plan(0, size=SIZE),
            epochs=1,
            say=print,
        )

    begun, whole = time.perf_counter(), data()
    first, tokens, steps, states = 0.0, 0, 0, []
    while not whole.ended:
        step = whole.next_step()
        first = first or time.perf_counter() - begun
        tokens += sum(int(batch["attention_mask"].sum()) for batch in step.batches)
        whole.advance()
        steps += 1
        if steps % 100 == 0:
            states.append(whole.state_dict())
    seconds = time.perf_counter() - begun
    begun, rest = time.perf_counter(), data()
    rest.load_state_dict(states[len(states) // 2])
    rest.next_step()
    return {
        "rows": rows,
        "workers": workers,
        "first_step_seconds": first,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "resume_seconds": time.perf_counter() - begun,
        "peak_mib": (resident() - before) / 2**20,
    }


def start(folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """A process of its own."""
    words = ["--folder", str(folder), "--rows", str(rows), "--workers", str(workers)]
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(through(options.folder, options.rows, options.workers[0])))
        return 0
    from automodel_core.bench.environment import environment

    with tempfile.TemporaryDirectory() as place:
        write_inputs(Path(place), options.rows, 100)
        chosen = [(options.rows // 4, options.workers[0])]
        chosen += [(options.rows, workers) for workers in options.workers]
        found = [start(Path(place), *each) for each in chosen]
    about = environment("automodel-core", "torchdata", "tokenizers", "transformers")
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    print("\n| rows | workers | first step s | tokens/s | resume s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for each in found:
        print(
            f"| {each['rows']:,} | {each['workers']} | {each['first_step_seconds']:.2f} "
            f"| {each['tokens_per_second']:,.0f} | {each['resume_seconds']:.2f} "
            f"| {each['peak_mib']:,.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "found": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
