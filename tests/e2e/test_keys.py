"""Each key of the reference that training honours, and the effect that shows it."""

import functools
import json
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from transformers import AutoModelForCausalLM, AutoTokenizer

from automodel_core.train import loop
from automodel_core.train.rng import StatefulRNG


def weights(run, checkpoint=None):
    folder = run.folder / (checkpoint or "latest") / "model"
    return load_file(folder / "model.safetensors")


# step_scheduler


def test_step_scheduler_grad_acc_steps(automodel):
    one = automodel({"step_scheduler": {"max_steps": 1}})
    two = automodel(
        {
            "step_scheduler": {"max_steps": 1, "grad_acc_steps": 2},
            "dataloader": {"batch_size": 2},
        },
        folder="accumulated",
    )
    assert one.steps[0]["num_label_tokens"] == two.steps[0]["num_label_tokens"]
    assert one.losses == pytest.approx(two.losses, rel=1e-6)


def test_step_scheduler_global_batch_size(automodel):
    run = automodel({"step_scheduler": {"global_batch_size": 8}, "dataloader": {"batch_size": 2}})
    assert [step["epoch"] for step in run.steps] == [0, 0, 1, 1], "two groups of 8 samples"
    refused = automodel({"step_scheduler": {"global_batch_size": 6}}, folder="refused")
    assert refused.code == 2
    assert "global_batch_size is 6" in refused.out


def test_step_scheduler_max_steps(automodel):
    run = automodel({"step_scheduler": {"max_steps": 6}})
    assert [step["step"] for step in run.steps] == [1, 2, 3, 4, 5, 6]
    assert [step["epoch"] for step in run.steps] == [0, 0, 0, 0, 1, 1]


def test_step_scheduler_num_epochs(automodel):
    run = automodel({"step_scheduler": {"max_steps": None, "num_epochs": 2}})
    assert [step["epoch"] for step in run.steps] == [0] * 4 + [1] * 4


def test_neither_max_steps_nor_num_epochs_means_one_epoch(automodel):
    run = automodel({"step_scheduler": {"max_steps": None, "grad_acc_steps": 3}})
    assert len(run.steps) == 2, "16 samples: one group of 12 and a short one of 4"


def test_step_scheduler_ckpt_every_steps(automodel):
    run = automodel({"step_scheduler": {"ckpt_every_steps": 3}})
    assert run.checkpoints == ["epoch_0_step_3", "epoch_0_step_4"]


def test_step_scheduler_val_every_steps(automodel, squad_folder):
    validation = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    run = automodel({"validation_dataset": validation, "step_scheduler": {"val_every_steps": 3}})
    assert [row["step"] for row in run.validations] == [3, 4]


def test_validation_runs_at_each_checkpoint_when_val_every_steps_is_left_out(
    automodel, squad_folder
):
    validation = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    run = automodel({"validation_dataset": validation, "step_scheduler": {"ckpt_every_steps": 2}})
    assert [row["step"] for row in run.validations] == [2, 4]


# model


