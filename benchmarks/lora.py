"""Forward and backward of one LoRA linear layer, by every method, interleaved.

    python benchmarks/lora.py --json lora.json       # on a GPU, under four minutes
    python benchmarks/lora.py --products             # each of the adapter's products by itself
    python benchmarks/lora.py --tune                 # the kernels' tiles
    python benchmarks/lora.py --smoke                # whether it runs; with TRITON_INTERPRET=1

A frozen weight in bfloat16, adapters in float32, gradients for the input and the adapter. Figures
are medians over rounds in which every method runs in turn, in milliseconds and as ratio to
`frozen`: the two products with the weight alone, which no LoRA can do without. `auto` is what the
plugin picks. Names that end in `+c` are inside torch.compile. Every method is checked against
float32 first, and the largest error of its gradients, by their norm, is in the JSON.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from automodel_core.bench.environment import environment
from automodel_peft import lean_linear
from automodel_peft.choice import chosen_method
from automodel_peft.layers import LayerSettings, LoraLinear, adapt_in_place

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))
RANKS, TOKENS = (8, 16, 64), (2048, 4096, 8192, 16384)
PACKAGES = ("torch", "triton", "peft", "unsloth")
TILES = ((32, 64), (32, 128), (64, 64), (64, 128), (128, 64), (128, 128), (64, 256))


class Case:
    """One shape's input, gradient and frozen weight."""

    def __init__(self, shape: tuple[int, int], rank: int, tokens: int, device: torch.device):
        # Triton's interpreter multiplies no bfloat16.
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
        generator = torch.Generator(device).manual_seed(0)

        def drawn(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator, device=device)

        self.shape, self.rank, self.tokens, self.device = shape, rank, tokens, device
        features_in, features_out = shape
        self.x = drawn(tokens, features_in).to(dtype).requires_grad_()
        self.dy = drawn(tokens, features_out).to(dtype)
        self.weight = (drawn(features_out, features_in) / features_in**0.5).to(dtype)
        self.a, self.b = drawn(rank, features_in) / features_in**0.5, drawn(features_out, rank)

    def named(self) -> dict[str, object]:
        """The start of its row."""
        features_in, features_out = self.shape
        return {"in": features_in, "out": features_out, "rank": self.rank, "tokens": self.tokens}

    def linear(self) -> nn.Linear:
        """The frozen layer; every one has the same weight in memory."""
        made = nn.Linear(*self.shape, bias=False, device="meta")
        made.weight = nn.Parameter(self.weight, requires_grad=False)
        return made

    def ours(self, method: str) -> nn.Module:
        settings = LayerSettings(rank=self.rank, alpha=2 * self.rank, scale=2.0, dropout=0.0,
                                 dtype=torch.float32, seed=0, method=method)  # fmt: skip
        layer = adapt_in_place(self.linear(), LoraLinear, settings)
        layer.lora_A.data.copy_(self.a)
        layer.lora_B.data.copy_(self.b)
        return layer

    def peft(self) -> nn.Module:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=["0"])
        layer = inject_adapter_in_model(config, nn.Sequential(self.linear()))[0]
        layer.lora_A["default"].weight.data = self.a.clone()
        layer.lora_B["default"].weight.data = self.b.clone()
        return layer.to(self.device)

    def unsloth(self) -> nn.Module:
        """Its kernel for one projection, which its attention's output goes through."""
        from unsloth.kernels.fast_lora import LoRA_W

        class Fast(nn.Module):
            def __init__(self, case: Case) -> None:
                super().__init__()
                self.a, self.b = nn.Parameter(case.a.clone()), nn.Parameter(case.b.clone())
                self.frozen = case.weight

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return LoRA_W.apply(x[None], self.frozen, None, self.a, self.b, 2.0)[0]

        return Fast(self)

    def run(self, layer: nn.Module) -> torch.Tensor:
        self.x.grad = None
        output = layer(self.x)
        output.backward(self.dy)
        return output

    def errors(self, layer: nn.Module) -> list[float]:
        """Of the output and of the gradients of x, A and B, against float32."""
        for parameter in layer.parameters():
            parameter.grad = None
        output = self.run(layer).detach()
        found = [output, self.x.grad]
        found += [p.grad for p in layer.parameters() if p.requires_grad]
        return [
            ((ours.float() - right).norm() / right.norm()).item()
            for ours, right in zip(found, self.exact, strict=True)
        ]

    @functools.cached_property
    def exact(self) -> list[torch.Tensor]:
        """The same as `errors` looks at, in float32."""
        with torch.no_grad():
            x, dy, weight = self.x.float(), self.dy.float(), self.weight.float()
            reduced, of_reduced = 2.0 * x @ self.a.t(), 2.0 * dy @ self.b
            output, of_x = x @ weight.t() + reduced @ self.b.t(), dy @ weight + of_reduced @ self.a
            return [output, of_x, of_reduced.t() @ x, dy.t() @ reduced]


