"""Tiny tokenizers and models for tests, made offline in a moment in the format of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 384
SENTENCES = (
    "The sum of 12 and one is 13. What is 12 plus one?",
    "Context: the river runs through the old town. Question: where does the river run? Answer:",
    "The capital of the country is a city by the sea, and its currency is the crown.",
    "A user asks a question about the context, and the assistant answers it in a few words.",
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_bpe(special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE of a few sentences, at most VOCABULARY tokens; it spells any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return bpe


def tiny_tokenizer(folder: Path | str, chat: bool = True) -> PreTrainedTokenizerFast:
    """Save a tokenizer to `folder`: with a ChatML template, or as a base model's without one.

    It has no pad token, as many real ones.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        chat_template=CHATML if chat else None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_llama(folder: Path | str, seed: int = 0, **config: object) -> LlamaForCausalLM:
    """Save a Llama of 30,880 random parameters; `config` changes its LlamaConfig."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
    model.save_pretrained(folder)
    return model
