"""The Gaussian mixture and the priors of its own parameters, against scipy, scikit-learn and numerical integration."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as Reference

from helpers.encoders import Posterior
from helpers.priors import GaussianMixture, Softball, StandardNormal, log_fermi


def mixture(d, k, covariance="diagonal", seed=0, **options):
    """A mixture with parameters that differ everywhere, in double precision."""
    made = torch.Generator().manual_seed(seed)
    prior = GaussianMixture(d, k, covariance, generator=made, sd=0.7, **options).double()
    with torch.no_grad():
        prior.logits.copy_(torch.randn(k, generator=made))
        if covariance != "fixed":
            prior.neg_log_var.copy_(torch.randn(prior.neg_log_var.shape, generator=made))
    return prior


def reference(prior):
    """The same density in scikit-learn."""
    k, d = prior.mean.shape
    found = Reference(k, covariance_type="diag")
    found.means_, found.weights_ = prior.mean.detach().numpy(), torch.softmax(prior.logits, 0).detach().numpy()
    precision = prior.neg_log_var.detach().exp().expand(k, d).numpy()
    found.covariances_, found.precisions_cholesky_ = 1 / precision, np.sqrt(precision)
    return found


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic", "fixed"])
@pytest.mark.parametrize("k", [1, 3, 81])
@pytest.mark.parametrize("d", [2, 20])
def test_density_and_responsibilities_are_scikit_learns(d, k, covariance):
    prior = mixture(d, k, covariance)
    z = 2 * torch.randn(50, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = reference(prior)
    np.testing.assert_allclose(prior.log_prob(z).detach(), found.score_samples(z.numpy()), rtol=1e-10)
    np.testing.assert_allclose(prior.responsibilities(z).detach(), found.predict_proba(z.numpy()), atol=1e-10)
    prior.log_prob(z).sum().backward()
    learned = [p for p in prior.parameters() if p.requires_grad]
    assert len(learned) == (2 if covariance == "fixed" else 3) and all(p.grad.isfinite().all() for p in learned)


def test_densities_stay_finite_far_away_and_in_single_precision():
    prior = GaussianMixture(20, 81)
    z = torch.full((4, 20), 50.0, requires_grad=True)
    prior.log_prob(z).sum().backward()
    assert z.grad.isfinite().all() and all(p.grad.isfinite().all() for p in prior.parameters())


def test_draws_have_the_density_of_the_mixture():
    """Along any direction a mixture is one of as many normals."""
    prior = mixture(2, 3)
    z = prior.sample(20_000, torch.Generator().manual_seed(2)).double().numpy()
    weights, mean = torch.softmax(prior.logits, 0).detach().numpy(), prior.mean.detach().numpy()
    var = torch.exp(-prior.neg_log_var).detach().numpy()
    for way in np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]):
        parts = [stats.norm(m @ way, math.sqrt(v @ way**2)) for m, v in zip(mean, var, strict=True)]
        below = lambda t, parts=parts: weights @ [p.cdf(t) for p in parts]  # noqa: E731
        assert stats.kstest(z @ way, below).pvalue > 0.01


@pytest.mark.parametrize(("d", "a"), [(1, 3.0), (2, 0.3), (2, 5.0), (3, 50.0), (20, 1.0), (20, 5.0), (20, 500.0)])
def test_the_softball_integrates_to_one(d, a):
    ball = Softball(d, scale=2.0, sharpness=a)
    sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)

    def shell(r):
        mean = torch.zeros(1, d, dtype=torch.float64)
        mean[0, 0] = r
        return math.exp(sphere + (d - 1) * math.log(r) + ball.log_prob(mean).item())

    peak = max(2.0, 2 * (d - 1) / a)
    total = sum(integrate.quad(shell, *ends, limit=200)[0] for ends in [(1e-12, peak), (peak, 2 * peak)])
    rest = integrate.quad(shell, 2 * peak, 12 * peak + 60 / a, limit=400)[0]
    assert total + rest == pytest.approx(1, abs=1e-6)


def test_a_hard_softball_is_the_uniform_ball_and_nothing_overflows():
    """The published normaliser is the limit; in 20 dimensions at sharpness 5 it is off by a factor of 3.8 million."""
    volume = 10 * math.log(math.pi) + 20 * math.log(2.0) - math.lgamma(11)
    assert Softball(20, 2.0, 1e6).log_volume == pytest.approx(volume, abs=1e-4)
    assert math.exp(Softball(20, 2.0, 5.0).log_volume - volume) == pytest.approx(3.8e6, rel=0.02)
    mean = torch.tensor([[0.0] * 20, [100.0] * 20], requires_grad=True)
    inside, outside = Softball(20, 2.0, 1e6).log_prob(mean)
    (inside + outside).backward()
    assert inside.item() == pytest.approx(-volume, abs=1e-3) and outside < -1e7 and mean.grad.isfinite().all()
    assert log_fermi(1, 2.0) == pytest.approx(math.log((2 + math.log1p(math.exp(-2))) / 2))


def test_means_start_uniformly_in_the_ball():
    radius = Softball(3, 2.0, 5.0).uniform(20_000, torch.Generator().manual_seed(0)).norm(dim=1) / 2
    assert stats.kstest(radius.numpy() ** 3, "uniform").pvalue > 0.01


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic", "fixed"])
@pytest.mark.parametrize("k", [1, 3, 81])
def test_the_prior_of_the_parameters_is_the_product_of_its_parts(k, covariance):
    prior = mixture(4, k, covariance, alpha=1.7, scale=3.0, spread=0.4)
    weights = torch.softmax(prior.logits, 0).detach().numpy()
    expected = prior.softball.log_prob(prior.mean).sum().item()
    if k > 1:  # scipy's Dirichlet needs two
        expected += stats.dirichlet.logpdf(weights / weights.sum(), [1.7] * k)
    if covariance != "fixed":
        expected += stats.norm.logpdf(prior.neg_log_var.detach(), -2 * math.log(0.7), 0.4).sum()
    assert prior.log_prior().item() == pytest.approx(expected)


def test_components_start_at_the_published_deviation():
    assert torch.exp(-0.5 * GaussianMixture(5, 8, scale=2.0).neg_log_var).mean().item() == pytest.approx(0.05)


def test_labelled_samples_hear_their_own_component_alone():
    prior, z = mixture(3, 4), torch.randn(6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, -1, -1])
    found = prior.log_prob(z, labels)
    for i, c in enumerate(labels[:4]):
        b = prior.neg_log_var[c].detach()
        own = stats.norm.logpdf(z[i], prior.mean[c].detach(), torch.exp(-0.5 * b)).sum()
        assert found[i].item() == pytest.approx(own + torch.log_softmax(prior.logits, 0)[c].item())
    assert torch.equal(found[4:], prior.log_prob(z[4:]))
    slope = torch.autograd.grad(prior.log_prob(z[:1], labels[:1]).sum(), prior.mean)[0]
    assert slope[0].abs().sum() > 0 and not slope[1:].any()


def test_kl_of_a_single_standard_component_is_the_closed_form_on_average():
    prior = GaussianMixture(3, 1, sd=1.0)
    torch.nn.init.zeros_(prior.mean)
    q = Posterior(torch.tensor([[0.5, -1.0, 0.0]]), torch.tensor([[0.2, -0.7, 0.0]]))
    many = Posterior(*(v.expand(200_000, 3) for v in q))
    draws = many.sample(torch.Generator().manual_seed(0))
    estimate, exact = prior.kl(many, draws).mean().item(), StandardNormal(3).kl(q, q.mean).item()
    assert estimate == pytest.approx(exact, abs=0.01)


def clusters(k, d, n=300, seed=0):
    """Codes around `k` separate centres, the cluster of each and the centres."""
    rng = np.random.default_rng(seed)
    centre, own = 4 * rng.normal(size=(k, d)), rng.integers(k, size=n)
    return torch.from_numpy(centre[own] + 0.3 * rng.normal(size=(n, d))).float(), own, centre


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic", "fixed"])
def test_components_start_at_planted_clusters_whatever_the_seed(covariance):
    z, own, _ = clusters(5, 4)
    for seed in range(3):
        prior = GaussianMixture(4, 5, covariance, sd=0.3)
        prior.start_at(z, seed=seed)
        assert adjusted_rand_score(own, prior.responsibilities(z).argmax(-1)) == 1
        assert torch.exp(-0.5 * prior.neg_log_var).mean().item() == pytest.approx(0.3, rel=0.1)
        assert torch.softmax(prior.logits, 0).detach().numpy().max() < 0.35


def test_components_take_the_numbers_of_the_classes():
    z, own, centre = clusters(5, 4)
    labels = torch.from_numpy(np.where(np.arange(len(own)) % 5, -1, own))  # one in five is known
    prior = GaussianMixture(4, 5)
    prior.start_at(z, labels)
    np.testing.assert_allclose(prior.mean.detach(), centre, atol=0.2)
    assert (prior.responsibilities(z).argmax(-1).numpy() == own).all()


def test_bad_mixtures_are_refused():
    with pytest.raises(ValueError, match="covariance must be one of diagonal, isotropic, fixed, got 'full'"):
        GaussianMixture(2, 3, "full")
    with pytest.raises(ValueError, match="one component or more and positive"):
        GaussianMixture(2, 0)
    with pytest.raises(ValueError, match="positive n_latent, scale, sharpness"):
        GaussianMixture(2, 3, sharpness=-1.0)
    prior = GaussianMixture(2, 3)
    with pytest.raises(ValueError, match=r"label 3 has no component: 3 components stand for labels 0 … 2"):
        prior.log_prob(torch.zeros(2, 2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="2 codes cannot start 3 components"):
        prior.start_at(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="point posterior has no KL"):
        prior.kl(Posterior(torch.zeros(1, 2), None), torch.zeros(1, 2))