def methods(case: Case, compiled: bool) -> dict[str, Callable[[], nn.Module]]:
    """Name -> what makes the layer; some can't be made, and say so when they are."""
    made: dict[str, Callable[[], nn.Module]] = {
        "frozen": case.linear,
        "plain": lambda: case.ours("plain"),
        "auto": lambda: case.ours(chosen_method("auto", case.linear(), case.rank)),
        "peft": case.peft,
        "unsloth": case.unsloth,
    }
    made |= {name: lambda name=name: case.ours(name) for name in lean_linear.METHODS}
    if compiled:
        for name in ("plain", "lean", "auto", "peft"):
            made[f"{name}+c"] = lambda make=made[name]: torch.compile(make(), dynamic=False)
    return made


def milliseconds(device: torch.device, call: Callable[[], object]) -> float:
    """Of one call, on the device's own clock. The cache is as the call before it left it."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # While the GPU sleeps, the call is queued: a slow launch isn't counted as the kernels' time.
    torch.cuda._sleep(8_000_000)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved(
    device: torch.device, calls: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Medians; the order turns by one from round to round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(milliseconds(device, calls[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def measured(case: Case, rounds: int, compiled: bool, failed: dict[str, str]) -> dict[str, object]:
    """One row of the table; what isn't installed says so once and isn't tried again."""
    layers: dict[str, nn.Module] = {}
    errors: dict[str, list[float]] = {}
    for name, make in methods(case, compiled).items():
        if failed.get(name, "").startswith(("ModuleNotFound", "ImportError")):
            continue
        try:
            layer = make()
            errors[name] = [] if name == "frozen" else case.errors(layer)
            layers[name] = layer
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            failed[name] = f"{type(error).__name__}: {first}"
            print(f"{name}: {failed[name]}", flush=True)
    wrong = [name for name, each in errors.items() if each and max(each) > 0.02]
    if wrong:
        print(f"WRONG by more than 2%: {wrong}", flush=True)
    calls = {name: lambda layer=layer: case.run(layer) for name, layer in layers.items()}
    for call in calls.values():
        call()
    return case.named() | {
        "ms": interleaved(case.device, calls, rounds),
        "errors": {name: max(each, default=0.0) for name, each in errors.items()},
        "wrong": wrong,
    }


def products(case: Case, rounds: int) -> dict[str, object]:
    """The adapter's products by PyTorch and by Triton, forward and backward apart."""
    x, y = case.x.detach(), case.dy.clone()
    a, b = (each.detach().to(x.dtype) for each in (case.a, case.b))
    kernels = importlib.import_module("automodel_peft.low_rank_triton")
    small = lean_linear.reduce(x, a, "lean")
    calls: dict[str, Callable[[], object]] = {
        "y+= lean": lambda: y.addmm_(small, b.t()),
        "y+= triton": lambda: kernels.add_expanded(y, small, b),
        "dt,dB once": lambda: kernels.reduce_and_gradient(y, b, small),
    }
    for method in ("lean", "triton"):
        calls[f"t {method}"] = lambda m=method: lean_linear.reduce(x, a, m)
        calls[f"dt {method}"] = lambda m=method: lean_linear.reduce(y, b.t(), m)
        calls[f"dB {method}"] = lambda m=method: lean_linear.factor_gradient(y, small, m)
        calls[f"dA {method}"] = lambda m=method: lean_linear.factor_gradient(
            x, small, m, transposed=True
        )
    for call in calls.values():
        call()
    return case.named() | {"ms": interleaved(case.device, calls, rounds)}


