"""Questions about medical images, in the columns of MedPix-VQA."""

from __future__ import annotations

from automodel_datasets.image_conversations import ImageConversations, one_turn, required_image
from automodel_datasets.images import folders_of
from automodel_datasets.rows import required_text
from automodel_datasets.sources import load_rows


def make_medpix_dataset(
    path_or_dataset: str = "mmoukouba/MedPix-VQA", split: str = "train"
) -> ImageConversations:
    """MedPix-VQA, or any data with its columns `image_id` (the image), `question` and `answer`.

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
                required_image(row, "image_id"),
                required_text(row, "question"),
                required_text(row, "answer"),
                folders,
                row.place,
            )
            for row in load_rows(path_or_dataset, split, argument="path_or_dataset")
        ]
    )
