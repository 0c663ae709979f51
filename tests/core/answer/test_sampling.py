"""Drawn answers follow the softmax and depend on nothing but seed and prompt."""

import torch

from automodel_core.answer.sampling import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def drawn(sampling, indices, logits=LOGITS):
    scores = logits.repeat(len(indices), 1)
    for each in sampling.processors(indices):
        scores = each(None, scores)
    return scores.argmax(-1)


def test_draws_follow_the_softmax_at_the_temperature():
    draws = drawn(Sampling(temperature=2.0), range(20_000))
    shares = torch.bincount(draws, minlength=5) / len(draws)
    torch.testing.assert_close(shares, (LOGITS / 2.0).softmax(-1), atol=0.015, rtol=0)


def test_top_p_draws_from_the_most_probable_alone():
    assert set(drawn(Sampling(temperature=1.0, top_p=0.8), range(2_000)).tolist()) == {0, 1}


def test_temperature_zero_draws_nothing():
    assert Sampling(temperature=0.0, seed=3).processors([0, 1]) == []


def test_a_draw_depends_on_seed_and_index_alone():
    sampling = Sampling(temperature=5.0, seed=1)
    together = drawn(sampling, range(64))
    assert together.tolist() == [drawn(sampling, [index]).item() for index in range(64)]
    other = drawn(Sampling(temperature=5.0, seed=2), range(64))
    assert (together != other).any()
