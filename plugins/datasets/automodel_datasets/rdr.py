"""Images with their descriptions, in the columns of rdr-items."""

from __future__ import annotations

from functools import partial

from automodel_datasets.image_conversations import ImageConversations, describe, image_questions
from automodel_datasets.rows import required_text


def make_rdr_dataset(
    path_or_dataset: str = "quintend/rdr-items", split: str = "train"
) -> ImageConversations:
    """rdr-items, or any data with its columns `image` and `text`.

    Args:
        path_or_dataset: A dataset on the Hub, a local folder or a data file.
        split: Such as train or train[:1000].

    Raises:
        UserError: The data can't be had or a row is broken.
    """
    return image_questions(
        path_or_dataset, split, "image", describe, partial(required_text, column="text")
    )
