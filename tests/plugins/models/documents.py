"""The referee of attention within documents."""

import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention


def by_documents(query, key, value, bounds):
    """Causal attention of each by itself, in float64; `[tokens, heads, width]`."""
    parts = []
    for begin, end in itertools.pairwise(bounds):
        part = [each[begin:end].double().transpose(0, 1)[None] for each in (query, key, value)]
        done = scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
        parts.append(done[0].transpose(0, 1))
    return torch.cat(parts)
