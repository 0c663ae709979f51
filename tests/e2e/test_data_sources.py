"""Runs on chat, text and HellaSwag data, named in a YAML file as a user names them."""

import json
import textwrap

import pytest

TALK = [
    {"role": "user", "content": "What is 12 plus one?"},
    {"role": "assistant", "content": "13"},
    {"role": "user", "content": "And one more?"},
    {"role": "assistant", "content": "14"},
]
HELLASWAG = "nemo_automodel.components.datasets.llm.hellaswag.HellaSwag"
SWAG = {"ctx": "A man sits.", "endings": ["He flies.", "He stands up."], "label": "1"}


@pytest.fixture(autouse=True)
def _no_squad(base_config):
    del base_config["dataset"]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_run_on_chat_data_counts_bad_rows_and_the_tokens_that_it_learns(automodel, tmp_path):
    rows = [{"messages": TALK}] * 8 + [{"messages": TALK[:1]}]
    path = lines(tmp_path / "chat.jsonl", *rows)
    target = {"_target_": "chat", "path_or_dataset_id": path, "on_bad_row": "skip"}
    both = automodel({"dataset": target}, folder="both")
    assert both.code == 0
    assert "Bad rows skipped: 1. The first: " in both.out
    last = automodel({"dataset": target | {"train_on": "last_turn"}}, folder="last")
    assert last.code == 0
    assert [step["num_label_tokens"] for step in both.steps] == [
        2 * step["num_label_tokens"] for step in last.steps
    ]


def test_a_bad_row_ends_the_run_with_its_file_and_line(automodel, tmp_path):
    path = lines(tmp_path / "chat.jsonl", {"messages": TALK}, {"messages": TALK[:1]})
    run = automodel({"dataset": {"_target_": "chat", "path_or_dataset_id": path}})
    assert run.code == 2
    assert "chat.jsonl:2: The last message is of the role user" in " ".join(run.out.split())


@pytest.mark.parametrize(
    ("target", "rows"),
    [
        ({"_target_": "text", "path_or_dataset_id": "data"}, [{"text": "The river runs."}]),
        ({"_target_": "tokens", "path_or_dataset_id": "data"}, [{"input_ids": [5, 6, 7]}]),
        ({"_target_": HELLASWAG, "path_or_dataset": "data"}, [SWAG]),
    ],
)
def test_a_run_on_other_data(automodel, tmp_path, target, rows):
    path = lines(tmp_path / "data.jsonl", *(rows * 4))
    placed = {key: path if value == "data" else value for key, value in target.items()}
    assert automodel({"dataset": placed}).code == 0


def test_a_misspelt_option_is_refused_before_anything_is_imported(automodel, tmp_path):
    path = lines(tmp_path / "chat.jsonl", {"messages": TALK})
    target = {"_target_": "chat", "path_or_dataset_id": path, "train_om": "all"}
    run = automodel({"dataset": target})
    assert run.code == 2
    assert "train_on" in run.out


STREAMS = '''
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        """With a length, but no samples by index."""

        def __iter__(self):
            yield {"input_ids": [1, 2], "labels": [1, 2]}

        def __len__(self) -> int:
            return 1

    def yielded():
        """Not under a decorator."""
        yield {"input_ids": [1, 2], "labels": [1, 2]}
'''


@pytest.mark.parametrize("name", ["Stream", "yielded"])
def test_a_stream_is_refused_by_name_with_what_to_write(automodel, tmp_path, monkeypatch, name):
    (tmp_path / "streamed_data.py").write_text(textwrap.dedent(STREAMS))
    monkeypatch.syspath_prepend(tmp_path)
    section = {"_target_": f"streamed_data.{name}"}
    run = automodel({"dataset": section}, "--allow", "streamed_data.")
    assert run.code == 2, run.out
    kind = {"Stream": "Stream", "yielded": "generator"}[name]
    assert f"The data set is a stream: its {kind}" in run.out
    assert "docs/your_own_dataset.md" in run.out
