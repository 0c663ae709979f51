"""Layers compiled where they stand: the numbers of plain PyTorch, and no more code than needed.

`aot_eager` traces and differentiates as the real compiler does and writes no C++, which takes half
a minute; one test uses the real one.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from automodel_core.config.schema import Compile
from automodel_core.errors import UserError
from automodel_core.protocols import Sizes
from automodel_core.train.compiling import Compilation, Estimate, keep_cache, plan_compilation
from automodel_core.train.recompute import checkpoint_activations
from automodel_core.train.world import World
from automodel_distributed.nvfsdp import NvFSDPManager
from automodel_models.text import from_pretrained
from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from tests.plugins.distributed.training import Case, build_model

LENGTHS = [8, 16, 40, 24, 64, 8]
LORA = {"make": PeftConfig, "dim": 4, "dropout": 0.1, "include_modules": ["*.q_proj"]}


def trained(settings=None, recompute=None, adapter=None, family="Llama"):
    """Losses over batches of many lengths, and the model."""
    torch.manual_seed(0)
    model = build_model(Case(family=family, config={"num_hidden_layers": 2})).train()
    if adapter:
        arguments = dict(adapter)
        arguments.pop("make")(**arguments).apply(model)
    checkpoint_activations(model, recompute)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    compilation, losses = Compilation(settings), []
    torch.manual_seed(1)
    with compilation.layers_of(model, deterministic=False):
        for length in LENGTHS:
            ids = torch.randint(0, 90, (2, length), generator=torch.Generator().manual_seed(length))
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            compilation.step_done()
    return losses, model, compilation


@pytest.fixture(autouse=True)
def cache_of_our_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, 1),
        ({"adapter": LORA, "recompute": "full"}, 2),  # nothing before the first layer trains
        pytest.param(
            {"adapter": {"make": Dora, "dim": 4}, "recompute": "selective"},
            2,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "lora", "dora"],
)
def test_compiled_layers_train_as_plain_ones_at_two_graphs_for_all_lengths(options, graphs):
    """One graph for the first length, one for any other, whichever layer it is."""
    plain, model, _ = trained(**options)
    losses, compiled, cost = trained(Compile(backend="aot_eager"), **options)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert (cost.graphs, cost.recompiles) == (2 * graphs, graphs)
    assert cost.seconds > 0
    compiled(input_ids=torch.arange(33)[None])  # afterwards nothing is compiled any more
    assert cost.graphs == 2 * graphs


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"adapter": LORA, "recompute": "full"}])
def test_the_real_compiler_trains_as_plain_pytorch(options):
    plain, *_ = trained(**options)
    losses, *_ = trained(Compile(), **options)
    # Masks of dropout are a function of their seed, so they are the same.
    assert losses == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "Gemma3", "Phi3", "Mistral"])
def test_other_families_compile(family):
    plain, *_ = trained(family=family)
    losses, _, cost = trained(Compile(backend="aot_eager"), family=family)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert cost.graphs <= 4


def test_a_run_says_what_compiling_cost(automodel):
    changes = {"step_scheduler": {"max_steps": 2}, "checkpoint": {"enabled": False}}
    plain = automodel(changes, folder="plain")
    run = automodel({**changes, "compile": {"backend": "aot_eager"}}, folder="compiled")
    assert run.code == 0, run.out
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)
    assert " 1 graphs in " in run.out
    assert [step["recompiles"] for step in run.steps] == [0, 0]
    assert "compile" not in plain.out  # by default never on the CPU


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("always", 'can\'t be the text "always"'),
        ({"mode": "reduce-overhead"}, "default, max-autotune-no-cudagraphs"),
        ({"backend": "telepathy"}, "no backend telepathy"),
        ({"pad_to_multiple": 0}, "at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(automodel, written, says):
    run = automodel({"compile": written})
    assert run.code == 2
    assert says in run.out


def test_auto_compiles_what_repays_it():
    assert Estimate(step_seconds=0.15, steps=5000).repays
    assert not Estimate(step_seconds=0.15, steps=200).repays
    assert "auto is off. 200 steps" in Estimate(0.15, 200).note


@pytest.mark.slow
def test_what_is_compiled_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    """In a process of its own, since PyTorch chooses a folder when it is imported."""
    script = (
        "from automodel_core.train.compiling import keep_cache; keep_cache();"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "automodel" / "compiled")


def test_a_folder_that_the_user_chose_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    keep_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")


@pytest.mark.parametrize(
    ("world", "says"),
    [
        (World(sizes=Sizes(1, 1, 2, 1)), "cp_size"),
        (World(sizes=Sizes(1, 1, 1, 2)), "tp_size"),
        (World(manager=NvFSDPManager.__new__(NvFSDPManager)), "NvFSDPManager can't spread"),
    ],
)
def test_what_cannot_be_spread_is_refused(tiny_model, world, says):
    source = from_pretrained(str(tiny_model))
    config = SimpleNamespace(compile=True)
    with pytest.raises(UserError, match=says) as refused:
        plan_compilation(config, world, torch.device("cpu"), source, None, None)
    assert refused.value.path == ("compile",)
