"""Packed rows of documents with images: what each of them learns apart, with the same gradients."""

import pytest
import torch

from automodel_core.train.packed_documents import OfRows
from automodel_core.train.packing import PackedDataset, check_collated, check_documents_apart
from automodel_core.train.precision import plan_precision
from automodel_core.train.step import Objective
from automodel_core.train.world import World
from automodel_datasets.image_collate import image_text_collater
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy
from automodel_models.image_text import from_config
from tests.vision import CONFIGURATIONS, picture, said, tiny_configuration

CPU = torch.device("cpu")


def sample(number, images, answer):
    parts = [*[None] * images, f"What is {number} plus one?"]
    pictures = [picture(number + i, (60, 40) if i % 2 else (40, 60)) for i in range(images)]
    messages = [said("user", *parts), said("assistant", answer)]
    return {"messages": messages, "images": pictures, "place": f"a:{number}"}


SAMPLES = [
    sample(1, 1, "The sum is 13."),
    sample(2, 2, "A city by the sea."),
    sample(3, 0, "The old town, where the river runs."),
    sample(4, 1, "13"),
    sample(5, 2, "The river."),
]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def family(request, tmp_path_factory):
    """A tiny model and its collator."""
    folder = tmp_path_factory.mktemp(request.param)
    processor = tiny_configuration(request.param, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = from_config(str(folder)).load_model(torch.float32, CPU)
    return model, OfRows(lambda samples: image_text_collater(samples, processor))


def loss_and_gradients(model, loss, batches):
    """Over all batches, and how many tokens they learn."""
    objective = Objective.of(
        model, model, loss, plan_precision(torch.float32, CPU), CPU, World(), multiple=8
    )
    model.zero_grad()
    total = learned = 0
    for batch in batches:
        ready = objective.prepare(batch)
        found = objective.loss_sum(ready)
        found.backward()
        total, learned = total + found.item(), learned + ready.label_tokens
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total, learned, gradients


@pytest.mark.parametrize("loss", [MaskedCrossEntropy(), ChunkedCrossEntropy()])
def test_packed_documents_learn_what_they_learn_apart(family, loss):
    model, collate = family
    packed = PackedDataset.plan(SAMPLES, 200, seed=0, path=(), collate=collate)
    assert len(packed) < len(SAMPLES)
    check_collated(packed, collate, ())
    rows = [packed[index] for index in range(len(packed))]
    assert packed.lengths.tolist() == [int(collate([row])["attention_mask"].sum()) for row in rows]
    apart = loss_and_gradients(model, loss, [collate([each]) for each in SAMPLES])
    together = loss_and_gradients(model, loss, [collate(rows)])
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert together[1] == apart[1] > 0
    assert together[2].keys() == apart[2].keys()
    for name, gradient in apart[2].items():
        off = (together[2][name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert off < 1e-5, (name, off)


def test_documents_are_seen_to_stay_apart(family):
    model, _ = family
    precision = plan_precision(torch.float32, CPU)
    check_documents_apart(
        Objective.of(model, model, MaskedCrossEntropy(), precision, CPU, World()), model
    )
