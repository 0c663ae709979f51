"""Several data sets as one: each gets its share at every place, and every sample its turn."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_core.cli import main
from automodel_core.errors import UserError
from automodel_datasets.interleaving import interleaved
from automodel_datasets.mixture import Mixture


def source(length: int, marker: int) -> list[dict]:
    ids = [[marker, i, i, i] for i in range(length)]
    return [{"input_ids": each, "labels": [-100, -100, *each[2:]]} for each in ids]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=6).filter(any))
def test_every_source_has_its_share_within_one_sample_at_every_place(counts):
    order, total = interleaved(counts), sum(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for place in range(1, total + 1):
        so_far = np.bincount(order[:place], minlength=len(counts))
        assert all(abs(so_far - np.array(counts) * place / total) < 1)


def test_sources_are_gone_through_as_often_as_epochs_say():
    mixed = Mixture({"a": source(4, 1), "b": source(6, 2)}, epochs={"a": 2, "b": 0.5})
    seen = [tuple(mixed[i]["input_ids"][:2]) for i in range(len(mixed))]
    assert sorted(seen) == sorted([(1, i) for i in range(4)] * 2 + [(2, i) for i in range(3)])
    assert "a: 8 samples an epoch, 2.00 of its 4." in mixed.notes


def test_weights_are_shares_of_the_samples():
    mixed = Mixture({"a": source(4, 1), "b": source(6, 2)}, weights={"a": 3, "b": 1}, samples=20)
    names = [mixed.source_of(i) for i in range(20)]
    assert (names.count("a"), names.count("b")) == (15, 5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"epochs": {"c": 1}}, "no source"),
        ({"epochs": {"a": -1}}, "-1"),
        ({"weights": {"a": 1}}, "either epochs, or weights and samples"),
        ({"samples": 5}, "either epochs, or weights and samples"),
        ({"epochs": {"a": 0}}, "no samples"),
        ({"weights": {"a": 0}, "samples": 5}, "All weights are 0"),
        ({"weights": {"a": float("nan")}, "samples": 5}, "nan"),
        ({"weights": {"a": 1}, "samples": -5}, "needs sources and samples"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(numbers, message):
    with pytest.raises(UserError, match=message):
        Mixture({"a": source(2, 1)}, **numbers)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", [0, 160])
def test_a_run_on_a_mixture_logs_tokens_by_source_and_resumes(
    automodel, base_config, squad_folder, tmp_path, packed, streaming
):
    del base_config["dataset"]
    lines = [json.dumps({"text": f"The river runs {word}."}) for word in ("fast", "deep", "on")]
    (tmp_path / "books.jsonl").write_text("\n".join(lines))
    sources = {
        "asked": {"_target_": "squad", "dataset_name": str(squad_folder), "split": "train"},
        "books": {"_target_": "text", "path_or_dataset_id": str(tmp_path / "books.jsonl")},
    }
    numbers = {"epochs": {"books": 3}}
    if streaming:
        sources = {name: {**section, "streaming": True} for name, section in sources.items()}
        numbers = {"weights": {"asked": 16, "books": 9}, "samples": 25}
    changes = {
        "dataset": {"_target_": "mixture", "sources": sources, **numbers},
        "dataloader": {"batch_size": 2, "shuffle": True},
        "packed_sequence": {"packed_sequence_size": packed},
    }
    whole = automodel(changes, folder="whole")
    assert whole.code == 0, whole.out
    both = {"num_label_tokens/asked", "num_label_tokens/books"}
    assert all(sum(step[name] for step in whole.steps) for name in both)
    for step in whole.steps:
        by_source = [step["num_label_tokens/asked"], step["num_label_tokens/books"]]
        assert sum(by_source) == step["num_label_tokens"]
    automodel({**changes, "step_scheduler": {"max_steps": 2}}, folder="parts")
    assert automodel(changes, folder="parts").losses == whole.losses


@pytest.mark.parametrize("packed", [0, 160])
def test_the_share_learned_of_each_source_is_shown(
    base_config, config_file, squad_folder, tmp_path, automodel, capsys, packed
):
    """In all forms of the report, and before a run: texts are learned but for their first token,
    as the data sets by themselves are."""
    del base_config["dataset"]
    lines = [json.dumps({"text": f"The river runs {word}."}) for word in ("fast", "deep", "on")]
    (tmp_path / "books.jsonl").write_text("\n".join(lines))
    sources = {
        "<asked>": {"_target_": "squad", "dataset_name": str(squad_folder), "split": "train"},
        "books": {"_target_": "text", "path_or_dataset_id": str(tmp_path / "books.jsonl")},
    }
    packing = {"packed_sequence": {"packed_sequence_size": packed}}
    changes = {"dataset": {"_target_": "mixture", "sources": sources}, **packing}

    def report(changes: dict) -> dict:
        assert main(["data", "show", config_file(changes, tmp_path / "run"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["dataset"]

    mixed = report(changes)
    for name, section in sources.items():
        alone = report({"dataset": section, **packing})
        for figure in ("documents", "tokens", "supervised", "supervised_share"):
            assert mixed["sources"][name][figure] == alone[figure], (name, figure)
        assert alone["sources"] == {}
    assert mixed["sources"]["books"]["supervised"] == mixed["sources"]["books"]["tokens"] - 3

    page = tmp_path / "page.html"
    config = config_file(changes, tmp_path / "run")
    assert main(["data", "show", config, "--html", str(page)]) == 0
    assert "<td>- &lt;asked&gt;</td>" in page.read_text()
    main(["data", "show", config])
    shares = {name: f"{each['supervised_share']:.1%}" for name, each in mixed["sources"].items()}
    shown = capsys.readouterr().out.splitlines()
    assert all(any(f"- {n}" in line and shares[n] in line for line in shown) for n in sources)

    run = automodel({**changes, "step_scheduler": {"max_steps": 1}})
    (learned,) = [line for line in run.out.splitlines() if line.startswith("  learned ")]
    assert f"<asked> {shares['<asked>']}, books {shares['books']}" in learned
