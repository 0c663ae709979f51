"""`automodel generate`: answers as of plain transformers and PEFT, whatever the batch."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from automodel_core.cli import main
from automodel_core.cli.finding import find_model
from tests.tiny import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.variants import mostly_slow

PROMPTS = [
    {"id": number, "prompt": f"What is {number} plus one? " + "Say it. " * (number % 5)}
    for number in range(11)
]
LONGEST = 12


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A tiny chat model that says something else to every prompt."""
    folder = tmp_path_factory.mktemp("talkative")
    tiny_tokenizer(folder)
    tiny_llama(folder, initializer_range=0.4)
    return folder


@pytest.fixture
def generate(tmp_path, capsys):
    """Answer prompts with a model; returns the exit code, the answered lines, and the screen."""

    def run(model, prompts=PROMPTS, *options, out="answers.jsonl"):
        source, target = tmp_path / "prompts.jsonl", tmp_path / out
        source.write_text("".join(json.dumps(each) + "\n" for each in prompts))
        words = ["generate", str(model), "--prompts", str(source), "--out", str(target)]
        if "--max-new-tokens" not in options:
            options += ("--max-new-tokens", str(LONGEST))
        code = main([*words, *options])
        printed = capsys.readouterr()
        lines = target.read_text().splitlines() if target.exists() else []
        return code, [json.loads(line) for line in lines], printed.out + printed.err

    return run


def said_by_transformers(model, tokenizer, record, longest=LONGEST):
    """What transformers alone answers to one line, and why it ended."""
    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ends = {tokenizer.eos_token_id, *(model.generation_config.eos_token_id or ())}
    longest = min(longest, model.config.max_position_embeddings - inputs["input_ids"].shape[1])
    out = model.generate(
        **inputs,
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eos_token_id,
    )[0, inputs["input_ids"].shape[1] :]
    ended = out[-1].item() in ends
    answer = tokenizer.decode(out[: len(out) - ended], skip_special_tokens=True).strip()
    return {**record, "answer": answer, "finish_reason": "stop" if ended else "length"}


def referee(folder, records, longest=LONGEST, adapter=None):
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    return [said_by_transformers(model, tokenizer, each, longest) for each in records]


@pytest.mark.parametrize("batch", ["1", "3", "16"])
def test_answers_are_those_of_transformers_whatever_the_batch(generate, talkative, batch):
    code, answers, screen = generate(talkative, PROMPTS, "--batch-size", batch)
    assert code == 0, screen
    assert answers == referee(talkative, PROMPTS)
    assert len({each["answer"] for each in answers}) > 5, "the prompts are told apart"


def test_messages_are_answered_and_other_keys_carried_through(generate, talkative):
    records = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "What is 3 plus one?"},
            ],
            "tags": ["\u4e16", None, 1.5],
        }
    ]
    code, answers, screen = generate(talkative, records)
    assert code == 0, screen
    assert answers == referee(talkative, records)


def test_answers_stop_at_any_end_token_of_the_model(generate, talkative, tmp_path):
    folder = shutil.copytree(talkative, tmp_path / "stopping")
    ends = list(range(300, 320))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    expected = referee(folder, PROMPTS)
    assert {each["finish_reason"] for each in expected} == {"stop", "length"}, "both are tested"
    assert generate(folder)[1] == expected


def test_a_repetition_penalty_counts_the_same_in_every_batch(generate, talkative, tmp_path):
    folder = shutil.copytree(talkative, tmp_path / "penalised")
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.7}))
    expected = referee(folder, PROMPTS)
    assert expected != referee(talkative, PROMPTS), "it has an effect"
    assert generate(folder, PROMPTS, "--batch-size", "16")[1] == expected


@pytest.mark.parametrize("kind", ["rotary", "learned"])
def test_prompts_near_the_end_of_the_context_are_answered_within_it(generate, tmp_path, kind):
    folder = tmp_path / "short"
    tiny_tokenizer(folder)
    if kind == "rotary":
        tiny_llama(folder, initializer_range=0.4, max_position_embeddings=64)
    else:  # a table of positions, beyond which there is nothing
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=VOCABULARY, initializer_range=0.4, **sizes)
        config.bos_token_id = config.eos_token_id = None
        GPT2LMHeadModel(config).save_pretrained(folder)
    prompts = [{"prompt": "?" * count} for count in (1, 30, 40, 45, 47)]
    code, answers, screen = generate(folder, prompts, "--max-new-tokens", "20")
    assert code == 0, screen
    assert answers == referee(folder, prompts, longest=20)


def test_a_prompt_beyond_the_context_is_refused_at_its_line(generate, talkative, tmp_path):
    prompts = [{"prompt": "short"}, {"prompt": "?" * 300}]
    code, answers, screen = generate(talkative, prompts)
    assert (code, answers) == (2, [])
    assert f"{tmp_path / 'prompts.jsonl'}:2:1: The prompt has 3" in screen
    assert not (tmp_path / "answers.jsonl").exists()


def test_drawn_answers_depend_on_neither_batch_nor_order_of_work(generate, talkative):
    drawing = ("--temperature", "1.3", "--top-p", "0.9", "--seed", "5")
    one = generate(talkative, PROMPTS, *drawing, "--batch-size", "1", out="one.jsonl")[1]
    many = generate(talkative, PROMPTS, *drawing, "--batch-size", "16", out="many.jsonl")[1]
    assert one == many
    assert one != referee(talkative, PROMPTS)


