"""Golden sizes, one batch overfitted, hidden modalities that cannot leak, named terms in nats per sample."""

import math

import numpy as np
import pytest
import torch
from conftest import build

from helpers import models, penalties, tasks
from helpers.batches import Samples
from helpers.decoders import BernoulliHead, NegativeBinomialHead
from helpers.training import fit

GOLDEN = {  # 30 + 20 features, n_latent 2: hidden 12 and 3, blocks with batch norm (2 parameters per unit)
    "varix": (50 * 12 + 12 + 24) + (12 * 3 + 3 + 6) + (3 * 4 + 4) + (2 * 3 + 3 + 6) + (3 * 12 + 12 + 24) + 13 * 50,
    "vanillix": (50 * 12 + 12 + 24) + (12 * 3 + 3 + 6) + (3 * 2 + 2) + (2 * 3 + 3 + 6) + (3 * 12 + 12 + 24) + 13 * 50,
}


@pytest.mark.parametrize("recipe", GOLDEN)
def test_golden_parameter_counts(recipe):
    model = getattr(models, recipe)({"rna": 30, "protein": 20}, n_latent=2)
    assert models.n_parameters(model) == GOLDEN[recipe]


def test_paper_scale_parameter_count():
    """Notebook 01 at paper scale: 3 × 2,000 features, hidden 1500 and 375, two latent dimensions."""
    model = models.varix({"rna": 2000, "methylation": 2000, "mutation": 2000}, n_latent=2)
    encoder = (6000 * 1500 + 1500 + 3000) + (1500 * 375 + 375 + 750) + (375 * 4 + 4)
    decoder = (2 * 375 + 375 + 750) + (375 * 1500 + 1500 + 3000) + (1500 * 6000 + 6000)
    assert models.n_parameters(model) == encoder + decoder == 19_144_504


def test_terms_are_named_and_in_nats(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.varix(samples.n_vars, 2).eval()
    batch = samples[torch.arange(50)]
    terms = model.losses(batch, torch.Generator().manual_seed(0))
    assert list(terms) == ["nll/rna", "nll/protein", "kl"]
    q, _ = model.encode(batch)
    z = q.sample(torch.Generator().manual_seed(0))[0]
    error = (model.decode(z)["rna"].mean - batch.x["rna"]).square().sum(1).mean()
    torch.testing.assert_close(terms["nll/rna"], error + 30 * 0.5 * math.log(math.pi))


def test_vanillix_is_deterministic_and_has_no_penalty(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.vanillix(samples.n_vars, 2).eval()
    a, b = (model.losses(samples[torch.arange(9)]) for _ in range(2))
    assert list(a) == ["nll/rna", "nll/protein"]
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("recipe", ["varix", "vanillix"])
def test_one_batch_can_be_overfitted(two_modalities, recipe):
    two_modalities.obs["split"] = ["train" if i < 32 else "test" for i in range(200)]
    samples = Samples(two_modalities, "cpu")
    model = getattr(models, recipe)(samples.n_vars, 8, n_layers=1, factor=1, dropout=0.0)
    weights = {"kl": 0.0} if recipe == "varix" else {}
    fit(model, samples, epochs=400, batch_size=32, lr=3e-3, weight_decay=0.0, weights=weights)
    x_hat = tasks.reconstruct(model, samples)
    x = two_modalities["rna"].X[:32]
    assert np.mean((x - x_hat["rna"][:32]) ** 2) < 0.05 * x.var()


def test_a_hidden_modality_changes_nothing():
    """Whatever stands in a masked modality, the posterior is the same."""
    rng = np.random.default_rng(0)
    names = {"rna": [f"s{i}" for i in range(40)], "protein": [f"s{i}" for i in range(20, 40)]}
    mdata = build({"rna": rng.normal(size=(40, 6)), "protein": rng.normal(size=(20, 5))}, names=names)
    samples = Samples(mdata, "cpu")
    model = models.varix(samples.n_vars, 2).eval()
    whole = samples[torch.arange(40)]
    hidden = ~whole.mask["protein"]
    assert hidden.any() and not hidden.all()
    q, _ = model.encode(whole)
    only_rna = {"rna": whole.x["rna"], "protein": torch.zeros(40, 5)}
    alone, _ = model.encode(type(whole)(only_rna, whole.mask, {}, whole.index))
    torch.testing.assert_close(q.mean[0, hidden], alone.mean[0, hidden])
    assert not torch.allclose(q.mean[0, ~hidden], alone.mean[0, ~hidden])


def test_unmeasured_samples_carry_no_reconstruction_loss():
    names = {"rna": ["a", "b", "c", "d"], "protein": ["a", "b"]}
    mdata = build({"rna": np.ones((4, 3)), "protein": np.ones((2, 3))}, names=names)
    samples = Samples(mdata, "cpu")
    model = models.vanillix(samples.n_vars, 2).eval()
    batch = samples[torch.arange(4)]
    p = model.decode(model.encode(batch)[0].mean[0])["protein"]
    seen = batch.mask["protein"]
    expected = -p.log_prob(batch.x["protein"]).sum(-1)[seen].sum() / 4
    torch.testing.assert_close(model.losses(batch)["nll/protein"], expected)


def test_count_and_binary_heads_train(counts):
    samples = Samples(counts, "cpu")
    model = models.varix(samples.n_vars, 4, heads={"rna": NegativeBinomialHead})
    history = fit(model, samples, epochs=30, batch_size=64, lr=5e-3)
    nll = history.query("split == 'valid' and term == 'nll/rna'").value
    assert nll.iloc[-1] < 0.9 * nll.iloc[0]
    mean = tasks.reconstruct(model, samples)["rna"]
    np.testing.assert_allclose(mean.sum(1), counts["rna"].X.toarray().sum(1), rtol=1e-4)  # softmax × library
    binary = build({"mutation": np.random.default_rng(0).integers(0, 2, (60, 10))})
    model = models.varix({"mutation": 10}, 2, heads={"mutation": BernoulliHead}, penalty=penalties.mmd)
    terms = fit(model, binary, epochs=2, batch_size=32).term.unique()
    assert {"nll/mutation", "mmd", "total"} <= set(terms)


def test_embeddings_are_posterior_means(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.varix(samples.n_vars, 3)
    a, b = tasks.embed(model, samples), tasks.embed(model, samples, batch_size=7)
    np.testing.assert_allclose(a, b, atol=1e-5)
    tasks.embed(model, two_modalities, key="X_varix")
    np.testing.assert_allclose(two_modalities.obsm["X_varix"], a, atol=1e-6)
    q, _ = model.encode(samples[torch.arange(200)])
    np.testing.assert_allclose(a, q.mean[0].detach().numpy(), atol=1e-5)


def test_samples_come_from_the_prior(two_modalities):
    model = models.varix({"rna": 30, "protein": 20}, 2)
    x = tasks.sample(model, 500, seed=1)
    assert x["rna"].shape == (500, 30) and np.isfinite(x["rna"]).all()
    np.testing.assert_array_equal(x["protein"], tasks.sample(model, 500, seed=1)["protein"])
    noisy = tasks.sample(model, 500, seed=1, noise=True)["rna"] - x["rna"]
    assert noisy.var() == pytest.approx(0.5, rel=0.05)
