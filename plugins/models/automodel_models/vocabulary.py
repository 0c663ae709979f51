"""Every token that the tokenizer makes must have a row in the embeddings."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from automodel_core.errors import UserError


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, resize_embeddings: bool
) -> None:
    """Refuse a tokenizer with more tokens than the embeddings have rows, or add rows if asked to.

    Embeddings with rows to spare stay as they are: models are padded to round sizes.

    Args:
        model: Its embeddings are `[vocabulary, hidden]`; resized in place, output embeddings too.
        tokenizer: The run's tokenizer.
        resize_embeddings: Add rows, drawn from the distribution of the others
            (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Raises:
        UserError: The tokenizer is larger, and the YAML doesn't ask for new rows.
    """
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if tokens <= rows:
        return
    if not resize_embeddings:
        raise UserError(
            f"The tokenizer has {tokens:,} tokens and the model embeds only {rows:,}.",
            fix="write resize_embeddings: true to train rows for the new tokens, or use the "
            "model's own tokenizer",
            argument="resize_embeddings",
        )
    model.resize_token_embeddings(tokens)
