"""What a training step costs beside forward, backward and optimizer, as a share of it.

    python benchmarks/loop_overhead.py [--steps 40] [--json FILE]

A real run of a small Llama on one thread, with steps of about 100 ms. Times are the CPU time of
that thread, which a busy machine disturbs little. Of the watchdog, which runs with several ranks in
a thread of its own, it is the CPU time of a beat and of reading those of 64 ranks, as rank 0 does.
Exits 1 if the overhead is over 1%, the guards' over 0.5% or the watchdog's over 0.1%.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_core.bench.environment import environment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

WARM_UP, OVERHEAD, GUARDS, WATCHDOG = 5, 0.01, 0.005, 0.001
RANKS, BEATS = 64, 50


def write_inputs(folder: Path, steps: int) -> Path:
    """A model's configuration with a tokenizer, some questions, and a configuration for a run."""
    from ruamel.yaml import YAML
    from transformers import LlamaConfig

    from tests.conftest import QUESTIONS
    from tests.tiny import VOCABULARY, tiny_tokenizer

    tiny_tokenizer(folder / "model")
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
    ).save_pretrained(folder / "model")
    data = folder / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    config = {
        "model": {"_target_": "causal_lm_from_config", "config": str(folder / "model")},
        "dataset": {"_target_": "squad", "dataset_name": str(data), "split": "train"},
        "dataloader": {
            "batch_size": 3,
            "shuffle": True,
            "collate_fn": {"_target_": "default_collater", "pad_to_multiple_of": 128},
        },
        "step_scheduler": {"max_steps": steps},
        "optimizer": {"_target_": "adamw", "lr": 1e-4},
        "checkpoint": {"checkpoint_dir": str(folder / "run"), "enabled": False},
    }
    path = folder / "config.yaml"
    with path.open("w") as handle:
        YAML(typ="safe").dump(config, handle)
    return path


class Clock:
    """CPU time of this thread by part; a part's time holds no other's."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._stack: list[str] = ["loop"]
        self._since = time.thread_time()

    def restart(self) -> None:
        self._note()
        self.spent.clear()

    def now(self) -> Counter[str]:
        self._note()
        return Counter(self.spent)

    def _note(self) -> None:
        now = time.thread_time()
        self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed; what the clock itself takes counts as the caller's, so it is kept
        short."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._note()
            self._stack.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._note()
                self._stack.pop()

        return timed


def measure(steps: int) -> dict[str, float]:
    """Seconds of one step, by part."""
    import torch

    from automodel_core.cli import main as automodel
    from automodel_core.train import loop
    from automodel_core.train.data import TrainingData
    from automodel_core.train.guards import Guards
    from automodel_core.train.step import Objective

    torch.set_num_threads(1)
    clock, done, report = Clock(), Counter(), loop.report
    measured: Counter[str] = Counter()

    def counted(run: Any, late: int) -> None:
        report(run, late)
        done["steps"] += 1
        if done["steps"] == WARM_UP:
            clock.restart()
        if done["steps"] == steps:
            measured.update(clock.now())

    loop.report = counted
    loop.accumulate_gradients = clock.around("forward, backward", loop.accumulate_gradients)
    loop.clip_gradients = clock.around("gradient norm", loop.clip_gradients)
    for owner, name in ((torch.amp.GradScaler, "step"), (torch.optim.AdamW, "zero_grad")):
        setattr(owner, name, clock.around("optimizer", getattr(owner, name)))
    TrainingData.next_step = clock.around("data", TrainingData.next_step)
    Objective.prepare = clock.around("data", Objective.prepare)
    loop.report = clock.around("report", counted)
    for name in ("before_step", "take_step", "after_step"):
        setattr(Guards, name, clock.around("guards", getattr(Guards, name)))
    with tempfile.TemporaryDirectory() as folder:
        if automodel(["run", str(write_inputs(Path(folder), steps)), "--quiet"]):
            raise SystemExit("the run failed")
    return {name: spent / (steps - WARM_UP) for name, spent in measured.items()}


def watchdog_share() -> float:
    """Of a processor, what the watchdog of rank 0 of many takes with its default patience."""
    import torch.distributed as dist

    from automodel_core.config.schema import DistEnv
    from automodel_core.watchdog.beats import Pulse
    from automodel_core.watchdog.watching import BEATS as IN_PATIENCE
    from automodel_core.watchdog.watching import Watchdog

    patience = DistEnv().watchdog_seconds
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    watchdog = Watchdog(
        rank=0, size=RANKS, store=store, pulse=Pulse(lambda: (1, [1, 2, 3])), patience=patience,
        limit=600, logs="logs", say=print, last_words=print,
    )  # fmt: skip
    watchdog.beat()
    for rank in range(1, RANKS):
        store.set(str(rank), store.get("0"))
    begun = time.thread_time()
    for _ in range(BEATS):
        watchdog.beat()
    return (time.thread_time() - begun) / BEATS / (patience / IN_PATIENCE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts, found = measure(options.steps), environment("torch", "transformers")
    total = sum(parts.values())
    shares = {name: seconds / total for name, seconds in parts.items()}
    guards, watchdog = shares["guards"], watchdog_share()
    overhead = sum(shares[name] for name in ("loop", "data", "report", "guards"))
    if options.json:
        content = {"environment": found, "step_seconds": total, "shares": shares}
        content["watchdog"] = watchdog
        options.json.write_text(json.dumps(content, indent=2))
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    print(f"\na step of {1000 * total:.1f} ms of CPU time")
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {name:<20}{share:>9.3%}")
    print(f"\noverhead {overhead:.3%} (budget {OVERHEAD:.1%}), guards {guards:.3%} ({GUARDS:.1%})")
    print(f"watchdog of rank 0 of {RANKS}: {watchdog:.3%} of a processor ({WATCHDOG:.1%})")
    return int(overhead > OVERHEAD or guards > GUARDS or watchdog > WATCHDOG)


if __name__ == "__main__":
    sys.exit(main())
