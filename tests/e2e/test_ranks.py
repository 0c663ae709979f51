"""The same YAML on several processes of a real torchrun: what one process does, and no rank's sums
twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import Finished

# Six samples a step: uneven shares on four ranks, and other numbers of supervised tokens on each.
CHANGES = {
    "dataloader": {"batch_size": 1, "shuffle": True},
    "step_scheduler": {"max_steps": 10, "global_batch_size": 4},
    "rng": {"ranked": True},
    "deterministic": True,
}
FSDP, DDP = {"_target_": "fsdp2"}, {"_target_": "ddp"}
TWO = {
    "ddp": DDP,
    "fsdp2": FSDP,
    "tp": {**FSDP, "tp_size": 2},
    "tp+sp": {**FSDP, "tp_size": 2, "sequence_parallel": True},
    "cp": {**FSDP, "cp_size": 2},
}
FOUR = {
    "ddp": DDP,
    "fsdp2": FSDP,
    "hsdp": {**FSDP, "dp_replicate_size": 2},
    "tp x fsdp": {**FSDP, "tp_size": 2},
    "tp+sp x fsdp": {**FSDP, "tp_size": 2, "sequence_parallel": True},
    "cp x fsdp": {**FSDP, "cp_size": 2},
    "cp x tp+sp": {**FSDP, "cp_size": 2, "tp_size": 2, "sequence_parallel": True},
}
KINDS = {
    "full": {},
    "chunked loss": {"loss_fn": {"_target_": "chunked_ce"}},
    "lora": {"peft": {"_target_": "lora", "dim": 4}},
    "packed": {"packed_sequence": {"packed_sequence_size": 160}},
    "checkpointing": {"activation_checkpointing": "full"},
    "compile": {"compile": {"enabled": True, "backend": "aot_eager"}},
}
# What a refusal says.
PACKED_ROWS = "cp_size: 1, or leave packed_sequence out"
COMPILED = "Layers or sequences that ranks share (tp_size, cp_size) can't be compiled yet."


def refusal(layout: dict, kind: str) -> str | None:
    """What a layout says to a kind of run that it can't do; None if it can."""
    if kind == "packed" and layout.get("cp_size", 1) > 1:
        return PACKED_ROWS
    if kind == "compile" and max(layout.get("tp_size", 1), layout.get("cp_size", 1)) > 1:
        return COMPILED
    return None


def pairs(layouts: dict[str, dict], *, refused: bool) -> list[tuple[str, str]]:
    """Layouts and kinds of run that go together, or those that don't."""
    return [
        (layout, kind)
        for layout in layouts
        for kind in KINDS
        if (refusal(layouts[layout], kind) is not None) == refused
    ]


@pytest.fixture
def torchrun(tmp_path, config_file):
    """Run the base configuration on several processes; returns a Finished."""

    def run(processes: int, changes: dict, *arguments: str, folder: str = "run") -> Finished:
        place = tmp_path / folder
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "automodel_core", "run"]
        done = subprocess.run(
            [*command, config_file(changes, place), *arguments],
            capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        return Finished(done.returncode, place, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="session")
def memory():
    return {}


@pytest.fixture
def alone(automodel, squad_folder, memory, tmp_path_factory):
    """What one process makes of a kind of run; each kind is run once."""

    def run(kind: str) -> tuple[dict, Finished]:
        section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
        changes = {**CHANGES, **KINDS[kind], "validation_dataset": section}
        if kind not in memory:
            folder = tmp_path_factory.mktemp("alone") / "run"
            memory[kind] = automodel(changes, folder=str(folder))
            assert memory[kind].code == 0, memory[kind].out
        return changes, memory[kind]

    return run


def assert_follows(found: Finished, expected: Finished) -> None:
    assert found.code == 0, found.out
    for name in ("loss", "grad_norm"):
        mine = [step[name] for step in found.steps]
        assert mine == pytest.approx([step[name] for step in expected.steps], rel=1e-5), name
    counts = ("step", "epoch", "num_label_tokens", "num_tokens", "lr")
    assert [[s[x] for x in counts] for s in found.steps] == [
        [s[x] for x in counts] for s in expected.steps
    ]
    assert [v["loss"] for v in found.validations] == pytest.approx(
        [v["loss"] for v in expected.validations], rel=1e-5
    )


def weights(folder: Path) -> dict:
    """What a checkpoint's model folder holds, read as its users do."""
    if (folder / "adapter_model.safetensors").exists():
        return load_file(folder / "adapter_model.safetensors")
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(found: Finished, expected: Finished) -> None:
    left, right = (weights(run.folder / "latest" / "model") for run in (found, expected))
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        difference = (left[name] - tensor).abs().max() / tensor.abs().max()
        assert difference < 1e-3, name


# The pairs of the default suite; the others take too long for it.
# `test_launching.py` launches the default, ddp. Packed rows have larger gradients in the norms,
# whose shares sequence parallelism leaves to be summed.
FAST = [("fsdp2", "lora"), ("tp+sp", "packed")]
PAIRS = [
    pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow)
    for pair in pairs(TWO, refused=False)
]


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_two_processes_follow_one(torchrun, alone, layout, kind):
    changes, expected = alone(kind)
    found = torchrun(2, {**changes, "distributed": TWO[layout]})
    assert_follows(found, expected)
    assert_same_weights(found, expected)
    if (layout, kind) == ("fsdp2", "lora"):
        assert found.out.count("Every rank loads its own part of the model.") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "read"),
    [
        ("lora", "Every rank loads its own part of the model."),
        ("lora_plus", "Every rank loads its own part"),
        ("dora", "Every rank loads the whole model first"),
        ("pissa", "Every rank loads the whole model first"),
    ],
)
def test_adapters_that_do_not_start_from_the_weights_let_ranks_read_their_parts(
    torchrun, automodel, variant, read
):
    changes = {**CHANGES, "peft": {"_target_": variant, "dim": 4}}
    one = automodel(changes, folder="one")
    two = torchrun(2, {**changes, "distributed": FSDP}, folder="two")
    assert one.code == two.code == 0, two.out
    assert two.out.count(read) == 1
    assert "Every rank" not in one.out
    assert two.losses == pytest.approx(one.losses, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rslora", "lora_plus"])
def test_variants_of_lora_are_cut_with_their_layers(torchrun, automodel, variant):
    changes = {**CHANGES, "peft": {"_target_": variant, "dim": 4}}
    one, two = (
        automodel(changes, folder="one"),
        torchrun(2, {**changes, "distributed": TWO["tp+sp"]}, folder="two"),
    )
    assert one.code == two.code == 0, two.out
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert_same_weights(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fsdp2", "ddp"])
def test_frozen_parts_stay_as_they_are_and_the_rest_follows_one_process(
    torchrun, automodel, squad_folder, layout
):
    section = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    frozen = {"freeze_config": {"freeze_embeddings": True}}
    changes = {**CHANGES, **frozen, "validation_dataset": section}
    expected = automodel(changes, folder="alone")
    found = torchrun(2, {**changes, "distributed": TWO[layout]})
    assert_follows(found, expected)
    assert_same_weights(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "pissa"])
def test_adapters_that_cannot_be_cut_are_refused_by_name(torchrun, variant):
    found = torchrun(2, {"peft": {"_target_": variant, "dim": 4}, "distributed": TWO["tp"]})
    assert found.code != 0
    assert "The adapter on model.layers.0" in found.out
    assert "or write tp_size: 1" in found.out
    assert found.checkpoints == []


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), pairs(FOUR, refused=False))
def test_four_processes_follow_one(torchrun, alone, layout, kind):
    changes, expected = alone(kind)
    found = torchrun(4, {**changes, "distributed": FOUR[layout]})
    assert_follows(found, expected)
    assert_same_weights(found, expected)