def test_model_pretrained_model_name_or_path(automodel, tiny_model):
    run = automodel({"step_scheduler": {"max_steps": 1}, "optimizer": {"lr": 0.0}})
    start, end = load_file(tiny_model / "model.safetensors"), weights(run)
    assert all(torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("asked", "saved"),
    [
        ("torch.bfloat16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("auto", torch.float32),
    ],
)
def test_model_torch_dtype(automodel, asked, saved):
    run = automodel({"step_scheduler": {"max_steps": 1}, "model": {"torch_dtype": asked}})
    assert {tensor.dtype for tensor in weights(run).values()} == {saved}


def test_float16_is_refused_on_the_cpu(automodel):
    run = automodel({"model": {"torch_dtype": "torch.float16"}})
    assert run.code == 2
    assert "float16 training needs a GPU" in run.out


def test_model_use_liger_kernel(automodel):
    """The package is for GPUs and isn't needed; where it can't work it is refused by name."""
    off = automodel({"step_scheduler": {"max_steps": 1}, "model": {"use_liger_kernel": False}})
    assert off.code == 0
    refused = automodel({"model": {"use_liger_kernel": True}}, folder="refused")
    assert refused.code == 2
    assert "use_liger_kernel" in refused.out


def test_model_use_sdpa_patching(automodel, monkeypatch):
    """While the run trains SDPA tries the kernels in that order, and as before afterwards."""
    seen, before = [], _cur_sdpa_kernel_backends(with_priority=True)
    step = loop.optimizer_step

    def watched(run, stop):
        seen.append(_cur_sdpa_kernel_backends(with_priority=True))
        return step(run, stop)

    monkeypatch.setattr(loop, "optimizer_step", watched)
    once = {"step_scheduler": {"max_steps": 1}}
    order = {"use_sdpa_patching": True, "sdpa_method": ["MATH", "flash_attention"]}
    assert automodel({**once, "model": order}, folder="ordered").code == 0
    assert automodel({**once, "model": {"use_sdpa_patching": False}}, folder="plain").code == 0
    assert seen == [[SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], before]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before
    refused = automodel({"model": {"sdpa_method": ["cudnn"]}}, folder="refused")
    assert refused.code == 2
    assert "sdpa_method" in refused.out


def test_model_attn_implementation(automodel):
    eager = automodel({"model": {"attn_implementation": "eager"}})
    assert eager.code == 0
    unknown = automodel({"model": {"attn_implementation": "telepathy"}}, folder="refused")
    assert unknown.code == 2
    assert "telepathy" in unknown.out


# dataset


def test_dataset_split(automodel):
    run = automodel({"dataset": {"split": "train[:4]"}, "step_scheduler": {"max_steps": 2}})
    assert [step["epoch"] for step in run.steps] == [0, 1]


def test_dataset_limit_dataset_samples(automodel):
    run = automodel({"dataset": {"limit_dataset_samples": 8}, "step_scheduler": {"max_steps": 3}})
    assert [step["epoch"] for step in run.steps] == [0, 0, 1]


@pytest.mark.parametrize(
    ("key", "tokens"), [({"split": "validation[:4]"}, 4), ({"limit_dataset_samples": 2}, 2)]
)
def test_validation_dataset(automodel, squad_folder, key, tokens):
    whole = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    counts = [
        automodel({"validation_dataset": data}, folder=folder).validations[-1]["num_label_tokens"]
        for folder, data in (("whole", whole), ("part", {**whole, **key}))
    ]
    assert 0 < counts[1] < counts[0]
    assert counts[1] * 8 == counts[0] * tokens, "every answer has two digits and an end"


def test_names_of_the_reference_mean_ours(automodel, squad_folder):
    ours = automodel({"loss_fn": "masked_ce"})
    package = "nemo_automodel"
    theirs = automodel(
        {
            "model": {"_target_": f"{package}.NeMoAutoModelForCausalLM.from_pretrained"},
            "dataset": {"_target_": f"{package}.components.datasets.llm.squad.make_squad_dataset"},
            "dataloader": {"collate_fn": f"{package}.components.datasets.utils.default_collater"},
            "loss_fn": {"_target_": f"{package}.components.loss.masked_ce.MaskedCrossEntropy"},
            "rng": {"_target_": f"{package}.components.training.rng.StatefulRNG"},
            "distributed": {"_target_": f"{package}.components.distributed.ddp.DDPManager"},
        },
        folder="theirs",
    )
    assert theirs.losses == ours.losses


# dataloader


def test_dataloader_batch_size(automodel):
    run = automodel({"dataloader": {"batch_size": 8}, "step_scheduler": {"max_steps": None}})
    assert len(run.steps) == 2


def test_dataloader_shuffle(automodel):
    in_order = automodel({"dataloader": {"shuffle": False}, "optimizer": {"lr": 0.0}})
    shuffled = automodel(
        {"dataloader": {"shuffle": True}, "optimizer": {"lr": 0.0}}, folder="shuffled"
    )
    assert in_order.losses != shuffled.losses
    whole = [sum(s["loss"] * s["num_label_tokens"] for s in r.steps) for r in (in_order, shuffled)]
    assert whole[0] == pytest.approx(whole[1], rel=1e-6), "the same samples, once each"


@pytest.mark.parametrize("workers", [1, 2])
def test_dataloader_num_workers(automodel, workers):
    alone = automodel({"dataloader": {"shuffle": True}})
    helped = automodel({"dataloader": {"shuffle": True, "num_workers": workers}}, folder="workers")
    assert helped.losses == alone.losses


def test_dataloader_collate_fn(automodel):
    collate = {"_target_": "default_collater", "padding_side": "left"}
    right = automodel({"step_scheduler": {"max_steps": 2}})
    left = automodel(
        {"dataloader": {"collate_fn": collate}, "step_scheduler": {"max_steps": 2}}, folder="left"
    )
    assert left.losses == pytest.approx(right.losses, rel=1e-5)


def test_dataloader_target_and_pin_memory(automodel):
    default = automodel()
    loader = {"_target_": "torchdata.stateful_dataloader.StatefulDataLoader", "pin_memory": True}
    named = automodel({"dataloader": loader}, folder="named")
    assert named.losses == default.losses


@pytest.fixture
def micro_batches(monkeypatch):
    """The size of every micro-batch that is padded, in order."""
    from automodel_datasets import collate

    original, sizes = collate.default_collater, []

    @functools.wraps(original)
    def counted(samples, *args, **kwargs):
        sizes.append(len(samples))
        return original(samples, *args, **kwargs)

    monkeypatch.setattr(collate, "default_collater", counted)
    return sizes


def test_validation_dataloader(automodel, squad_folder, micro_batches):
    validation = {"_target_": "squad", "dataset_name": str(squad_folder), "split": "validation"}
    short = {"validation_dataset": validation, "step_scheduler": {"max_steps": 1}}
    inherited = automodel(short)
    assert micro_batches == [16, 4, 4, 4], "a look at all, one to train and all 8 to validate"
    micro_batches.clear()
    loader = {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "batch_size": 8,
        "collate_fn": {"_target_": "default_collater", "padding_side": "left"},
    }
    own = automodel({**short, "validation_dataloader": loader}, folder="own")
    assert micro_batches == [16, 4, 8]
    assert own.validations[0]["loss"] == pytest.approx(inherited.validations[0]["loss"], rel=1e-5)


# optimizer, lr_scheduler, loss_fn


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("torch.optim.Adam", 1e-3),
        ("torch.optim.AdamW", 1e-3),
        ("torch.optim.SGD", 0.1),
        ("triton_adamw", 1e-3),
    ],
)
def test_optimizer_target(automodel, name, lr):
    run = automodel({"optimizer": {"_target_": name, "lr": lr}})
    assert run.code == 0, run.out
    assert run.losses[-1] < run.losses[0]


