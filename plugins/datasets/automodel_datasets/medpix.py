"""Questions about medical images, in the columns of MedPix-VQA."""

from __future__ import annotations

from functools import partial

from automodel_datasets.image_conversations import ImageConversations, image_questions
from automodel_datasets.rows import required_text


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
    return image_questions(
        path_or_dataset,
        split,
        image="image_id",
        question=partial(required_text, column="question"),
        answer=partial(required_text, column="answer"),
    )
