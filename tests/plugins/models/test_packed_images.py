"""Packed rows of documents with images: what each of them learns apart, with the same gradients."""

import attrs
import pytest
import torch
from transformers import Gemma3Config, Gemma4Config, Gemma4TextConfig

from automodel_core.errors import UserError
from automodel_core.train.image_blocks import looks_elsewhere
from automodel_core.train.lengths import lengths_of
from automodel_core.train.packed_documents import OfRows
from automodel_core.train.packing import PackedDataset, check_collated, check_documents_apart
from automodel_core.train.packing_trial import check_images_apart
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
    assert lengths_of(packed, collate).tolist() == packed.lengths.tolist()  # of group_by_length
    assert packed.lengths.tolist() == [int(collate([row])["attention_mask"].sum()) for row in rows]
    apart = loss_and_gradients(model, loss, [collate([each]) for each in SAMPLES])
    together = loss_and_gradients(model, loss, [collate(rows)])
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert together[1] == apart[1] > 0
    assert together[2].keys() == apart[2].keys()
    for name, gradient in apart[2].items():
        off = (together[2][name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert off < 1e-5, (name, off)


def objective_of(model):
    precision = plan_precision(torch.float32, CPU)
    return Objective.of(model, model, MaskedCrossEntropy(), precision, CPU, World())


def test_documents_and_their_images_are_seen_to_stay_apart(family):
    model, collate = family
    check_documents_apart(objective_of(model), model)
    packed = PackedDataset.plan(SAMPLES, 10_000, seed=0, path=(), collate=collate)
    check_images_apart(objective_of(model), model, packed, collate.collate)


def test_a_model_that_confuses_the_images_of_documents_is_refused_by_name(family):
    """Told where documents begin by positions alone, as if its family weren't known; and one that
    fails at the images of two documents."""
    model, collate = family
    packed = PackedDataset.plan(SAMPLES, 10_000, seed=0, path=(), collate=collate)
    objective, name = objective_of(model), type(model).__name__

    def fails(inputs, labels, rows):
        if (labels[:, : labels.shape[1] // 2] == -100).all():
            raise ValueError("too many images")
        return objective.token_losses(inputs, labels, rows)

    broken = attrs.evolve(objective, token_losses=fails)
    with pytest.raises(UserError, match=f"(?s)packed row {name} can't .* too many images"):
        check_images_apart(broken, model, packed, collate.collate)
    if model.config.model_type in ("gemma3", "qwen2_5_vl"):
        unaware = attrs.evolve(objective, documents=lambda batch, put: {"attention_mask": None})
        with pytest.raises(UserError, match=name):
            check_images_apart(unaware, model, packed, collate.collate)


def test_gemma_4_is_known_by_its_configuration_and_gemma_3_has_masks():
    text = Gemma4TextConfig(use_bidirectional_attention="vision")
    assert looks_elsewhere(Gemma4Config(text_config=text))
    assert not looks_elsewhere(Gemma3Config())
