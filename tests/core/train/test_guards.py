import json
import math

import attrs
import pytest
import torch

from automodel_core.config.schema import GuardSettings
from automodel_core.errors import GuardStop
from automodel_core.train.guards import Guards, LostUpdates, SpikeDetector, check_trainable
from automodel_core.train.metrics import StepMetrics
from automodel_core.train.order import Layout

METRICS = StepMetrics(1, 0, 2.0, 1.0, 1e-3, 10, 20, 0.9, 100.0, 0.1, 0.1, 0.0, 0)


def guards(warnings=None, optimizer=None, *, batch_is_chosen=False, **settings):
    optimizer = optimizer or adamw(torch.nn.Linear(2, 2))
    warn = (warnings if warnings is not None else []).append
    lost = LostUpdates.of(optimizer)
    return Guards(GuardSettings(**settings), warn, lost, batch_is_chosen=batch_is_chosen)


def adamw(model, lr=1e-3):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def test_a_frozen_model_is_nothing_trainable():
    with pytest.raises(GuardStop) as caught:
        check_trainable(torch.nn.Linear(2, 2).requires_grad_(False))
    assert caught.value.guard == "nothing_trainable"


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_or_gradient_stops_unless_switched_off(field, value):
    bad = attrs.evolve(METRICS, **{field: value})
    with pytest.raises(GuardStop) as caught:
        guards().after_step(bad, [3, 1])
    assert caught.value.guard == "non_finite"
    assert "Its samples: 3, 1." in caught.value.message
    guards(non_finite="off").after_step(bad, [3, 1])


NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_skip_leaves_weights_and_optimizer_alone_and_goes_on(fused, norm):
    warnings = []
    watch = guards(warnings, non_finite="skip")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused)
    weight.grad = torch.full((3,), norm)
    watch.take_step(1, torch.tensor(norm), optimizer, NO_SCALER)
    watch.after_step(attrs.evolve(METRICS, loss=math.nan), [7])
    assert torch.equal(weight.detach(), torch.ones(3))
    assert "The step is skipped" in warnings[0]
    weight.grad = torch.ones(3)
    watch.take_step(2, torch.tensor(1.0), optimizer, NO_SCALER)
    assert (weight < 0.95).all()
    twin = torch.nn.Parameter(torch.ones(3))
    only = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.1, fused=fused)
    twin.grad = torch.ones(3)
    only.step()
    assert torch.equal(weight, twin), "as if the first step had never been"


def test_a_step_without_supervision_stops_unless_switched_off():
    with pytest.raises(GuardStop, match="Step 3 has no supervised token"):
        guards().before_step(3, 0)
    guards(no_supervised_tokens="off").before_step(3, 0)


def test_a_spike_is_far_above_recent_losses_by_their_own_spread():
    detector = SpikeDetector()
    calm = [2.0 + 0.1 * (-1) ** i for i in range(30)]
    assert not any(detector.is_spike(loss) for loss in calm)
    assert not detector.is_spike(2.5)
    assert detector.is_spike(4.5)


def test_a_loss_that_falls_steadily_hides_no_spike():
    detector = SpikeDetector()
    assert not any(detector.is_spike(6.0 - 0.1 * step) for step in range(20))
    assert detector.is_spike(6.4)


def test_noisy_small_batches_are_no_spikes():
    torch.manual_seed(0)
    detector = SpikeDetector()
    losses = (3 * torch.exp(-torch.arange(300) / 100) + 0.3 * torch.randn(300)).tolist()
    assert not any(detector.is_spike(loss) for loss in losses)


def test_a_guard_that_warns_says_it_once():
    warnings = []
    watch = guards(warnings)
    for _ in range(15):
        watch.after_step(METRICS, [0])
    for _ in range(3):
        watch.after_step(attrs.evolve(METRICS, loss=9.0), [0])
    assert len(warnings) == 1
    assert warnings[0].startswith("guard loss_spike")


@pytest.mark.parametrize(("lr", "fires"), [(1e-5, True), (1e-1, False)])
def test_updates_that_bfloat16_rounds_away_are_measured(lr, fires):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).to(torch.bfloat16)
    optimizer, warnings = adamw(model, lr), []
    watch = guards(warnings, optimizer)
    model(torch.randn(8, 64, dtype=torch.bfloat16)).float().square().sum().backward()
    watch.take_step(1, torch.tensor(1.0), optimizer, NO_SCALER)
    watch.after_step(METRICS, [0])
    assert bool(warnings) == fires


def test_float32_weights_are_not_watched_for_lost_updates():
    assert not LostUpdates.of(adamw(torch.nn.Linear(2, 2))).due(1)


@pytest.mark.parametrize(
    ("ranks", "before", "chosen", "says"),
    [
        (1, None, False, None),
        (4, None, False, "4 batch_size x 2 grad_acc_steps x 4 ranks = 32 samples"),
        (4, None, True, None),
        (4, 32, False, None),
        (2, 32, False, "= 16 samples; before, it took 32. Write step_scheduler.global_batch_size"),
    ],
)
def test_a_batch_that_the_yaml_does_not_suggest_is_told(ranks, before, chosen, says):
    warnings = []
    guards(warnings, batch_is_chosen=chosen).batch(Layout(4, 2, ranks), before)
    assert [says in each for each in warnings] == ([True] if says else [])
    guards(warnings := [], effective_batch="off").batch(Layout(4, 2, ranks), before)
    assert warnings == []


def test_what_guards_remember_outlives_a_resume():
    warnings = []
    watch, again = guards(warnings), guards(warnings)
    for _ in range(15):
        watch.after_step(METRICS, [0])
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    again.after_step(attrs.evolve(METRICS, loss=9.0), [0])
    assert len(warnings) == 1
    third = guards(warnings)
    third.load_state_dict(again.state_dict())
    third.after_step(attrs.evolve(METRICS, loss=90.0), [0])
    assert len(warnings) == 1, "said once, whatever was resumed"
