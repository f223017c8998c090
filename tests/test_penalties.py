"""KL against Monte Carlo and torch.distributions, MMD against its definition, fusion and widths."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from helpers import fusion, penalties
from helpers.encoders import Posterior
from helpers.layers import hidden_widths
from helpers.priors import StandardNormal


def latent(q, weight=None, generator=None):
    weight = torch.ones(q.mean.shape[:2]) / len(q.mean) if weight is None else weight
    return penalties.Latent(q, weight, q.sample(generator), StandardNormal(q.mean.shape[-1]), None, generator)


def test_kl_is_the_closed_form():
    mean, logvar = torch.randn(1, 6, 3), torch.randn(1, 6, 3)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(penalties.kl(latent(Posterior(mean, logvar))), expected)


def test_kl_is_what_monte_carlo_finds():
    g = torch.Generator().manual_seed(0)
    q = Posterior(torch.tensor([[1.0, -0.5]]).expand(200_000, 2), torch.tensor([[-1.0, 0.7]]).expand(200_000, 2))
    z = q.sample(g)
    log_ratio = Normal(q.mean, (0.5 * q.logvar).exp()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    exact = StandardNormal(2).kl(q, z)[0].item()
    estimate = log_ratio.sum(-1)
    assert abs(estimate.mean().item() - exact) < 4 * estimate.std().item() / np.sqrt(200_000)


def test_kl_of_the_prior_is_zero_and_of_a_point_is_an_error():
    assert penalties.kl(latent(Posterior(torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)))).item() == 0
    with pytest.raises(ValueError, match="point posterior"):
        penalties.kl(latent(Posterior(torch.zeros(1, 5, 4), None)))


def test_kl_weighs_candidates():
    q = Posterior(torch.stack([torch.zeros(4, 2), torch.ones(4, 2)]), torch.zeros(2, 4, 2))
    weight = torch.tensor([[0.25], [0.75]]).expand(2, 4)
    torch.testing.assert_close(penalties.kl(latent(q, weight)), torch.tensor(0.75 * 1.0))


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(7, 3)) + 1

    def mean_kernel(a, b):
        return np.mean([[np.exp(-np.sum((u - v) ** 2) / 3) for v in b] for u in a])

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert penalties.squared_mmd(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_tells_the_prior_from_other_codes():
    g = torch.Generator().manual_seed(0)
    like_prior = penalties.mmd(latent(Posterior(torch.randn(1, 500, 2, generator=g), None), generator=g))
    shifted = penalties.mmd(latent(Posterior(torch.randn(1, 500, 2, generator=g) + 2, None), generator=g))
    assert 0 <= like_prior < 0.02 < 0.3 < shifted


def test_noise_comes_from_the_generator():
    q = Posterior(torch.zeros(50_000, 1), torch.full((50_000, 1), np.log(4.0)))
    a, b = (q.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.std().item() == pytest.approx(2.0, rel=0.02)


def test_concatenation_places_posteriors_side_by_side():
    a = Posterior(torch.ones(3, 2), torch.full((3, 2), -1.0))
    b = Posterior(torch.full((3, 1), 5.0), torch.full((3, 1), 2.0))
    mask = torch.tensor([[True, True, False], [True, False, True]])
    q, weight = fusion.concatenate([a, b], mask)
    assert q.mean[0].tolist() == [[1, 1, 5], [1, 1, 0], [0, 0, 5]]  # unseen blocks are the prior
    assert q.logvar[0].tolist() == [[-1, -1, 2], [-1, -1, 0], [0, 0, 2]]
    assert weight.tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="point and Gaussian"):
        fusion.concatenate([a, Posterior(b.mean, None)], mask)


def test_published_widths():
    assert hidden_widths(6000, 2) == [1500, 375]
    assert hidden_widths(40, 8, n_layers=3) == [10, 8, 8]  # floored at the latent dimension
    assert hidden_widths(2000, 8, n_layers=1) == [500]  # the published code's default of two layers
    with pytest.raises(ValueError, match="factor >= 1"):
        hidden_widths(10, 2, factor=0.5)
