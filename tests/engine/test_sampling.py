"""Sampling: the distribution, the nucleus, the counter."""

import numpy as np
import torch
from scipy.stats import chisquare

from cask_eval.engine.sampling import Sampling, choose, uniforms


def draw(logits, sampling, n=20_000):
    u = torch.from_numpy(uniforms(5, n))
    return torch.bincount(choose(logits.expand(n, -1), u, sampling), minlength=logits.shape[-1]).numpy()


def test_frequencies_follow_the_tempered_softmax():
    logits = torch.tensor([0.3, 2.0, -1.0, 0.9])
    want = torch.softmax(logits / 0.7, -1).numpy().astype(float)
    assert chisquare(draw(logits, Sampling(1, 0.7)), want / want.sum() * 20_000).pvalue > 1e-3


def test_the_nucleus_ends_with_the_token_that_reaches_top_p():
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    counts = draw(logits, Sampling(1, 1.0, 0.7))
    assert counts[[0, 2]].tolist() == [0, 0]
    assert chisquare(counts[[1, 3]], np.array([2, 1]) / 3 * 20_000).pvalue > 1e-3
    assert draw(logits, Sampling(1, 1.0, 0.4)).tolist() == [0, 20_000, 0, 0]


def test_greedy_takes_the_lowest_id_of_equal_logits():
    assert choose(torch.tensor([[1.0, 3.0, 3.0]]), None, Sampling(1)).tolist() == [1]


def test_step_i_has_the_same_number_however_many_are_drawn():
    assert np.array_equal(uniforms(2**127 + 3, 7), uniforms(2**127 + 3, 500)[:7])
    assert not np.array_equal(uniforms(1, 5), uniforms(2**64 + 1, 5))
    assert 0 <= uniforms(9, 100_000).min() and uniforms(9, 100_000).max() < 1


def test_numbers_are_those_of_numpys_philox():
    want = np.random.Generator(np.random.Philox(key=77)).random(4)
    assert np.array_equal(uniforms(77, 4), want)


def test_a_row_without_a_finite_maximum_does_not_stop_the_others():
    logits = torch.tensor([[0.0, 9.0], [torch.nan, 0.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    for sampling in (Sampling(1), Sampling(1, 1.0), Sampling(1, 1.0, 0.9)):
        assert choose(logits, torch.full((4,), 0.5, dtype=torch.float64), sampling)[0] == 1