def test_optimizer_lr_and_lr_scheduler(automodel):
    run = automodel(
        {
            "optimizer": {"lr": 1e-3},
            "lr_scheduler": {"lr_decay_style": "cosine", "min_lr": 1e-4, "warmup_steps": 2},
        }
    )
    assert [s["lr"] for s in run.steps] == pytest.approx([5e-4, 1e-3, 1e-3, 5.5e-4])


@pytest.mark.parametrize("key", [{"weight_decay": 0.5}, {"betas": [0.5, 0.5]}, {"eps": 1e-2}])
def test_optimizer_weight_decay_betas_eps(automodel, key):
    plain = automodel()
    changed = automodel({"optimizer": key}, folder="changed")
    assert changed.code == 0, changed.out
    assert changed.losses[0] == plain.losses[0]
    assert changed.losses[1:] != plain.losses[1:]


def test_betas_on_sgd_is_refused_before_the_run(automodel):
    run = automodel({"optimizer": {"_target_": "torch.optim.SGD", "betas": [0.9, 0.95]}})
    assert run.code == 2
    assert "betas" in run.out
    assert not run.folder.exists()


@pytest.mark.parametrize("loss", ["masked_ce", "chunked_ce", "fused_linear_ce"])
def test_loss_fn_target(automodel, loss):
    default = automodel()
    named = automodel({"loss_fn": {"_target_": loss}}, folder="other")
    assert named.losses == pytest.approx(default.losses, rel=1e-5)


