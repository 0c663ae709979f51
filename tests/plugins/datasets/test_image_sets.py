"""Rows with images, in every form they are stored in, and the reference's three data sets."""

from __future__ import annotations

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from automodel_core.errors import UserError
from automodel_core.train.fingerprint import fingerprint
from automodel_datasets.cord import make_cord_v2_dataset
from automodel_datasets.image_conversations import make_image_conversations
from automodel_datasets.medpix import make_medpix_dataset
from automodel_datasets.rdr import make_rdr_dataset

RED, BLUE = (250, 10, 10), (10, 10, 250)


def picture(color=RED) -> Image.Image:
    return Image.new("RGB", (8, 6), color)


def png(color=RED) -> bytes:
    held = io.BytesIO()
    picture(color).save(held, "PNG")
    return held.getvalue()


def shown(sample) -> list[tuple[int, ...]]:
    return [image.getpixel((0, 0)) for image in sample["images"]]


def saved(folder, **columns):
    rows = datasets.Dataset.from_dict(columns)
    column = "image_id" if "image_id" in columns else "image"
    rows.cast_column(column, datasets.Image()).save_to_disk(folder)
    return str(folder)


def test_medpix_is_read_from_what_datasets_saved(tmp_path):
    source = saved(
        tmp_path / "set",
        image_id=[{"bytes": png(color), "path": None} for color in (RED, BLUE, RED)],
        question=["What is it?"] * 3,
        answer=["Red.", "Blue.", "Red."],
    )
    found = make_medpix_dataset(source, split="train[:2]")
    assert len(found) == 2
    assert shown(found[1]) == [BLUE]
    user, assistant = found[1]["messages"]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert assistant["content"] == [{"type": "text", "text": "Blue."}]


def test_rdr_is_read_from_parquet_with_bytes(tmp_path):
    table = pa.table({"image": [{"bytes": png(BLUE), "path": "x.png"}], "text": ["A sea."]})
    pq.write_table(table, tmp_path / "train.parquet")
    found = make_rdr_dataset(str(tmp_path / "train.parquet"))
    assert shown(found[0]) == [BLUE]
    assert found[0]["messages"][0]["content"][1]["text"] == "Describe this image."


def test_cord_is_written_as_donut_writes_it(tmp_path):
    truth = {"gt_parse": {"menu": [{"nm": "tea", "price": "2"}, {"nm": "bun"}], "total": "3"}}
    source = saved(tmp_path / "set", image=[{"bytes": png()}], ground_truth=[json.dumps(truth)])
    answer = make_cord_v2_dataset(source)[0]["messages"][1]["content"][0]["text"]
    assert answer == (
        "<s_total>3</s_total><s_menu><s_price>2</s_price><s_nm>tea</s_nm><sep/>"
        "<s_nm>bun</s_nm></s_menu>"
    )


def conversations(tmp_path, row):
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    return make_image_conversations(str(tmp_path / "data.jsonl"))


ASKED = {"type": "text", "text": "Which?"}
ANSWER = {"role": "assistant", "content": "Red."}


def test_files_are_found_beside_the_data_and_images_stay_in_order(tmp_path):
    (tmp_path / "images").mkdir()
    picture(RED).save(tmp_path / "images" / "a.png")
    picture(BLUE).save(tmp_path / "images" / "b.png")
    first = {"type": "image", "image": "images/b.png"}
    row = {
        "messages": [{"role": "user", "content": [first, {"type": "image"}, ASKED]}, ANSWER],
        "images": ["images/a.png"],
    }
    assert shown(conversations(tmp_path, row)[0]) == [BLUE, RED]


def test_images_are_decoded_when_a_sample_is_fetched_and_not_before(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    part = {"type": "image", "image": "a.png"}
    row = {"messages": [{"role": "user", "content": [part, ASKED]}, ANSWER]}
    found = conversations(tmp_path, row)
    with pytest.raises(UserError, match=r"data\.jsonl:1"):
        found[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no list of messages"),
        ({"messages": [ANSWER], "images": ["a.png"]}, "belong to no part"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
            "more image parts",
        ),
        ({"messages": [{"role": "user", "content": "?"}]}, "nothing to learn"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "robot"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "gone.png"}]},
                    ANSWER,
                ]
            },
            "no image gone.png",
        ),
    ],
)
def test_a_broken_row_is_refused_with_its_place(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as refused:
        conversations(tmp_path, row)
    assert "data.jsonl:1" in str(refused.value)


def test_a_checkpoint_knows_its_data_by_words_and_pixels(tmp_path):
    def of(color, text):
        picture(color).save(tmp_path / "a.png")
        part = {"type": "image", "image": "a.png"}
        asked = {"role": "user", "content": [part, {"type": "text", "text": text}]}
        return fingerprint(conversations(tmp_path, {"messages": [asked, ANSWER]}))

    assert of(RED, "?") == of(RED, "?")
    assert len({of(RED, "?"), of(BLUE, "?"), of(RED, "!")}) == 3
