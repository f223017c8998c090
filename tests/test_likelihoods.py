"""Densities against scipy, gradients against finite differences, draws against moments."""

import numpy as np
import pytest
import scipy.stats as st
import torch

from helpers.likelihoods import N_TABLE, Bernoulli, Gaussian, NegativeBinomial


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def numpy(t):
    return t.detach().double().numpy()


@pytest.mark.parametrize("variance", [0.5, 2.0, torch.tensor([0.3, 1.0, 4.0])])
def test_gaussian_density_is_scipys(variance):
    x, mean = torch.randn(5, 3), torch.randn(5, 3)
    sd = np.sqrt(np.asarray(variance, dtype=float))
    expected = st.norm.logpdf(numpy(x), numpy(mean), sd)
    np.testing.assert_allclose(numpy(Gaussian(mean, variance).log_prob(x)), expected, atol=1e-5)


def test_gaussian_of_variance_half_is_the_squared_error():
    x, mean = torch.randn(7, 4), torch.randn(7, 4)
    nll = -Gaussian(mean).log_prob(x)
    torch.testing.assert_close(nll - 0.5 * np.log(np.pi), (x - mean) ** 2)


def test_bernoulli_is_scipys_on_binary_values():
    logits = torch.randn(6, 4)
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    expected = st.bernoulli.logpmf(numpy(x), numpy(torch.sigmoid(logits.double())))
    np.testing.assert_allclose(numpy(Bernoulli(logits).log_prob(x)), expected, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True], ids=["r per feature", "r per value"])
def test_negative_binomial_is_scipys(per_sample):
    """Counts below, at and above the look-up table's end, zeros included."""
    x = torch.tensor([[0.0, 1, 3, N_TABLE], [N_TABLE + 1, 0, 200, 5000]])
    log_mean, log_r = torch.randn(2, 4) * 2, torch.randn(4) * 2
    r = numpy(log_r.double().exp())
    p = r / (r + numpy(log_mean.double().exp()))
    value = NegativeBinomial(log_mean, log_r.expand(2, 4) if per_sample else log_r).log_prob(x)
    np.testing.assert_allclose(numpy(value), st.nbinom.logpmf(numpy(x), r, p), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("per_sample", [False, True], ids=["r per feature", "r per value"])
def test_negative_binomial_gradient(per_sample):
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(4, 6, dtype=torch.double) * 20)
    x[0, 0], x[1, 1] = 2.5, 100.0  # a value that is no integer, a count beyond the table
    log_mean = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    log_r = torch.randn((4, 6) if per_sample else 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, r: NegativeBinomial(m, r).log_prob(x), (log_mean, log_r))


def test_negative_binomial_goes_to_poisson():
    x = torch.arange(20.0)[None]
    log_mean = torch.full((1, 20), np.log(5.0), dtype=torch.double)
    value = NegativeBinomial(log_mean, torch.full((20,), 18.0, dtype=torch.double)).log_prob(x.double())
    np.testing.assert_allclose(numpy(value), st.poisson.logpmf(numpy(x), 5.0), atol=1e-5)


def test_probabilities_sum_to_one():
    counts = torch.arange(3000.0, dtype=torch.double)[:, None]
    p = NegativeBinomial(torch.full((3000, 1), 2.0, dtype=torch.double), torch.tensor([0.3], dtype=torch.double))
    assert p.log_prob(counts).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


COUNTS = torch.tensor([[0.0, 1, 3, N_TABLE], [N_TABLE + 1, 0, 200, 5000]], dtype=torch.double)


@pytest.mark.parametrize("variance", [0.5, torch.tensor([0.3, 1.0, 4.0])])
def test_saturated_gaussian_is_scipys(variance):
    x = torch.randn(5, 3)
    expected = st.norm.logpdf(numpy(x), numpy(x), np.sqrt(np.asarray(variance, dtype=float)))
    np.testing.assert_allclose(numpy(Gaussian(torch.zeros(5, 3), variance).saturated(x)), expected, atol=1e-6)


def test_saturated_bernoulli_is_minus_scipys_entropy():
    x = torch.tensor([[0.0, 1.0, 0.5, 0.2, 0.999]], dtype=torch.double)
    value = Bernoulli(torch.randn(1, 5)).saturated(x)
    np.testing.assert_allclose(numpy(value), -st.bernoulli.entropy(numpy(x)), atol=1e-12)
    assert value[0, :2].tolist() == [0, 0]


def test_saturated_negative_binomial_is_poisson_at_the_counts():
    """The limit of r → ∞, which no r surpasses: a learned dispersion cannot make the half deviance negative."""
    expected = st.poisson.logpmf(numpy(COUNTS), numpy(COUNTS))
    best = NegativeBinomial(torch.randn(2, 4, dtype=torch.double), torch.zeros(4)).saturated(COUNTS)
    np.testing.assert_allclose(numpy(best), expected, rtol=1e-9, atol=1e-12)
    for r in (1e-2, 1.0, 1e2, 1e4):
        own = st.nbinom.logpmf(numpy(COUNTS), r, r / (r + numpy(COUNTS)))
        assert (own <= numpy(best) + 1e-9).all()


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda m: Gaussian(m, torch.tensor([0.3, 1.0, 4.0, 0.5])), torch.randn(2, 4, dtype=torch.double)),
        (Bernoulli, torch.rand(2, 4, dtype=torch.double).round(decimals=1)),
        (lambda m: NegativeBinomial(m, torch.tensor([-2.0, 0.0, 1.0, 4.0], dtype=torch.double)), COUNTS),
    ],
    ids=["Gaussian", "Bernoulli", "NegativeBinomial"],
)
def test_no_mean_gives_more_than_the_saturated_density(make, x):
    torch.manual_seed(0)
    for scale in (0.01, 1.0, 5.0):
        p = make(scale * torch.randn(2, 4, dtype=torch.double))
        assert (p.log_prob(x) <= p.saturated(x) + 1e-12).all()


def test_the_deviance_of_a_gaussian_is_the_scaled_squared_error():
    x, mean = torch.randn(7, 4), torch.randn(7, 4)
    p = Gaussian(mean, 2.0)
    torch.testing.assert_close(p.saturated(x) - p.log_prob(x), (x - mean) ** 2 / 4)


@pytest.mark.parametrize(
    "p",
    [
        Gaussian(torch.tensor([1.0, -2.0]), 0.5),
        Bernoulli(torch.tensor([0.3, -1.0])),
        NegativeBinomial(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])),
    ],
    ids=lambda p: type(p).__name__,
)
def test_draws_have_the_stated_moments(p):
    torch.manual_seed(0)
    draws = p.sample((40_000,))
    error = (p.variance / 40_000).sqrt()
    assert ((draws.mean(0) - p.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), p.variance, rtol=0.08, atol=0.01)
