"""What every data set written with `authoring` takes, beside the parameters of its own."""

from __future__ import annotations

from typing import Literal

import attrs
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from automodel_core.errors import UserError

# transformers writes 1e30 where a tokenizer knows no limit.
NO_LIMIT = 10**9


@attrs.frozen(kw_only=True)
class Options:
    """For texts and tokens.

    Args:
        tokenizer: The run's tokenizer.
        model_config: Tells what the model allows.
        max_length: Tokens in the longest sample; by default what tokenizer and model allow.
        on_bad_row: Whether a row that can't be used ends the run, or is left out and counted.
        streaming: Read, write and tokenise rows as the run goes, in the order of the data. Nothing
            is kept, and nobody counts them first.
    """

    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig | None = None
    max_length: int | None = None
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    streaming: bool = False

    def __attrs_post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise UserError(
                f"max_length is {self.max_length}: a token is learned from the ones before it.",
                fix="write 2 or more, or leave it out",
                argument="max_length",
            )

    @property
    def limit(self) -> int | None:
        """Tokens in the longest sample; None if nothing limits them."""
        return self.max_length or longest_input(self.tokenizer, self.model_config)


@attrs.frozen(kw_only=True)
class ConversationOptions(Options):
    """For conversations.

    Args:
        train_on: What is learned: each message of the assistant with its end token; those after the
            last question only; or everything, headers and questions too. A message that has
            `train: false` is left out of it.
        mask_reasoning: Learn answers and tool calls, not the thoughts before them.
    """

    train_on: Literal["assistant", "last_turn", "all"] = "assistant"
    mask_reasoning: bool = False


def longest_input(
    tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig | None
) -> int | None:
    """Tokens that both tokenizer and model allow; None if neither names a limit."""
    text_config = model_config.get_text_config() if model_config else None
    named = (tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", None))
    return min((limit for limit in named if limit and limit < NO_LIMIT), default=None)
