"""`automodel data show`: faults planted in data are found by name, and healthy data has none."""

import json
import textwrap
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from automodel_core.cli import main
from automodel_core.data_report.health import CHECKS

ASK, ANSWER, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
QUESTION = f"{ASK}What is 12 plus one?{END}\n{ANSWER}"

# A data set and collators as somebody's package might have them.
PLANTED = '''
    import json
    from pathlib import Path

    import torch

    from automodel_datasets.collate import default_collater

    def samples(path: str):
        """Whatever the file holds."""
        return json.loads(Path(path).read_text())

    def by_token(samples, tokenizer=None):
        """Masks pads by their token."""
        batch = default_collater(samples, tokenizer)
        hidden = batch["input_ids"] == tokenizer.pad_token_id
        return batch | {"labels": torch.where(hidden, -100, batch["labels"])}

    def pads_too(samples, tokenizer=None):
        """Masks no pad."""
        batch = default_collater(samples, tokenizer)
        pads = batch["attention_mask"] == 0
        return batch | {"labels": torch.where(pads, batch["input_ids"], batch["labels"])}
'''


@pytest.fixture
def planted(tmp_path, monkeypatch, tiny_model, base_config, config_file, capsys):
    """Show the data that `parts` describe: lists of (text or token, whether it is learned)."""
    del base_config["dataset"]
    module = tmp_path / "planted_data.py"
    module.write_text(textwrap.dedent(PLANTED))
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def sample(parts) -> dict:
        ids, labels = [], []
        for text, learned in parts:
            new = [text] if isinstance(text, int) else tokenizer(text)["input_ids"]
            ids += new
            labels += new if learned else [-100] * len(new)
        return {"input_ids": ids, "labels": labels}

    def show(documents, *words, command=("data", "show"), collate=None, **tokens):
        for name, value in tokens.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        file = tmp_path / "samples.json"
        file.write_text(json.dumps([sample(parts) for parts in documents]))
        changes = {
            "dataset": {"_target_": "planted_data.samples", "path": str(file)},
            "tokenizer": {"pretrained_model_name_or_path": str(tmp_path / "tokenizer")},
        }
        if collate:
            changes["dataloader"] = {"collate_fn": f"planted_data.{collate}"}
        config = config_file(changes, tmp_path / "run")
        code = main([*command, config, "--allow", "planted_data.", *words])
        out, err = capsys.readouterr()
        return code, out + err

    return show


def healthy(number: int) -> list:
    return [
        (f"{ASK}What is {number} plus one?{END}\n{ANSWER}", False),
        (f"{number + 1}{END}", True),
    ]


def with_question(answer: str) -> list:
    return [(QUESTION, False), (answer, True)]


MARKERS = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
LONG = "The river runs through the old town by the sea. " * 2

# Fault -> documents that have it, and the tokenizer or collator that it needs.
FAULTS = {
    "unsupervised": ([[(f"{QUESTION}13{END}", False)]], {}),
    "no_end": ([with_question("13")], {}),
    "cut": ([with_question(LONG), [(QUESTION.replace("12", "13"), False), (LONG, True)]], {}),
    "wrong_role": ([[(ASK, False), (f"What is 12?{END}", True), (f"{ANSWER}12{END}", False)]], {}),
    "headers": ([[(f"{QUESTION}13{END}", True)]], {}),
    "empty_thought": ([with_question(f"<think>\n\n</think>\n\n13{END}")], {}),
    "empty_answer": ([with_question(END)], {}),
    "double_bos": (
        [[("<|endoftext|><|endoftext|>", False), *healthy(7)]],
        {"bos_token": "<|endoftext|>"},
    ),
    "split_markers": ([healthy(7)], {"chat_template": MARKERS}),
    "unknown_tokens": (
        [[("<|endoftext|>", False), *healthy(7)]],
        {"unk_token": "<|endoftext|>"},
    ),
    "broken_text": ([with_question(f"the \ufffd town{END}")], {}),
    "duplicates": ([healthy(1)], {}),
    "learned_pads": ([with_question(f"{LONG}{END}")], {"collate": "pads_too"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_it_alone(planted, fault):
    documents, settings = FAULTS[fault]
    code, out = planted([*(healthy(i) for i in range(5)), *documents], "--json", **settings)
    assert code == 0, out
    (found,) = json.loads(out)["dataset"]["faults"]
    assert found["name"] == fault
    if fault == "split_markers":
        assert found["count"] == 3
    elif fault != "learned_pads":
        assert found["count"] == len(documents)
        assert set(found["documents"]) <= {5, 6}


def test_a_pad_token_that_is_the_end_token_under_a_collator_that_masks_it(planted):
    data = [healthy(i) for i in range(5)]
    _, out = planted(data, "--json", collate="by_token", pad_token=END)
    (found,) = json.loads(out)["dataset"]["faults"]
    assert found["name"] == "no_end"
    assert "The pad token is the end token" in found["message"]
    _, out = planted(data, "--json", pad_token=END)
    assert json.loads(out)["dataset"]["faults"] == []


def test_a_token_that_the_model_does_not_embed(planted):
    _, out = planted([healthy(1), [(5000, False), *healthy(2)]], "--json")
    assert "beyond_vocabulary" in [each["name"] for each in json.loads(out)["dataset"]["faults"]]


def test_the_figures_are_those_of_the_data(planted):
    _, out = planted([healthy(i) for i in range(5)], "--json", "--num", "1")
    health = json.loads(out)["dataset"]
    assert health["documents"] == health["samples"] == 5
    assert health["ends"] == [5, 5]
    assert 0 < health["supervised_share"] < 0.5
    (row,) = health["shown"]
    learned = "".join(piece["text"] for piece in row if piece["role"] == "learned")
    assert learned == f"1{END}"


def test_in_a_pipe_brackets_stand_around_what_is_learned(planted):
    code, out = planted([healthy(0)], "--num", "1")
    assert code == 0
    assert f"{ANSWER}\u27e61{END}\u27e7" in out
    assert "No fault found." in out


def test_the_page_needs_nothing_else_and_shows_no_markup_of_the_data(planted, tmp_path):
    page = tmp_path / "report.html"
    code, _ = planted([with_question(f"<script>alert(1)</script>{END}")], "--html", str(page))
    text = page.read_text()
    assert code == 0
    assert "<script" not in text
    assert "&lt;" in text
    assert "http" not in text


def test_a_run_on_data_with_nothing_to_learn_is_refused(planted):
    code, out = planted([[(f"{QUESTION}13{END}", False)]] * 3, command=["run"])
    assert code == 2
    assert "Nothing of this data is learned" in out


def test_a_run_warns_of_a_fault(planted):
    code, out = planted([*(healthy(i) for i in range(7)), with_question("13")], command=["run"])
    assert code == 0, out
    assert "dataset: no_end (1 answers, of 8 samples examined)" in out


def test_every_fault_is_planted_and_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "looking_at_data.md").read_text()
    names = {check.__name__ for check in CHECKS}
    assert names == {*FAULTS, "beyond_vocabulary"}
    assert [name for name in names if f"| `{name}` |" not in page] == []
