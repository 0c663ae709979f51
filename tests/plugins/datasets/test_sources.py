"""Files, folders and the Hub; each way of not finding something says what to do."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from automodel_core.errors import UserError
from automodel_datasets.sources import load_rows

ROWS = [{"question": f"q{number}", "answer": str(number)} for number in range(10)]


def write(path, rows=ROWS):
    """The rows in the format that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def load(location, split="train", **keys):
    located = str(location) if not isinstance(location, list) else list(map(str, location))
    return list(load_rows(located, split, argument="path_or_dataset_id", **keys))


def answers(rows):
    return [row.values["answer"] for row in rows]


def refusal(location, split="train", **keys):
    with pytest.raises(UserError) as refused:
        load(location, split, **keys)
    return refused.value


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows = load(write(tmp_path / f"data.{suffix}"))
    assert [dict(row.values) for row in rows] == ROWS


def test_a_json_file_may_hold_one_object_on_each_line(tmp_path):
    write(tmp_path / "data.jsonl").rename(tmp_path / "data.json")
    assert len(load(tmp_path / "data.json")) == 10


def test_several_files_are_read_one_after_another(tmp_path):
    files = [write(tmp_path / "b.jsonl", ROWS[:2]), write(tmp_path / "a.csv", ROWS[2:4])]
    assert answers(load(files)) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[-3:]", range(7, 10)),
        ("train[10%:30%]", range(1, 3)),
        ("train[:1]+train[5:6]", [0, 5]),
        ("train[:1000]", range(10)),
    ],
)
def test_splits_and_slices_of_a_file(tmp_path, split, expected):
    assert answers(load(write(tmp_path / "data.jsonl"), split)) == list(map(str, expected))


def test_a_limit_counts_within_the_split(tmp_path):
    path = write(tmp_path / "data.jsonl")
    assert answers(load(path, "train[5:]", limit=2)) == ["5", "6"]
    assert len(load(path, limit=1000)) == 10
    assert refusal(path, limit=0).argument == "limit_dataset_samples"


def test_the_files_of_a_folder_are_its_splits(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:6])
    write(tmp_path / "validation.jsonl", ROWS[6:])
    assert answers(load(tmp_path, "validation[:2]")) == ["6", "7"]
    assert len(load(tmp_path, "train+validation")) == 10


def test_shards_in_a_subfolder_are_one_split(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:5])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[5:])
    assert answers(load(tmp_path)) == [row["answer"] for row in ROWS]


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_that_save_to_disk_wrote(tmp_path, splits):
    saved = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(train=saved) if splits else saved).save_to_disk(tmp_path / "saved")
    rows = load(tmp_path / "saved", "train[2:4]")
    assert answers(rows) == ["2", "3"]


def test_rows_know_their_place(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"answer": "a"}\n\n{"answer": "b"}\n')
    assert [row.place for row in load(path)] == [f"{path}:1", f"{path}:3"]


def test_csv_fields_stay_strings(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('\ufeffquestion,answer\n"a ""b"", c",007\nlast,1e3\n', encoding="utf-8")
    assert [dict(row.values) for row in load(path)] == [
        {"question": 'a "b", c', "answer": "007"},
        {"question": "last", "answer": "1e3"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"a": "b"}\n{"a": }\n', "bad.jsonl:2 is not valid JSON"),
        ("cut.jsonl", b'{"a": "b"}\n{"a": "b', "cut.jsonl:2 is not valid JSON"),
        ("list.jsonl", b'{"a": "b"}\n["b"]\n', "list.jsonl:2 is a JSON list, not an object"),
        ("latin.jsonl", b'{"a": "b"}\n{"a": "\xe9"}\n', "latin.jsonl:2 is not UTF-8"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl:1 is JSON nested too deeply"),
        ("bad.json", b'[\n{"a": "b"},\n{"a": }\n]', "bad.json:3 is not valid JSON"),
        ("latin.json", b'[\n{"a": "b"},\n{"a": "\xe9"}\n]', "latin.json:3 is not UTF-8"),
        ("item.json", b'[{"a": "b"}, 3]', "item.json, item 2 is a JSON int, not an object"),
        ("wide.csv", b"a,b\n1,2\n1,2,3\n", "wide.csv:3 has more fields than the header"),
        ("latin.csv", b"a,b\n1,\xe9\n", "latin.csv:2 is not UTF-8"),
        ("quote.csv", b'a,b\n"1"2,3\n', "quote.csv:2 is not valid CSV"),
        ("bad.parquet", b"PAR1 no", "bad.parquet is not a valid Parquet file"),
        ("notes.txt", b"hello", "notes.txt is not a data file"),
    ],
)
def test_broken_files_are_refused_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name).message


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for missing in ("data/train.jsonl", "./data", "a/b/c"):
        error = refusal(missing)
        assert f"no file or folder {missing.removeprefix('./')}" in error.message
        assert str(tmp_path) in error.fix
        assert error.argument == "path_or_dataset_id"


def test_a_folder_without_data(tmp_path):
    error = refusal(tmp_path)
    assert "holds no data files" in error.message
    assert "train.jsonl" in error.fix


@pytest.mark.parametrize("split", ["test", "train[", "train[a:b]", "train[3]"])
def test_a_split_that_isnt_there_or_cannot_be_read(tmp_path, split):
    error = refusal(write(tmp_path / "data.jsonl"), split)
    assert split in error.message
    assert error.argument == "split"


def test_a_configuration_name_belongs_to_the_hub(tmp_path):
    assert refusal(write(tmp_path / "data.jsonl"), name="main").argument == "name"


class TestHub:
    """The Hub itself is out of reach in tests: what `datasets` would say is played back."""

    @pytest.fixture
    def hub(self, monkeypatch):
        def says(answer):
            def load_dataset(repository, name, *, split):
                if isinstance(answer, Exception):
                    raise answer
                return answer

            monkeypatch.setattr(datasets, "load_dataset", load_dataset)

        return says

    def test_rows(self, hub):
        hub(datasets.Dataset.from_list(ROWS))
        rows = load("someone/questions", limit=2)
        assert answers(rows) == ["0", "1"]
        assert rows[1].place == "someone/questions train, row 2"

    def test_no_network(self, hub, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        hub(ConnectionError("Couldn't reach 'someone/questions' on the Hub"))
        error = refusal("someone/questions")
        assert "the Hub can't be reached (HF_HUB_OFFLINE is set)" in error.message
        assert error.argument == "path_or_dataset_id"

    def test_gated(self, hub):
        hub(datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset on the Hub."))
        error = refusal("someone/questions")
        assert "huggingface.co/datasets/someone/questions" in error.fix
        assert "HF_TOKEN" in error.fix

    def test_missing(self, hub):
        hub(datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"))
        assert "neither a file or folder" in refusal("someone/questions").message

    def test_unknown_split(self, hub):
        hub(ValueError("Unknown split \"dev\". Should be one of ['train']."))
        assert refusal("someone/questions", "dev").argument == "split"

    def test_missing_configuration(self, hub):
        hub(ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']"))
        error = refusal("someone/questions")
        assert "socratic" in error.message
        assert "name" in error.fix

    def test_a_loading_script(self, hub):
        hub(RuntimeError("Dataset scripts are no longer supported, but found q.py"))
        assert "scripts are no longer supported" in refusal("someone/questions").message
