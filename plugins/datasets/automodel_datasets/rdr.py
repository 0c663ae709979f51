"""Images with their descriptions, in the columns of rdr-items."""

from __future__ import annotations

from automodel_datasets.image_conversations import ImageConversations, one_turn, required_image
from automodel_datasets.images import folders_of
from automodel_datasets.rows import required_text
from automodel_datasets.sources import load_rows

QUESTION = "Describe this image."


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
    folders = folders_of(path_or_dataset)
    return ImageConversations(
        [
            one_turn(
                required_image(row, "image"),
                QUESTION,
                required_text(row, "text"),
                folders,
                row.place,
            )
            for row in load_rows(path_or_dataset, split, argument="path_or_dataset")
        ]
    )