def assert_refused(found: Finished, reason: str) -> None:
    assert found.code != 0
    assert reason in " ".join(found.out.split())
    assert found.checkpoints == []


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), pairs(TWO, refused=True))
def test_two_processes_are_refused(torchrun, layout, kind):
    found = torchrun(2, {**CHANGES, **KINDS[kind], "distributed": TWO[layout]})
    assert_refused(found, refusal(TWO[layout], kind))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), pairs(FOUR, refused=True))
def test_four_processes_are_refused(torchrun, layout, kind):
    found = torchrun(4, {**CHANGES, **KINDS[kind], "distributed": FOUR[layout]})
    assert_refused(found, refusal(FOUR[layout], kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_saved_on_four_it_goes_on_on_two_on_one_and_under_ddp(torchrun, automodel, alone, kind):
    changes, expected = alone(kind)
    part = {**changes, "step_scheduler": {**CHANGES["step_scheduler"], "max_steps": 3}}
    begun = torchrun(4, {**part, "distributed": FOUR["tp x fsdp"]})
    assert begun.code == 0, begun.out
    for steps, processes, layout in ((5, 2, FSDP), (7, 1, None), (10, 2, DDP)):
        longer = {**changes, "step_scheduler": {**CHANGES["step_scheduler"], "max_steps": steps}}
        if processes == 1:
            found = automodel(longer)
        else:
            found = torchrun(processes, {**longer, "distributed": layout})
        assert found.code == 0, found.out
    assert [step["step"] for step in found.steps] == list(range(1, 11))
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["foreach", "fused"])
def test_optimizers_that_update_many_tensors_at_once(torchrun, alone, how):
    changes, expected = alone("full")
    optimizer = {"optimizer": {how: True}}
    assert_follows(
        torchrun(4, {**changes, **optimizer, "distributed": FOUR["tp x fsdp"]}), expected
    )


@pytest.mark.slow
def test_updates_that_bfloat16_rounds_away_are_measured_on_sharded_weights(torchrun):
    small = {"model": {"torch_dtype": "bfloat16"}, "optimizer": {"lr": 1e-6}}
    found = torchrun(2, {**small, "distributed": FSDP})
    assert found.code == 0, found.out
    assert found.out.count("guard lost_updates") == 1


@pytest.mark.slow
def test_weights_that_are_drawn_are_those_of_one_process(torchrun, automodel, tiny_model):
    model = {"_target_": "causal_lm_from_config", "config": str(tiny_model)}
    drawn = {**CHANGES, "model": {**model, "pretrained_model_name_or_path": None}}
    one, two = automodel(drawn, folder="one"), torchrun(2, {**drawn, "distributed": FSDP})
    assert one.code == two.code == 0, two.out
    assert two.losses == pytest.approx(one.losses, rel=1e-5)


@pytest.mark.slow
def test_a_rank_without_a_sample_of_a_step_keeps_the_others_company(torchrun, automodel):
    five = {"dataset": {"limit_dataset_samples": 5}, "step_scheduler": {"num_epochs": 2}}
    one = automodel({**five, "dataloader": {"batch_size": 4}}, folder="one")
    two = torchrun(2, {**five, "dataloader": {"batch_size": 2}}, folder="two")
    assert two.code == 0, two.out
    assert two.losses == pytest.approx(one.losses, rel=1e-5)


@pytest.mark.slow
def test_sizes_that_do_not_multiply_to_the_world_are_refused(torchrun):
    found = torchrun(2, {"distributed": {"_target_": "fsdp2", "tp_size": 3}})
    assert found.code != 0
    assert "tp_size 3 x cp_size 1 = 3 ranks, which don't divide the 2 processes" in found.out
    assert found.checkpoints == []
