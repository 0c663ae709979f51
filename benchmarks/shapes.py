"""Write models without weights and YAML files for `automodel bench`, in shapes that people tune.

    python benchmarks/shapes.py FOLDER
    automodel bench FOLDER/1b-full.yaml --steps 20 --json

With `--weights` a model is drawn on the GPU, stored, and read from there: drawing it on the CPU,
as runs do so that a seed means the same weights everywhere, takes minutes for 8b.

1b and 8b have the shapes of Llama 3.2 1B and Llama 3.1 8B; tiny is for a laptop. Weights are random
and bfloat16, tokens are random, 30% of them aren't learned; a step takes 8,192 tokens for 1b and
4,096 for 8b.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ruamel.yaml import YAML
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
           "tie_word_embeddings": True, "head_dim": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
BATCH = {"tiny": 2, "1b": 2, "8b": 1}
LORA = {
    "_target_": "lora",
    "dim": 8,
    "alpha": 16,
    "include_modules": ["*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj"],
}
# The kinds of tuning, and what they add to a file.
KINDS = {
    "full": {},
    "lora": {"peft": LORA},
    "packed": {"packed_sequence": {"packed_sequence_size": 4096}},
}


def store(config: LlamaConfig, model: Path) -> None:
    """Random weights, drawn where that is quick."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(model)


def write(folder: Path, shape: str, length: int, weights: bool) -> None:
    """A model's folder and one YAML file for each kind."""
    model = folder / shape
    llama = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, bos_token_id=0, eos_token_id=1
    )
    llama.save_pretrained(model)
    if weights:
        store(llama, model)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    ).save_pretrained(model)
    for kind, changes in KINDS.items():
        varied = (
            {"length": length, "shortest": length // 16} if kind == "packed" else {"length": length}
        )
        config = {
            "model": {
                "_target_": "causal_lm" if weights else "causal_lm_from_config",
                "pretrained_model_name_or_path" if weights else "config": str(model),
                "torch_dtype": "bfloat16",
            },
            "dataset": {"_target_": "mock", **varied},
            "dataloader": {"batch_size": BATCH[shape], "num_workers": 2, "shuffle": True},
            "step_scheduler": {"max_steps": 2000},
            "optimizer": {"_target_": "adamw", "lr": 1e-5},
            **changes,
        }
        with (folder / f"{shape}-{kind}.yaml").open("w") as file:
            YAML(typ="safe").dump(config, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--weights", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for each in asked.shape:
        write(asked.folder, each, asked.length, asked.weights)
