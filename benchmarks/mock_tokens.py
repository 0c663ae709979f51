"""Random tokens of one length, for timing: `_target_: mock_tokens.RandomTokens` with `--allow`."""

from __future__ import annotations

import random


class RandomTokens:
    """Samples drawn from their number alone; 30% of the labels are masked, as prompts are.

    Args:
        length: Tokens in a sample.
        vocabulary: Tokens to draw from.
        samples: How many samples.
    """

    def __init__(self, length: int, vocabulary: int, samples: int = 4096) -> None:
        self.length, self.vocabulary, self.samples = length, vocabulary, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = random.Random(index).choices(range(self.vocabulary), k=self.length)
        prompt = int(0.3 * self.length)
        return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
