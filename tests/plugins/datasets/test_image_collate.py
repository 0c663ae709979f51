"""What is learned of conversations with images, in six families' formats, read back as text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from automodel_core.errors import UserError
from automodel_core.train.lengths import lengths_of
from automodel_datasets.image_collate import image_text_collater
from tests.plugins.datasets.seeing import FAMILIES

family = pytest.mark.parametrize("name", FAMILIES)


def said(role: str, *parts: Any) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    return {"role": role, "content": content}


def sample(*messages: dict[str, Any], images: int = 1, size=(60, 40)) -> dict[str, Any]:
    pictures = [Image.new("RGB", size, (40 * i, 90, 200)) for i in range(images)]
    return {"messages": list(messages), "images": pictures, "place": "data.jsonl:7"}


ONE = sample(said("user", None, "What is 12?"), said("assistant", "The sum."))
SEVERAL = sample(
    said("user", None, None, "Which town?"),
    said("assistant", "The old town."),
    said("user", None, "And here? The old town."),
    said("assistant", "A city by the sea."),
    images=3,
    size=(40, 60),
)


def learned(batch: dict[str, torch.Tensor], row: int, processor: Any) -> list[str]:
    """Each run of supervised tokens as text."""
    texts, run = [], []
    for label in [*batch["labels"][row].tolist(), -100]:
        if label != -100:
            run.append(label)
        elif run:
            texts.append(processor.tokenizer.decode(run))
            run = []
    return texts


def expected(sample: dict[str, Any], name: str) -> list[str]:
    end = FAMILIES[name][2]
    texts = [m["content"][0]["text"] + end for m in sample["messages"] if m["role"] == "assistant"]
    # LLaVA's template ends turns with a space; EOS behind the last one is ours.
    return [*texts[:-1], texts[-1] + ("</s>" if name == "llava" else "")]


@family
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("with_marker", [False, True])
def test_answers_and_their_ends_are_learned_and_nothing_else(name, side, with_marker):
    make, marker, _ = FAMILIES[name]
    processor = make()
    batch = image_text_collater(
        [ONE, SEVERAL],
        processor,
        start_of_response_token=marker if with_marker else None,
        padding_side=side,
    )
    assert learned(batch, 0, processor) == expected(ONE, name)
    assert learned(batch, 1, processor) == expected(SEVERAL, name)
    image_tokens = torch.tensor(processor.image_token_ids)
    assert torch.isin(batch["input_ids"], image_tokens).any()
    assert not torch.isin(batch["labels"], image_tokens).any()
    pads = batch["attention_mask"] == 0
    assert pads.any()
    assert (batch["labels"][pads] == -100).all()
    for row in range(2):
        count = int(batch["attention_mask"][row].sum())
        assert batch["position_ids"][row][~pads[row]].tolist() == list(range(count))


@family
def test_the_rest_is_what_the_processor_gives_by_itself(name):
    """The marks leave no trace in the tokens, types or pixels."""
    processor = FAMILIES[name][0]()
    processor.tokenizer.padding_side = "right"
    batch = image_text_collater([SEVERAL], processor)
    template = processor.chat_template
    text = processor.tokenizer.apply_chat_template(
        SEVERAL["messages"], chat_template=template, tokenize=False
    )
    if name == "llava":
        text += "</s>"
    bos = processor.tokenizer.bos_token
    plain = processor(
        text=[text],
        images=[SEVERAL["images"]],
        return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    assert set(plain) == set(batch) - {"labels", "position_ids"}
    for key, value in plain.items():
        torch.testing.assert_close(batch[key], value, msg=lambda text, key=key: f"{key}: {text}")


@family
def test_an_absent_marker_is_refused_by_sample_and_marker(name):
    processor = FAMILIES[name][0]()
    with pytest.raises(UserError, match=r"data\.jsonl:7.*'<answer>'"):
        image_text_collater([ONE], processor, start_of_response_token="<answer>")


def test_a_marker_in_the_users_words_is_no_header():
    processor = FAMILIES["gemma3"][0]()
    marker = "Which town?"
    with pytest.raises(UserError, match="turn 1"):
        image_text_collater([SEVERAL], processor, start_of_response_token=marker)


@family
def test_text_alone_and_text_beside_images_are_batches_too(name):
    processor = FAMILIES[name][0]()
    plain = sample(said("user", "What is one?"), said("assistant", "The sum."), images=0)
    for samples in ([plain], [plain, ONE]):
        batch = image_text_collater(samples, processor)
        assert learned(batch, 0, processor) == expected(plain, name)


def test_resolution_and_dtype_of_pixels_can_be_chosen():
    processor = FAMILIES["qwen"][0]()
    whole = image_text_collater([ONE], processor)
    small = image_text_collater([ONE], processor, max_pixels=300, pixel_dtype="bfloat16")
    assert small["pixel_values"].dtype == torch.bfloat16
    assert small["image_grid_thw"].prod() < whole["image_grid_thw"].prod()
    sized = image_text_collater(
        [ONE], processor, image_size={"shortest_edge": 64, "longest_edge": 256}
    )
    assert sized["image_grid_thw"].prod() * 16 <= 256


def test_the_wrong_number_of_placeholders_is_refused():
    processor = FAMILIES["gemma3"][0]()
    with pytest.raises(UserError, match=r"data\.jsonl:7"):
        image_text_collater([{**ONE, "images": []}, SEVERAL], processor)


def test_a_text_model_has_no_processor_and_is_told_so():
    with pytest.raises(UserError, match="processor"):
        image_text_collater([ONE], None)


def test_lengths_count_the_tokens_of_images():
    processor = FAMILIES["gemma3"][0]()
    samples = [ONE, SEVERAL, sample(said("user", "12?"), said("assistant", "The sum."), images=0)]
    lengths = lengths_of(samples, lambda rows: image_text_collater(rows, processor))
    batch = image_text_collater(samples, processor)
    assert lengths.tolist() == batch["attention_mask"].sum(1).tolist()
