"""Random answers that depend on their seed and their prompt alone, not on who shares the batch."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper


@attrs.frozen(kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the most probable token, without chance.
        top_p: Draw from the most probable tokens that have this much of the probability together.
        seed: The same seed draws the same answers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def processors(self, indices: Sequence[int]) -> list[LogitsProcessor]:
        """What a batch needs; `indices` says which draws they are, one a row."""
        if not self.temperature:
            return []
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        return [*warpers, GumbelNoise(self.seed, indices)]


class GumbelNoise(LogitsProcessor):
    """Makes the largest logit a sample of the softmax, by adding Gumbel noise to every one.

    See Maddison et al. 2014, https://arxiv.org/abs/1411.0030. Each row has a generator of its own,
    on the CPU, so that the draws are the same on every device and in every batch.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            )
            for index in indices
        ]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """`scores` `[batch, vocabulary]` with noise added."""
        width = scores.shape[-1]
        # Minus the logarithm of an exponential variate has Gumbel's distribution.
        noise = [-torch.empty(width).exponential_(generator=each).log() for each in self.generators]
        return scores + torch.stack(noise).to(scores.device)
