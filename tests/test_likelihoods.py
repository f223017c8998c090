"""Densities against scipy, gradients against finite differences, draws against moments."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats as st
import torch

from helpers import negative_binomial
from helpers.batches import SparseRows
from helpers.likelihoods import Bernoulli, Foreground, Gaussian, NegativeBinomial, Shares, log_likelihood
from helpers.negative_binomial import N_TABLE


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


# --- counts that stay sparse ----------------------------------------------------------------------------------------


def stored(dense):
    """A dense matrix of counts as a batch of stored ones."""
    return SparseRows(sp.csr_matrix(np.asarray(dense)), torch.device("cpu")).take(torch.arange(len(dense)))


def sparse_counts(n=9, n_vars=40):
    """Counts with empty rows, empty columns, ones within the look-up table and beyond."""
    x = torch.poisson(torch.rand(n, n_vars, dtype=torch.double) * 3) * (torch.rand(n, n_vars) < 0.3)
    x[2], x[:, 5], x[0, 3], x[1, 0] = 0, 0, 4000, N_TABLE
    return x


def shares(x, log_total=None):
    """Logits, log totals and log r of the kind a decoder gives, in double precision."""
    logits, log_r = torch.randn(*x.shape, dtype=torch.double) * 2, torch.randn(x.shape[1], dtype=torch.double)
    total = torch.rand(len(x), 1, dtype=torch.double) * 4 + 1 if log_total is None else log_total
    return logits.requires_grad_(), total.requires_grad_(), log_r.requires_grad_()


def test_stored_counts_have_scipys_probability():
    x = sparse_counts()
    logits, total, log_r = shares(x)
    value = log_likelihood(NegativeBinomial(Shares(logits, total), log_r), stored(x))
    r, mean = numpy(log_r.exp()), numpy(torch.softmax(logits, -1) * total.exp())
    np.testing.assert_allclose(numpy(value), st.nbinom.logpmf(numpy(x), r, r / (r + mean)).sum(1), rtol=1e-5)


def test_stored_counts_have_the_slopes_of_dense_ones():
    """Of logits, totals and r, with weights that differ by sample."""
    x, weight = sparse_counts(), torch.rand(9, dtype=torch.double)
    given = shares(x)
    found = []
    for counts in (stored(x), x):
        p = NegativeBinomial(Shares(*given[:2]), given[2])
        found.append(torch.autograd.grad((log_likelihood(p, counts) * weight).sum(), given))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_slopes_of_stored_counts_are_finite_differences():
    x = sparse_counts(4, 6)
    counts = replace(stored(x), value=x[x > 0])  # in double precision
    given = shares(x)
    assert torch.autograd.gradcheck(lambda *v: negative_binomial.of_stored(counts, *v), given, eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_rows", [9, 1])
def test_a_last_layer_is_part_of_the_function(n_rows):
    """The same value and slopes, by the layer's input, weight and bias, as from logits made before."""
    x, weight = sparse_counts(), torch.rand(9, dtype=torch.double)
    _, total, log_r = shares(x)
    layer = torch.nn.Linear(5, x.shape[1], dtype=torch.double)
    h = torch.randn(n_rows, 5, dtype=torch.double, requires_grad=True)
    given, found = [h, layer.weight, layer.bias, total, log_r], []
    for source in (Shares.of(layer, h, total), Shares(layer(h), total)):
        value = log_likelihood(NegativeBinomial(source, log_r), stored(x))
        found.append([value, *torch.autograd.grad((value * weight).sum(), given)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_memory_is_used_again_but_not_too_early():
    """Two values whose slopes are asked for later, in the other order, twice."""
    x = sparse_counts()
    given = [shares(x) for _ in range(2)]
    alone = [torch.autograd.grad(negative_binomial.of_stored(stored(x), *v).sum(), v) for v in given]
    values = [negative_binomial.of_stored(stored(x), *v).sum() for v in given]
    for k in (1, 0, 1, 0):
        again = torch.autograd.grad(values[k], given[k], retain_graph=True)
        for a, b in zip(again, alone[k], strict=True):
            torch.testing.assert_close(a, b)


def test_one_mean_may_stand_for_all_samples():
    x = sparse_counts()
    logits, total, log_r = (v.detach() for v in shares(x))
    one = NegativeBinomial(Shares(logits[:1], total), log_r)
    assert one.batch_shape == x.shape
    all_rows = NegativeBinomial(Shares(logits[:1].expand(9, -1), total), log_r)
    torch.testing.assert_close(log_likelihood(one, stored(x)), log_likelihood(all_rows, x))


def test_extreme_logits_stay_finite():
    """A share that underflows to zero still has a finite probability and slope where something was counted."""
    x = torch.tensor([[3.0, 0.0, 1.0]])
    logits = torch.tensor([[-300.0, 0.0, 200.0]], requires_grad=True)
    value = log_likelihood(NegativeBinomial(Shares(logits, torch.zeros(1, 1)), torch.zeros(3)), stored(x))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert bool(value.isfinite().all()) and bool(slope.isfinite().all())
    dense = NegativeBinomial(Shares(logits.double(), torch.zeros(1, 1)), torch.zeros(3)).log_prob(x.double())
    torch.testing.assert_close(value.double(), dense.sum(-1), rtol=1e-5, atol=1e-4)


def test_other_likelihoods_take_stored_counts_too():
    x = (sparse_counts() > 0).float()
    p = Bernoulli(torch.randn(x.shape))
    torch.testing.assert_close(log_likelihood(p, stored(x)), p.log_prob(x).sum(-1))


def test_foreground_is_a_mixture_of_two():
    """Density against scipy, moments against draws; π near 1 leaves the background alone."""
    low, excess, logits, log_r = torch.randn(3), torch.randn(3) + 2, torch.tensor([-1.0, 0.0, 30.0]), torch.zeros(3)
    p = Foreground(low, excess, logits, log_r)
    x = torch.arange(12.0)[:, None].expand(-1, 3)
    share, bg, fg = (numpy(v) for v in (torch.sigmoid(logits), low.exp(), low.exp() + excess.exp()))
    pmf = share * st.nbinom.pmf(numpy(x), 1, 1 / (1 + bg)) + (1 - share) * st.nbinom.pmf(numpy(x), 1, 1 / (1 + fg))
    np.testing.assert_allclose(numpy(p.log_prob(x).exp()), pmf, rtol=1e-4, atol=1e-7)
    draws = p.sample(torch.Size([200_000]))
    np.testing.assert_allclose(numpy(draws.mean(0)), numpy(p.mean), rtol=0.02)
    np.testing.assert_allclose(numpy(draws.var(0)), numpy(p.variance), rtol=0.06)
    assert bool((p.log_prob(x) <= p.saturated(x) + 1e-6).all())