def tuned(case: Case, rounds: int) -> None:
    """Every kernel by its tiles, warps and stages; the five fastest and the present one."""
    kernels = importlib.import_module("automodel_peft.low_rank_triton")
    x, y = case.x.detach(), case.dy.clone()
    a, b = (each.detach().to(x.dtype) for each in (case.a, case.b))
    small = lean_linear.reduce(x, a, "lean")
    calls = {
        "reduce": lambda: kernels.reduce(x, a),
        "add": lambda: kernels.add_expanded(y, small, b),
        "factor": lambda: kernels.factor_gradient(y, small, False),
        "once": lambda: kernels.reduce_and_gradient(y, b, small),
    }
    for name, call in calls.items():
        present, found = kernels.TILES[name], []
        tried = [(*t, w, s) for t in TILES for w in (4, 8) for s in (2, 3, 4)]
        for tiles in {present, *tried}:
            kernels.TILES[name] = tiles
            try:
                call()
                each = [milliseconds(case.device, call) for _ in range(rounds)]
                found.append((statistics.median(each), tiles))
            except Exception as error:
                print(f"{name} {tiles}: {type(error).__name__}")
        kernels.TILES[name] = present
        best = sorted(found)[:5] + [each for each in found if each[1] == present]
        print(f"{name} {case.shape} rank {case.rank}, {case.tokens} tokens:", *best, flush=True)


def show(row: dict[str, object]) -> None:
    """The times, and in brackets their ratios to the frozen products."""
    title = f"{row['in']} -> {row['out']}, rank {row['rank']}, {row['tokens']} tokens"
    found: dict[str, float] = row["ms"]
    frozen = found.get("frozen")
    parts = [
        f"{name} {ms:.3f}" + (f" ({ms / frozen:.3f})" if frozen else "")
        for name, ms in sorted(found.items(), key=lambda each: each[1])
    ]
    print(f"{title}:\n    " + "  ".join(parts), flush=True)


def summary(rows: list[dict[str, object]]) -> None:
    """Where `auto` isn't within 1% of the fastest correct method, outside torch.compile."""
    for row in rows:
        found = {n: ms for n, ms in row["ms"].items() if n != "frozen" and n not in row["wrong"]}
        eager = {name: ms for name, ms in found.items() if not name.endswith("+c")}
        best = min(eager, key=eager.get)
        if eager.get("auto", float("inf")) > 1.01 * eager[best]:
            print(
                f"auto isn't the fastest at {row['in']} -> {row['out']}, rank {row['rank']}, "
                f"{row['tokens']} tokens: {best}, {eager[best]:.3f} ms"
            )


def main() -> None:
    """A row for each shape, rank and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--compile-at", type=int, nargs="*", default=[8192],
                        help="tokens at which compiled layers of rank 16 run too")  # fmt: skip
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device, shapes = torch.device("cuda"), SHAPES
    if arguments.smoke:
        device, shapes = torch.device("cpu"), ((64, 96),)
        arguments.tokens, arguments.ranks, arguments.rounds = [48], [8], 2
    machine = environment(*PACKAGES)
    for name, value in machine.items():
        print(f"{name}: {value}")
    rows, failed = [], {}
    started = time.perf_counter()
    for shape in shapes:
        for rank in arguments.ranks:
            for tokens in arguments.tokens:
                case = Case(shape, rank, tokens, device)
                if arguments.tune:
                    tuned(case, arguments.rounds)
                    continue
                if arguments.products:
                    row = products(case, arguments.rounds)
                else:
                    torch.compiler.reset()
                    compiled = rank == 16 and tokens in arguments.compile_at
                    row = measured(case, arguments.rounds, compiled, failed)
                show(row)
                rows.append(row)
                if arguments.json:  # at once: whoever stops it keeps what is done
                    found = {"environment": machine, "rows": rows, "failed": failed}
                    arguments.json.write_text(json.dumps(found, indent=1))
    print(f"{time.perf_counter() - started:.0f} s")
    if not (arguments.products or arguments.tune):
        summary(rows)


if __name__ == "__main__":
    main()
