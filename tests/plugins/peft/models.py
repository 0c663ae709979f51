"""Tiny models and a few steps of training, for the tests of adapters."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 96


def llama(**changes) -> LlamaForCausalLM:
    """A Llama of a few thousand random parameters, with large enough weights to matter."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**settings | changes))


def tokens(seed: int = 0, rows: int = 4, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (rows, length), generator=generator)


def adapted(config, model):
    """A copy of `model` that the adapter was applied to."""
    model = copy.deepcopy(model)
    config.apply(model)
    return model


def train(model, groups, steps: int = 3, lr: float = 1e-2) -> list[float]:
    """AdamW without decay on four batches in turn; the losses."""
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        batch = tokens(step % 4)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=tokens(99), use_cache=False).logits
