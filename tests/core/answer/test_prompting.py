"""What is asked after training is, token by token, what stood before the answer in training."""

import json

import pytest
from transformers import AutoTokenizer

from automodel_core.answer.loading import open_model
from automodel_core.answer.prompting import Prompter
from automodel_core.cli.finding import find_model
from automodel_core.train.generation import questions_from
from automodel_datasets.instructions import make_instruction_dataset
from automodel_datasets.squad import make_squad_dataset
from tests.tiny import tiny_llama, tiny_tokenizer

QUESTION = "What is 12 plus one?"


@pytest.fixture(params=[True, False], ids=["chat template", "no chat template"])
def model_folder(tmp_path, request):
    tiny_tokenizer(tmp_path / "model", chat=request.param)
    tiny_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["squad", "instructions"])
def test_a_question_is_asked_as_in_training(automodel, model_folder, tmp_path, name):
    rows = tmp_path / "rows.jsonl"
    answers = {"text": ["13"], "answer_start": [0]}
    row = {"context": "", "question": QUESTION, "answers": answers, "a": "13"}
    rows.write_text((json.dumps(row) + "\n") * 4)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if name == "squad":
        section = {"_target_": name, "dataset_name": str(rows)}
        dataset = make_squad_dataset(str(rows), tokenizer=tokenizer)
    else:
        columns = {"question": "question", "answer": "a"}
        section = {"_target_": name, "path_or_dataset_id": str(rows), "column_mapping": columns}
        dataset = make_instruction_dataset(str(rows), columns, tokenizer=tokenizer)
    run = automodel(
        {
            "model": {"pretrained_model_name_or_path": str(model_folder)},
            "dataset": {"dataset_name": None, "split": "train"} | section,
            "step_scheduler": {"max_steps": 1},
        }
    )
    assert run.code == 0, run.out
    prompter = Prompter.of(open_model(find_model(str(run.folder))))
    assert prompter.ask(QUESTION).ids == questions_from(dataset, tokenizer)[0].prompt_ids


def test_a_prompt_in_the_form_of_training_is_left_as_it_is(automodel, tmp_path):
    tiny_tokenizer(tmp_path / "model", chat=False)
    tiny_llama(tmp_path / "model")
    run = automodel({"model": {"pretrained_model_name_or_path": str(tmp_path / "model")}})
    prompter = Prompter.of(open_model(find_model(str(run.folder))))
    text = "Context: one is 1. Question: what is one? Answer:"
    assert prompter.tokenizer.decode(prompter.ask(text).ids) == text


def test_without_a_run_a_text_is_completed_as_it_stands(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, chat=False)
    tiny_llama(tmp_path)
    prompter = Prompter.of(open_model(find_model(str(tmp_path))))
    assert prompter.ask("Once upon").ids == tokenizer("Once upon")["input_ids"]
