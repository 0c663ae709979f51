"""What tokenising once saves: the first start, the second, and `datasets.map` beside them.

    python benchmarks/data.py [--rows 1000000] [--words 100] [--json FILE]

Writes JSON lines of random words and a small byte-pair tokenizer, and reads them as the `text` data
set does, each time in a process of its own: without a cache, with an empty one and with a full one.
A start ends with the first samples of a shuffled order and the lengths of all, as packing wants
them. Beside it `datasets`: loading the file and `map` with the same tokenizer, in batches, in one
process. Peak memory is the process's largest resident set, without what it had before the
data; pages of mapped files count while they are in memory. Prints the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

FIRST = 512


def write_inputs(folder: Path, rows: int, words: int) -> None:
    """A file of `rows` texts of up to twice `words` words, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    drawn = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(drawn.choices(letters, k=drawn.randint(2, 9))) for _ in range(5000)]
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(rows):
            text = " ".join(drawn.choices(known, k=drawn.randint(2, 2 * words)))
            file.write(json.dumps({"text": text}) + "\n")
    tokenizer = Tokenizer(models.BPE(unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=["<u>", "<s>", "</s>"])
    tokenizer.train_from_iterator([" ".join(known)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<u>"
    ).save_pretrained(folder / "tokenizer")


def ours(folder: Path) -> dict[str, float]:
    """One start of the `text` data set."""
    from transformers import AutoTokenizer

    from automodel_datasets.text import make_text_dataset

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def start() -> dict[str, int]:
        dataset = make_text_dataset(str(folder / "train.jsonl"), tokenizer=tokenizer)
        tokens = int(sum(dataset.lengths))
        look(dataset)
        return {"rows": len(dataset), "tokens": tokens}

    return measured(start)


def by_map(folder: Path) -> dict[str, float]:
    """`datasets.map` in one process; its tokenizer works on all cores, as ours does."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def start() -> dict[str, int]:
        rows = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train")
        done = rows.map(
            lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]},
            batched=True, remove_columns=["text"],
        )  # fmt: skip
        look(done)
        return {"rows": len(done)}

    return measured(start)


def look(dataset: Any) -> None:
    """At the first samples of a shuffled order."""
    for index in random.Random(0).sample(range(len(dataset)), min(FIRST, len(dataset))):
        dataset[index]


def measured(start: Callable[[], dict[str, int]]) -> dict[str, float]:
    """What `start` returns and what it took."""
    before, begun, used = resident(), time.perf_counter(), cpu_seconds()
    found = start()
    return found | {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": cpu_seconds() - used,
        "peak_mib": (resident() - before) / 2**20,
    }


def resident() -> float:
    """The largest resident set so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


SIDES = {"ours": ours, "map": by_map}


def start(side: str, folder: Path, cache: str) -> dict[str, float]:
    """A process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--start", side, "--folder", str(folder)],
        capture_output=True, text=True, check=False,
        env=os.environ | {
            "AUTOMODEL_TOKEN_CACHE": cache, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=100, help="in a row, on average")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--start", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(SIDES[options.start](options.folder)))
        return 0
    from automodel_core.bench.environment import environment

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, options.rows, options.words)
        kept = str(folder / "kept")
        found = {
            "without a cache": start("ours", folder, ""),
            "first start": start("ours", folder, kept),
            "second start": start("ours", folder, kept),
            "datasets.map": start("map", folder, ""),
        }
    about = environment("automodel-core", "datasets", "tokenizers", "transformers")
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    tokens = found["first start"]["tokens"]
    print(f"\n{options.rows:,} rows, {tokens:,} tokens")
    print("| | seconds | CPU seconds | rows/s per core | peak MiB |\n|---|---|---|---|---|")
    for name, each in found.items():
        rate = each["rows"] / each["cpu_seconds"]
        print(
            f"| {name} | {each['seconds']:.2f} | {each['cpu_seconds']:.2f} | {rate:,.0f} "
            f"| {each['peak_mib']:,.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "found": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
