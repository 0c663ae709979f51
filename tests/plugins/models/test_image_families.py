"""Six families of models that see: drawn, trained a step, saved, opened in plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from automodel_core.protocols import Batch
from automodel_core.train.precision import plan_precision
from automodel_core.train.state import save_model, staged_weights
from automodel_core.train.step import Objective
from automodel_core.train.world import World
from automodel_datasets.image_collate import image_text_collater
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy
from automodel_models.image_text import from_config, from_pretrained
from tests.vision import CONFIGURATIONS, picture, said, tiny_configuration

CPU = torch.device("cpu")
SAMPLES = [
    {
        "messages": [said("user", None, "What is 12?"), said("assistant", "The sum.")],
        "images": [picture(1)],
        "place": "a:1",
    },
    {
        "messages": [
            said("user", None, None, "Which town?"),
            said("assistant", "The old town, where the river runs."),
        ],
        "images": [picture(2), picture(3, (40, 60))],
        "place": "a:2",
    },
]


@attrs.frozen
class Trained:
    """A family's model after one step and where it was saved.

    Attributes:
        losses: The mean token loss before that step, by the name of the loss.
        theirs: The same by transformers' own loss of the unbroken model.
        changed: The parameters that the step changed.
    """

    folder: Path
    model: PreTrainedModel
    processor: ProcessorMixin
    batch: Batch
    losses: dict[str, float]
    theirs: float
    changed: set[str]


def objective(model: PreTrainedModel, loss: Any) -> Objective:
    return Objective.of(model, model, loss, plan_precision(torch.float32, CPU), CPU, World())


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def trained(request, tmp_path_factory) -> Trained:
    origin = tmp_path_factory.mktemp(request.param)
    tiny_configuration(request.param, origin)
    source = from_config(str(origin))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = source.load_model(torch.float32, CPU).train()
    processor = source.load_processor()
    batch = image_text_collater(SAMPLES, processor)
    parts = {"masked": MaskedCrossEntropy(), "chunked": ChunkedCrossEntropy()}
    losses = {}
    for name, loss in parts.items():
        whole = objective(model, loss)
        micro_batch = whole.prepare(batch)
        losses[name] = whole.loss_sum(micro_batch) / micro_batch.label_tokens
    plain = {name: value for name, value in batch.items() if name != "position_ids"}
    with torch.no_grad():
        theirs = model(**plain, num_items_in_batch=micro_batch.label_tokens).loss.item()
    losses["chunked"].backward()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    folder = origin / "saved"
    save_model(folder, model, staged_weights(model), processor, "safetensors")
    return Trained(
        folder, model.eval(), processor, batch,
        {name: loss.item() for name, loss in losses.items()}, theirs, changed,
    )  # fmt: skip


def inputs(trained: Trained, **changes: Any) -> dict[str, Any]:
    left_out = {"labels", "position_ids"}
    return {n: value for n, value in trained.batch.items() if n not in left_out} | changes


def test_the_loss_is_transformers_own_from_logits_and_from_hidden_states(trained):
    for loss in trained.losses.values():
        assert loss == pytest.approx(trained.theirs, rel=1e-5)


def test_a_step_changes_language_model_tower_and_projector(trained):
    for part in ("language_model|text_model", "vision|visual", "projector|connector|merger"):
        assert any(word in name for name in trained.changed for word in part.split("|")), part


@torch.no_grad()
def test_plain_transformers_opens_what_is_saved_with_equal_logits(trained):
    plain = AutoModelForImageTextToText.from_pretrained(trained.folder).eval()
    theirs = plain(**inputs(trained)).logits
    torch.testing.assert_close(theirs, trained.model(**inputs(trained)).logits, rtol=0, atol=0)
    other = inputs(trained, pixel_values=-trained.batch["pixel_values"])
    assert not torch.allclose(theirs, plain(**other).logits), "images count"


def test_its_processor_is_saved_with_it(trained):
    source = from_pretrained(str(trained.folder))
    processor = source.load_processor()
    assert type(processor) is type(trained.processor)
    again = image_text_collater(SAMPLES, processor)
    for name, value in trained.batch.items():
        torch.testing.assert_close(again[name], value)