def test_the_same_command_only_answers_what_is_new(generate, talkative):
    first = generate(talkative, PROMPTS[:4])[1]
    code, answers, screen = generate(talkative, PROMPTS)
    assert code == 0
    assert answers[:4] == first
    assert answers == referee(talkative, PROMPTS)
    assert "4 of them from before" in screen
    code, again, screen = generate(talkative, PROMPTS)
    assert (code, again) == (0, answers)
    assert "Reading" not in screen, "no weights are read for nothing"


def test_a_killed_command_goes_on_where_it_was(generate, talkative, tmp_path):
    prompts = [{"prompt": f"What is {number} plus one?"} for number in range(200)]
    out, source = tmp_path / "killed.jsonl", tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in prompts))
    words = ["generate", str(talkative), "--prompts", str(source), "--out", str(out)]
    words += ["--max-new-tokens", str(LONGEST), "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "automodel_core", *words], stderr=subprocess.DEVNULL
    )
    while not out.exists() or not out.stat().st_size:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = out.read_bytes().count(b"\n")
    assert 0 < done < len(prompts)
    assert main(words) == 0
    whole = generate(talkative, prompts, "--batch-size", "1", out="whole.jsonl")[1]
    assert [json.loads(line) for line in out.read_text().splitlines()] == whole


# What a run has made


LORA = {"dim": 4, "alpha": 64, "include_modules": ["*.q_proj", "*.v_proj"]}


@pytest.mark.parametrize(
    "name",
    mostly_slow(["lora", "rslora", "dora", "lora_plus", "pissa"], fast=["lora", "dora", "pissa"]),
)
def test_an_adapter_answers_as_in_peft(automodel, generate, talkative, tmp_path, name):
    run = automodel(
        {
            "model": {"pretrained_model_name_or_path": str(talkative)},
            "peft": {"_target_": name, **LORA},
            "optimizer": {"lr": 5e-2},
        }
    )
    assert run.code == 0, run.out
    expected = referee(talkative, PROMPTS, adapter=run.folder / "latest" / "model")
    assert expected != referee(talkative, PROMPTS), "it has learned something"
    code, answers, screen = generate(run.folder, out="run.jsonl")
    assert code == 0, screen
    assert answers == expected
    bare = shutil.copytree(run.folder / "latest" / "model", tmp_path / "adapter")
    code, answers, screen = generate(bare, out="bare.jsonl")
    assert code == 0, screen
    assert answers == expected


def test_each_way_to_name_a_checkpoint_means_its_model(automodel, generate, talkative, tmp_path):
    row = {"context": "", "question": "What is 1 plus one?", "answers": {"text": ["2"]}}
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(row) + "\n")
    run = automodel(
        {
            "model": {"pretrained_model_name_or_path": str(talkative)},
            "step_scheduler": {"max_steps": 4, "val_every_steps": 2},
            "validation_dataset": {"_target_": "squad", "dataset_name": str(held_out)},
            "checkpoint": {"save_every_steps": 2, "keep_best": "loss"},
            "optimizer": {"lr": 1e-2},
        }
    )
    assert run.code == 0, run.out
    early, late = (referee(run.folder / name / "model", PROMPTS) for name in run.checkpoints)
    assert early != late
    ways = {
        run.folder: late,
        run.folder / "latest": late,
        run.folder / "latest" / "model": late,
        run.folder / run.checkpoints[0]: early,
        run.folder / run.checkpoints[0] / "model": early,
    }
    for number, (way, expected) in enumerate(ways.items()):
        code, answers, screen = generate(way, out=f"{number}.jsonl")
        assert (code, answers) == (0, expected), screen
    best = (run.folder / "best").resolve()
    (run.folder / "best").unlink()
    (run.folder / "best").write_text(best.name + "\n")  # where links don't work
    assert find_model(str(run.folder / "best")).name == str(best / "model")


def test_a_run_answers_without_the_model_that_it_started_from(automodel, generate, tmp_path):
    start = tmp_path / "start"
    tiny_tokenizer(start)
    tiny_llama(start, initializer_range=0.4)
    run = automodel({"model": {"pretrained_model_name_or_path": str(start)}})
    expected = referee(run.folder / "latest" / "model", PROMPTS)
    shutil.rmtree(start)
    assert generate(run.folder)[1] == expected


def test_plugins_that_only_training_needs_may_be_gone(automodel, generate):
    run = automodel({})
    path = run.folder / "latest" / "config.yaml"
    path.write_text(path.read_text().replace("_target_: squad", "_target_: somebody_elses"))
    code, answers, screen = generate(run.folder)
    assert code == 0, screen
    assert len(answers) == len(PROMPTS)


def test_a_base_that_is_gone_is_told_at_its_line(automodel, generate, talkative, tmp_path):
    start = shutil.copytree(talkative, tmp_path / "start")
    run = automodel(
        {
            "model": {"pretrained_model_name_or_path": str(start)},
            "peft": {"_target_": "lora", **LORA},
        }
    )
    shutil.rmtree(start)
    code, _, screen = generate(run.folder)
    assert code == 2
    assert f"There is no folder {start}" in screen
    assert "config.yaml:" in screen


@pytest.mark.parametrize("what", ["nothing/here", "empty", "unsaved"])
def test_what_is_no_model_is_refused(automodel, generate, tmp_path, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsaved").mkdir()
    status = {"state": "died", "step": 1, "total_steps": 4, "command": "automodel run x.yaml"}
    (tmp_path / "unsaved" / "status.json").write_text(json.dumps(status))
    code, _, screen = generate(tmp_path / what)
    assert code == 2
    assert {"empty": "no config.json", "unsaved": "saved no checkpoint"}.get(what, what) in screen
