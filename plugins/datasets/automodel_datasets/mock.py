"""Random tokens, for timing a run without data."""

from __future__ import annotations

import random

from transformers import PretrainedConfig

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Sample

# The share of a sample that is prompt, and so not learned.
PROMPT = 0.3


class MockDataset:
    """Samples drawn from their number alone; 30% of their labels are masked, as prompts are.

    Args:
        length: Tokens in a sample; in the longest, if they vary.
        samples: How many samples.
        shortest: Lengths are drawn evenly from here up to `length`; by default all are `length`.
        vocabulary: Tokens to draw from; by default the model's.
        model_config: Tells the model's vocabulary.
        seed: The run's seed.

    Raises:
        UserError: A number is below 1, or nothing names a vocabulary.
    """

    def __init__(
        self,
        length: int,
        samples: int = 4096,
        shortest: int | None = None,
        vocabulary: int | None = None,
        model_config: PretrainedConfig | None = None,
        seed: int = 0,
    ) -> None:
        if vocabulary is None and model_config is not None:
            vocabulary = model_config.get_text_config().vocab_size
        self.shortest = length if shortest is None else shortest
        self.length, self.samples, self.vocabulary, self.seed = length, samples, vocabulary, seed
        for name in ("length", "samples", "shortest", "vocabulary"):
            value = getattr(self, name)
            if value is None or value < 1:
                raise UserError(f"{name} is {value}.", fix="write 1 or more", argument=name)
        if self.shortest > length:
            raise UserError(
                f"shortest is {shortest}, longer than length, {length}.", argument="shortest"
            )

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        drawn = random.Random(f"{self.seed}:{index}")
        ids = drawn.choices(range(self.vocabulary), k=drawn.randint(self.shortest, self.length))
        prompt = int(PROMPT * len(ids))
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]}