def test_clip_grad_norm(automodel):
    tight = automodel({"clip_grad_norm": 1e-3, "optimizer": {"_target_": "sgd", "lr": 1.0}})
    start, end = tight.steps[0]["grad_norm"], tight.steps[-1]["grad_norm"]
    assert start == pytest.approx(end, rel=0.2), "steps of length 1e-3 hardly move the model"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clip_grad_norm_is_the_same_in_a_fused_update(automodel, name):
    section = {"_target_": name, "lr": 0.1 if name == "sgd" else 1e-3}
    plain = automodel({"clip_grad_norm": 0.1, "optimizer": section})
    fused = automodel({"clip_grad_norm": 0.1, "optimizer": {**section, "fused": True}}, folder="f")
    assert fused.losses == pytest.approx(plain.losses, rel=1e-5)
    norms = [[step["grad_norm"] for step in run.steps] for run in (plain, fused)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert min(norms[0]) > 0.1, "all steps are clipped"


# distributed, dist_env, rng


def test_distributed_with_every_size_one_is_plain_one_process(automodel):
    plain = automodel()
    sizes = {"dp_size": "none", "dp_replicate_size": 1, "tp_size": 1, "cp_size": 1}
    one = automodel({"distributed": {"_target_": "fsdp2", **sizes}}, folder="fsdp2")
    assert one.losses == plain.losses


@pytest.mark.parametrize("key", ["tp_size", "cp_size", "dp_size", "dp_replicate_size"])
def test_distributed_sizes_above_one_are_refused_by_name(automodel, key):
    run = automodel({"distributed": {"_target_": "fsdp2", key: 2}})
    assert run.code == 2
    assert key in run.out


def test_rng_seed(automodel):
    runs = [
        automodel({"rng": {"seed": seed}, "dataloader": {"shuffle": True}}, folder=f"run{number}")
        for number, seed in enumerate((1, 1, 2))
    ]
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses != runs[2].losses


def test_rng_ranked():
    drawn = {}
    for ranked in (True, False):
        for rank in (0, 1):
            StatefulRNG(seed=1, ranked=ranked, rank=rank)
            drawn[ranked, rank] = torch.rand(3)
    assert torch.equal(drawn[True, 0], drawn[False, 0])
    assert not torch.equal(drawn[True, 0], drawn[True, 1])
    assert torch.equal(drawn[False, 0], drawn[False, 1])


def test_dist_env_in_one_process_says_that_it_waits(automodel):
    run = automodel({"dist_env": {"backend": "gloo", "timeout_minutes": 1}})
    assert run.code == 0
    assert "dist_env.backend gloo waits" in run.out


# checkpoint


def test_checkpoint_checkpoint_dir(automodel, tmp_path):
    run = automodel({"checkpoint": {"checkpoint_dir": str(tmp_path / "deep" / "elsewhere")}})
    assert run.code == 0
    assert not run.folder.exists()
    assert (tmp_path / "deep" / "elsewhere" / "epoch_0_step_4" / "model").is_dir()
    assert (tmp_path / "deep" / "elsewhere" / "training.jsonl").exists()


def test_checkpoint_enabled(automodel):
    run = automodel({"checkpoint": {"enabled": False}})
    assert run.code == 0
    assert run.checkpoints == []
    assert len(run.steps) == 4


def test_checkpoint_save_every_steps(automodel):
    run = automodel({"checkpoint": {"save_every_steps": 2}})
    assert run.checkpoints == ["epoch_0_step_2", "epoch_0_step_4"]


@pytest.mark.parametrize("save_format", ["safetensors", "torch_save"])
def test_checkpoint_model_save_format(automodel, save_format, tiny_model):
    run = automodel({"checkpoint": {"model_save_format": save_format}})
    folder = run.folder / "latest" / "model"
    names = {path.name for path in folder.iterdir()}
    assert ("model.safetensors" in names) == (save_format == "safetensors")
    assert ("pytorch_model.bin" in names) == (save_format == "torch_save")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    ids = tokenizer("What is 3 plus one?", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()


def test_the_training_log_has_one_object_per_step_with_the_promised_fields(automodel):
    run = automodel()
    promised = {"step", "epoch", "loss", "grad_norm", "lr", "num_label_tokens", "tps"}
    promised |= {"memory_gib", "seconds"}
    assert all(promised <= set(step) for step in run.steps)
    manifest = json.loads((run.folder / "latest" / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == version("torch")


def test_freeze_config(automodel, tiny_model):
    """The tiny model's output embeddings are its embeddings."""
    run = automodel({"freeze_config": {"freeze_embeddings": True}})
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(run.folder / "latest" / "model" / "model.safetensors")
    same = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert same == {"model.embed_tokens.weight"}
    assert "Frozen: embeddings (model.embed_tokens)" in run.out
    resumed = automodel(
        {"freeze_config": {"freeze_embeddings": True}, "step_scheduler": {"max_steps": 6}}
    )
    assert resumed.code == 0, resumed.out


def test_freeze_config_of_what_the_model_lacks_is_refused_at_its_line(automodel):
    run = automodel({"freeze_config": {"freeze_vision_tower": True}})
    assert run.code == 2
    assert "no vision tower" in run.out
    assert "freeze_vision_tower" in run.out


def test_dataloader_group_by_length(automodel):
    """Every sample once in an epoch, and less padding; resumed, the same order."""
    epoch = {"step_scheduler": {"num_epochs": 1, "max_steps": None}}
    loader = {"batch_size": 2, "shuffle": True}
    plain = automodel({**epoch, "dataloader": loader}, folder="plain")
    grouped = {**epoch, "dataloader": {**loader, "group_by_length": True}}
    run = automodel(grouped, folder="grouped")
    assert sum(s["num_tokens"] for s in run.steps) == sum(s["num_tokens"] for s in plain.steps)
    lengths = [step["num_tokens"] for step in run.steps]
    assert lengths != [step["num_tokens"] for step in plain.steps]
    stopped = {**grouped, "step_scheduler": {"max_steps": 3}}
    automodel(stopped, folder="parts")
    rest = automodel({**grouped, "step_scheduler": {"max_steps": 8}}, folder="parts")
    assert rest.losses == run.losses
