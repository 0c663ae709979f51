"""Peak memory and time of a training step with adapters, beside PEFT's, measured in one process.

    python benchmarks/lora_step.py --shape 1b            # on the first GPU
    python benchmarks/lora_step.py --shape tiny --cpu    # by the counts of the CPU's allocator

Both adapt the same linear layers of the same random Llama in bfloat16 with float32 adapters, start
from the same A, and take AdamW steps on the same tokens. Needs `peft`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Callable, Iterator

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.bench.environment import environment
from automodel_peft.dora import Dora
from automodel_peft.export import adapted_layers
from automodel_peft.lora import PeftConfig

# The shapes of Llama 3.2 1B and Llama 3.1 8B, and one for a laptop.
SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
             "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2048},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 16, 32


def ours(model: LlamaForCausalLM, dora: bool, dropout: float) -> nn.Module:
    """The model with our adapters."""
    variant = Dora if dora else PeftConfig
    variant(dim=RANK, alpha=ALPHA, dropout=dropout, include_modules=LINEARS).apply(model)
    return model


def of_peft(model: LlamaForCausalLM, dora: bool, dropout: float) -> nn.Module:
    """The model with PEFT's adapters."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        use_dora=dora,
        target_modules=LINEARS,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def same_start(model: nn.Module) -> None:
    """Every A from the position of its layer alone."""
    adapted = adapted_layers(model)
    found = (
        [layer.lora_A for layer in adapted.values()]
        if adapted
        else [p for name, p in model.named_parameters() if "lora_A" in name]
    )
    for number, parameter in enumerate(found):
        generator = torch.Generator().manual_seed(number)
        values = torch.rand(parameter.shape, generator=generator) * 0.02 - 0.01
        parameter.data.copy_(values)


def steps(model: nn.Module, tokens: torch.Tensor) -> Iterator[float]:
    """Train without end; the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    while True:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def peak_on_gpu(step: Callable[[], float]) -> int:
    """The most bytes allocated at once during a step, the model included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def peak_on_cpu(step: Callable[[], float]) -> int:
    """The most bytes that a step held at once beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in memory))


def measured(arguments: argparse.Namespace, adapt: Callable, dora: bool, dropout: float) -> tuple:
    """Peak bytes of a step, the seconds of one, and the loss of the fifth."""
    device = torch.device("cpu" if arguments.cpu else "cuda")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[arguments.shape], attn_implementation="sdpa", dtype="bfloat16")
    with device:
        base = LlamaForCausalLM(config).to(torch.bfloat16)
    model = adapt(base, dora, dropout)
    same_start(model)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = (arguments.batch, arguments.length)
    tokens = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    run = steps(model.train(), tokens.to(device))
    next(run)
    peak = (peak_on_cpu if arguments.cpu else peak_on_gpu)(lambda: next(run))
    started = time.perf_counter()
    *_, loss = (next(run) for _ in range(3))
    return peak, (time.perf_counter() - started) / 3, loss


def main() -> None:
    """Print a table: what was asked for, and both sides of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    for name, value in environment("torch", "transformers", "peft").items():
        print(f"{name}: {value}")
    print(f"{arguments.shape}, {arguments.batch} x {arguments.length} tokens, "
          f"activation checkpointing {'on' if arguments.checkpointing else 'off'}")  # fmt: skip
    for dora, dropout in ((False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)):
        for name, adapt in (("ours", ours), ("PEFT", of_peft)):
            try:
                peak, seconds, loss = measured(arguments, adapt, dora, dropout)
                result = f"{peak / 2**20:9.1f} MiB  {seconds:7.3f} s/step  loss {loss:.4f}"
            except torch.OutOfMemoryError:
                result = "out of memory"
            gc.collect()
            if not arguments.cpu:
                torch.cuda.empty_cache()
            print(f"{'DoRA' if dora else 'LoRA'} dropout {dropout}  {name}: {result}", flush=True)


if __name__ == "__main__":
    main()
