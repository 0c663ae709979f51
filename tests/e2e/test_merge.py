"""`automodel merge` and `automodel export` as a user types them, judged by plain transformers."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from automodel_core.cli import main
from automodel_core.export.finding import find_saved
from tests.variants import mostly_slow

LORA = {"_target_": "lora", "dim": 4, "alpha": 8}
TOUCHED = {
    "linears": {"include_modules": ["*.q_proj", "*.down_proj"]},
    "embeddings": {"include_modules": ["embed_tokens", "*.v_proj"]},
    "whole head": {"include_modules": ["*.q_proj"], "modules_to_save": ["lm_head", "model.norm"]},
}
NAMES = ["lora", "rslora", "dora", "lora_plus", "pissa"]
# Every variant and every place once.
FAST = [
    ("lora", "embeddings"),
    ("rslora", "whole head"),
    ("dora", "linears"),
    ("dora", "embeddings"),
    ("lora_plus", "linears"),
    ("pissa", "linears"),
]


@torch.no_grad()
def logits(model):
    return model.eval()(torch.arange(3, 43).reshape(2, 20)).logits


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def merged(automodel, tmp_path, capsys):
    """Train with adapters and merge; returns the Finished run, the folder and what was printed."""

    def run(peft: dict, *options: str, **changes):
        done = automodel({"peft": {**LORA, **peft}, "optimizer": {"lr": 1e-2}, **changes})
        assert done.code == 0, done.out
        out = tmp_path / "merged"
        code = main(["merge", str(done.folder), "--out", str(out), *options])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return done, out, printed.out

    return run


@pytest.mark.parametrize(("name", "touched"), mostly_slow(NAMES, TOUCHED, fast=FAST))
def test_a_merged_run_has_equal_logits_in_plain_transformers(merged, tiny_model, name, touched):
    done, out, printed = merged({"_target_": name, **TOUCHED[touched]})
    adapter = done.folder / "latest" / "model"
    unmerged = logits(PeftModel.from_pretrained(load(tiny_model), adapter))
    assert (unmerged - logits(load(tiny_model))).abs().max() > 1e-4, "the adapter has learned"
    assert (unmerged - logits(load(out))).abs().max() < 1e-5
    assert "same greedy token" in printed


def test_tied_embeddings_part_when_only_one_of_them_was_trained(merged):
    _, out, printed = merged(TOUCHED["embeddings"])
    model = load(out)
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert "embeddings were tied" in printed


def test_tied_embeddings_that_did_not_train_stay_tied(merged):
    _, out, _ = merged(TOUCHED["linears"])
    model = load(out)
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tokenizer_and_template_come_along(merged, tiny_model):
    _, out, _ = merged(TOUCHED["linears"])
    ours, base = (AutoTokenizer.from_pretrained(folder) for folder in (out, tiny_model))
    assert ours.get_vocab() == base.get_vocab()
    assert ours.chat_template == base.chat_template
    assert (out / "generation_config.json").is_file()


def test_the_comparison_uses_the_validation_data(merged, squad_folder):
    sets = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    _, _, printed = merged(TOUCHED["linears"], validation_dataset=sets)
    assert "after 8 prompts" in printed
    same, places = printed.split("same greedy token: ")[1].split(" places")[0].split(" of ")
    assert same == places
    largest = float(printed.split("difference of a logit: ")[1].split()[0])
    assert largest < 1e-5


def test_a_coarser_dtype_is_written_and_its_price_reported(merged):
    _, out, printed = merged(TOUCHED["whole head"], "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert float(printed.split("difference of a logit: ")[1].split()[0]) > 1e-5


def test_a_model_of_random_weights_is_drawn_again(merged, tiny_model):
    model = {"_target_": "causal_lm_from_config", "pretrained_model_name_or_path": None,
             "config": str(tiny_model)}  # fmt: skip
    done, out, printed = merged(TOUCHED["linears"], model=model, rng={"seed": 7})
    assert "loaded whole" in printed
    set_seed(7)
    drawn = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
    unmerged = logits(PeftModel.from_pretrained(drawn, done.folder / "latest" / "model"))
    assert (unmerged - logits(load(out))).abs().max() < 1e-5
    assert float(printed.split("difference of a logit: ")[1].split()[0]) < 1e-5
    assert [each.name for each in out.parent.iterdir() if each.name.startswith(".")] == []


def test_a_run_without_out_is_merged_beside_its_checkpoint(automodel, capsys):
    done = automodel({"peft": LORA, "optimizer": {"lr": 1e-2}})
    assert main(["merge", str(done.folder / "latest"), "--no-check"]) == 0
    assert load(done.folder / f"merged-{done.checkpoints[-1]}").config.vocab_size
    assert "greedy" not in capsys.readouterr().out
    assert main(["merge", str(done.folder), "--no-check"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_whole_model_is_exported_and_not_merged(automodel, tmp_path, capsys):
    done = automodel({})
    assert main(["merge", str(done.folder)]) == 2
    assert "automodel export" in capsys.readouterr().err
    out = tmp_path / "small"
    words = ["--dtype", "bfloat16", "--max-shard-size", "20KB"]
    assert main(["export", str(done.folder), "--out", str(out), *words]) == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    whole = load(done.folder / "latest" / "model")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(torch.bfloat16))
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(each.stat().st_size < 26_000 for each in shards)
    assert len(AutoTokenizer.from_pretrained(out)) > 0


def test_an_adapter_is_not_exported(automodel, tmp_path, capsys):
    done = automodel({"peft": LORA, "optimizer": {"lr": 1e-2}})
    assert main(["export", str(done.folder), "--out", str(tmp_path / "out")]) == 2
    assert "automodel merge" in capsys.readouterr().err


def test_a_run_is_named_by_its_folder_a_link_a_checkpoint_or_a_model_folder(automodel, capsys):
    done = automodel({"peft": LORA, "optimizer": {"lr": 1e-2}})
    newest = done.folder / done.checkpoints[-1]
    for name in (".", "latest", newest.name, "latest/model"):
        saved = find_saved(done.folder / name)
        assert (saved.folder, saved.checkpoint) == (newest / "model", newest)
    weights = newest / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    assert main(["merge", str(done.folder)]) == 2
    assert "adapter_model.safetensors has changed" in capsys.readouterr().err
