"""Stackix, Ontix, Disentanglix and Maskix: exact zeros, storeys that do not disturb each other, swaps mended."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import models, penalties, tasks
from helpers.batches import Samples
from helpers.decoders import BernoulliHead, NegativeBinomialHead
from helpers.encoders import Posterior
from helpers.layers import LinkedLinear
from helpers.priors import StandardNormal
from helpers.training import fit


def random_ontology(seed: int, n_vars=None, depth=3) -> SimpleNamespace:
    """Levels of random sizes with overlapping memberships, some features and terms without any link."""
    rng = np.random.default_rng(seed)
    n_vars = n_vars or {"rna": 30, "protein": 20}
    n_terms = [int(rng.integers(2, 6)) + 3 * level for level in range(depth)]
    links = tuple(rng.random((low, high)) < 0.4 for high, low in zip(n_terms, n_terms[1:], strict=False))
    members = {m: rng.random((n, n_terms[-1])) < 0.3 for m, n in n_vars.items()}
    terms = tuple(tuple(f"term {level}.{k}" for k in range(n)) for level, n in enumerate(n_terms))
    features = {m: tuple(f"{m}{j}" for j in range(n)) for m, n in n_vars.items()}
    return SimpleNamespace(terms=terms, links=links, features=features, members=members)


def linked(model: nn.Module) -> list[LinkedLinear]:
    return [layer for layer in model.modules() if isinstance(layer, LinkedLinear)]


@pytest.mark.parametrize("seed", range(6))
def test_a_weight_without_a_link_is_exactly_zero_always(seed, two_modalities, tmp_path):
    """After training with momentum and weight decay, after saving and loading: not small, zero."""
    ontology = random_ontology(seed, depth=1 + seed % 4)
    torch.manual_seed(seed)
    options = {"between": nn.Tanh, "nonnegative": bool(seed % 2), "n_latent": 2 if seed > 2 else None}
    model = models.ontix(ontology, **options)
    fit(model, two_modalities, epochs=3, batch_size=32, lr=0.1, weight_decay=0.5, seed=seed)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = models.ontix(ontology, **options)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    allowed = [*ontology.links, *ontology.members.values()]
    assert len(linked(model)) == len(allowed)
    for one, other, links in zip(linked(model), linked(again), allowed, strict=True):
        weight = one.weight.detach().numpy()
        assert np.array_equal(weight != 0, links) and torch.equal(one.weight, other.weight)
        assert not options["nonnegative"] or (weight >= 0).all()


def test_features_hear_their_own_terms_only(two_modalities):
    """The gradient of a feature with respect to a top term is zero unless a path of links joins them."""
    ontology = random_ontology(1)
    model = models.ontix(ontology, between=nn.Tanh).eval()
    z = torch.randn(1, len(ontology.terms[0]))
    jacobian = torch.autograd.functional.jacobian(lambda z: model.decode(z)["protein"].mean, z)[0, :, 0]
    reach = ontology.members["protein"].astype(int)
    for links in reversed(ontology.links):
        reach = reach @ links.astype(int)
    assert ((jacobian != 0).numpy() <= (reach > 0)).all() and (jacobian != 0).any()


def test_ontix_names_its_dimensions(two_modalities):
    ontology = random_ontology(0)
    model = models.ontix(ontology)
    assert model.latent_names == ontology.terms[0] and model.prior.n_latent == len(ontology.terms[0])
    tasks.embed(model, two_modalities, key="X_ontix")
    assert list(two_modalities.uns["X_ontix"]["names"]) == list(ontology.terms[0])
    small = models.ontix(ontology, n_latent=2, n_full=2)
    assert small.latent_names == () and small.prior.n_latent == 2
    activities = small.decoders[0].activities(torch.randn(4, 2))
    assert [a.shape[1] for a in activities] == [len(names) for names in ontology.terms]


def test_golden_parameter_counts_of_ontix():
    """Encoder as Varix, one parameter per link, one bias per term and feature."""
    ontology = random_ontology(2, depth=2)
    n = len(ontology.terms[0])
    encoder = (50 * 12 + 12 + 24) + (12 * max(3, n) + 3 * max(3, n)) + (max(3, n) * 2 * n + 2 * n)
    n_links = sum(int(each.sum()) for each in (*ontology.links, *ontology.members.values()))
    assert models.n_parameters(models.ontix(ontology)) == encoder + n_links + len(ontology.terms[1]) + 50


@pytest.mark.parametrize("head", [BernoulliHead, NegativeBinomialHead])
def test_other_likelihoods_follow_the_ontology(head):
    ontology = random_ontology(3, {"rna": 12})
    rng = np.random.default_rng(0)
    counts = {"rna": rng.integers(0, 2, (60, 12))}
    model = models.ontix(ontology, heads={"rna": head})
    history = fit(model, build(counts, kinds={"rna": "counts"}), epochs=2, batch_size=32)
    assert np.isfinite(history.value).all() and len(linked(model)) == 3


# --- Stackix ---------------------------------------------------------------------------------------------------------


def test_stackix_learns_both_storeys_and_reconstructs_features(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.stackix(samples.n_vars, 3, dropout=0.0, n_layers=1)
    assert {m: g.prior.n_latent for m, g in model.ground.items()} == {"rna": 3, "protein": 3}
    history = fit(model, samples, epochs=150, batch_size=32, lr=5e-3, weights={"kl": 0.01}, progress=False)
    last = history[(history.epoch == 150) & (history.split == "valid")].set_index("term").value
    assert {"nll/rna", "nll/protein", "nll/stack", "kl/rna", "kl/protein", "kl/stack"} <= set(last.index)
    x, x_hat = two_modalities["rna"].X, tasks.reconstruct(model, samples, "test")["rna"]
    rows = samples.rows("test").numpy()
    assert 1 - ((x[rows] - x_hat) ** 2).sum() / (x[rows] ** 2).sum() > 0.7
    assert tasks.embed(model, samples).shape == (200, 3)
    assert tasks.sample(model, 5)["protein"].shape == (5, 20)


def test_codes_are_the_posterior_means_and_what_the_top_makes_of_them(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.stackix(samples.n_vars, 2, n_codes={"rna": 4, "protein": 3})
    values, made = tasks.codes(model, samples, "test")
    assert values.shape == made.shape == (len(samples.rows("test")), 7)
    batch = samples[samples.rows("test")]
    rna = model.ground["rna"].encode(batch)[0].mean[0].detach().numpy()
    np.testing.assert_allclose(values[:, :4], rna, atol=1e-5)
    z = torch.from_numpy(tasks.embed(model, samples, "test"))
    np.testing.assert_allclose(made[:, 4:], model.top.decode(z)["protein"].mean.detach().numpy(), atol=1e-5)


def test_the_top_storey_does_not_disturb_the_ground(two_modalities):
    """Gradients of the stack's terms stop at the codes."""
    samples = Samples(two_modalities, "cpu")
    model = models.stackix(samples.n_vars, 2)
    terms = model.losses(samples[torch.arange(40)], torch.Generator().manual_seed(0))
    (terms["nll/stack"] + terms["kl/stack"]).backward()
    assert all(p.grad is None for p in model.ground.parameters())
    assert all(p.grad is not None for p in model.top.parameters())


def test_stackix_bears_a_missing_modality():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(120, 2))
    names = {"rna": [f"s{i}" for i in range(120)], "protein": [f"s{i}" for i in range(40, 120)]}
    x = {"rna": z @ rng.normal(size=(2, 12)), "protein": z[40:] @ rng.normal(size=(2, 10))}
    samples = Samples(build(x, names=names), "cpu")
    model = models.stackix(samples.n_vars, 2, n_codes={"rna": 4, "protein": 3}, n_layers=1)
    fit(model, samples, epochs=2, batch_size=32)
    assert {m: g.prior.n_latent for m, g in model.ground.items()} == {"rna": 4, "protein": 3}
    batch = samples[torch.arange(60)]
    codes = model.codes(batch)
    assert (codes.x["protein"][:40] == 0).all() and (codes.x["protein"][40:] != 0).any()
    other = {**batch.x, "protein": batch.x["protein"] + 5.0 * ~batch.mask["protein"][:, None]}
    changed = type(batch)(other, batch.mask, {}, batch.index)
    torch.testing.assert_close(model.encode(batch)[0].mean, model.encode(changed)[0].mean)


# --- Disentanglix ----------------------------------------------------------------------------------------------------


def toy(n=40, d=3, seed=0):
    """Posteriors of a whole data set of n samples, one draw from each, and the exact log q(z) and log q(z_d)."""
    g = torch.Generator().manual_seed(seed)
    q = Posterior(torch.randn(n, d, generator=g).double(), (-2 + torch.rand(n, d, generator=g)).double())
    z = q.mean + torch.exp(0.5 * q.logvar) * torch.randn(n, d, generator=g).double()
    densities = torch.distributions.Normal(q.mean, torch.exp(0.5 * q.logvar)).log_prob(z[:, None])
    return q, z, densities.sum(-1).logsumexp(1) - np.log(n), densities.logsumexp(1) - np.log(n)


def parts(q, z, rows, n_obs, stratified=True):
    latent = penalties.Latent(
        Posterior(q.mean[rows][None], q.logvar[rows][None]), None, z[rows][None], StandardNormal(3), None, None
    )
    return penalties.decomposed_kl(n_obs, stratified)(latent)


def test_decomposed_kl_is_exact_for_the_whole_data_set():
    q, z, joint, each = toy()
    found = parts(q, z, torch.arange(40), 40)
    own = torch.distributions.Normal(q.mean, torch.exp(0.5 * q.logvar)).log_prob(z).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(found["mutual_information"], (own - joint).mean())
    torch.testing.assert_close(found["total_correlation"], (joint - each.sum(1)).mean())
    torch.testing.assert_close(found["dimension_wise"], (each.sum(1) - prior).mean())
    torch.testing.assert_close(sum(found.values()), (own - prior).mean())  # the three parts are the KL


def test_the_stratified_estimate_of_q_is_unbiased_over_batches():
    """Mean over random batches of the estimated density at z_0 equals the exact density."""
    q, z, joint, _ = toy()
    g, n_batch, estimates = torch.Generator().manual_seed(1), 8, []
    density = torch.distributions.Normal(q.mean, torch.exp(0.5 * q.logvar)).log_prob(z[0]).sum(1).exp()
    for _ in range(20_000):
        others = 1 + torch.randperm(39, generator=g)[: n_batch - 1]
        weight = penalties.batch_weights(n_batch, 40, True)[0].double()
        estimates.append(weight @ density[torch.cat([torch.tensor([0]), others])])
    estimates = torch.stack(estimates)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - joint[0].exp()) < 4 * error


def test_the_weighted_estimate_is_a_lower_bound():
    """log q(z) from below, as Chen et al. show for their minibatch-weighted estimator."""
    q, z, joint, _ = toy()
    g = torch.Generator().manual_seed(2)
    batches = [torch.randperm(40, generator=g)[:10] for _ in range(300)]
    own = torch.distributions.Normal(q.mean, torch.exp(0.5 * q.logvar)).log_prob(z).sum(1)
    found = torch.stack([parts(q, z, rows, 40, stratified=False)["mutual_information"] for rows in batches])
    assert found.mean() > (own - joint).mean()  # mutual information is log q(z|x) − log q(z)
    assert (penalties.batch_weights(10, 40, False) == 1 / 400).all()


def test_disentanglix_presses_for_independence(two_modalities):
    samples = Samples(two_modalities, "cpu")
    n = len(samples.rows("train"))
    found = {}
    for weight in (1.0, 30.0):
        torch.manual_seed(0)
        model = models.disentanglix(samples.n_vars, 3, n_obs=n, dropout=0.0)
        history = fit(model, samples, epochs=60, batch_size=64, lr=5e-3, weights={"kl/total_correlation": weight})
        assert {"kl/mutual_information", "kl/total_correlation", "kl/dimension_wise"} <= set(history.term)
        rows = history[(history.term == "kl/total_correlation") & (history.split == "train")]
        found[weight] = rows.value.iloc[-5:].mean()
    assert found[30.0] < 0.5 * found[1.0]
    with pytest.raises(ValueError, match="one posterior per sample"):
        latent = penalties.Latent(
            Posterior(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)), None, torch.zeros(2, 4, 3), None, None, None
        )
        penalties.decomposed_kl(4)(latent)


# --- Maskix ----------------------------------------------------------------------------------------------------------


def test_corruption_swaps_the_asked_share_between_measured_samples():
    names = {"rna": [f"s{i}" for i in range(400)], "protein": [f"s{i}" for i in range(200)]}
    rng = np.random.default_rng(0)
    samples = Samples(build({m: rng.normal(size=(len(n), 30)) for m, n in names.items()}, names=names), "cpu")
    batch = samples[torch.arange(400)]
    swapped, where = models.maskix.__globals__["corrupt"](batch, 0.3, torch.Generator().manual_seed(0))
    assert where["rna"].float().mean().item() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(swapped.x["rna"][~where["rna"]], batch.x["rna"][~where["rna"]])
    columns = [set(batch.x["rna"][:, j].tolist()) for j in range(30)]
    assert all(set(swapped.x["rna"][:, j].tolist()) <= columns[j] for j in range(30))
    assert not where["protein"][200:].any() and (swapped.x["protein"][200:] == 0).all()
    assert (swapped.x["protein"][:200] != 0).all()  # no zero of an unmeasured sample was taken


def test_maskix_mends_and_detects(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.maskix(samples.n_vars, 4, n_layers=1, dropout=0.0, swap=0.2)
    history = fit(model, samples, epochs=120, batch_size=32, lr=5e-3)
    valid = history[history.split == "valid"].pivot_table("value", "epoch", "term")
    assert {"mask/rna", "mask/protein", "nll/rna", "nll/protein"} <= set(valid.columns)
    assert valid["nll/rna"].iloc[-1] < 0.7 * valid["nll/rna"].iloc[0]
    chance = 30 * -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
    assert valid["mask/rna"].iloc[-1] < chance + 0.5
    q, _ = model.encode(samples[torch.arange(9)])
    torch.testing.assert_close(q.mean, model.encode(samples[torch.arange(9)])[0].mean)  # clean and deterministic
    with pytest.raises(ValueError, match="0 < swap < 1"):
        models.maskix({"rna": 3}, 2, swap=0.0)


def test_half_emphasis_is_the_plain_sum(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = models.maskix(samples.n_vars, 2, swap=1e-9, emphasis=0.5).eval()
    batch = samples[torch.arange(50)]
    terms, plain = model.losses(batch), model.model.losses(batch)
    torch.testing.assert_close(terms["nll/rna"], plain["nll/rna"])


@pytest.mark.parametrize("penalty", [penalties.kl, penalties.mmd])
@pytest.mark.parametrize("recipe", ["varix", "stackix", "maskix", "ontix"])
def test_every_family_takes_both_losses_and_both_penalties(recipe, penalty):
    """Cross-entropy on unit values beside squared error, and KL or MMD, everywhere."""
    rng = np.random.default_rng(0)
    data = {"rna": rng.normal(size=(60, 12)), "methylation": rng.random((60, 10))}
    mdata = build(data, kinds={"rna": "continuous", "methylation": "unit"})
    options = {"heads": {"methylation": BernoulliHead}, "penalty": penalty}
    first = random_ontology(4, {"rna": 12, "methylation": 10}) if recipe == "ontix" else Samples(mdata, "cpu").n_vars
    model = getattr(models, recipe)(first, **options)
    history = fit(model, mdata, epochs=2, batch_size=32)
    groups = {term.split("/")[0] for term in history.term}
    assert {"nll", penalty.__name__} <= groups and np.isfinite(history.value).all()
    assert model.likelihoods["methylation"].__name__ == "Bernoulli" and model.likelihoods["rna"].__name__ == "Gaussian"


def varix_size(n: int, n_latent: int) -> int:
    """Parameters of a Varix with two hidden layers, a quarter and a sixteenth of n, by hand."""
    a = max(n // 4, n_latent)
    b = max(a // 4, n_latent)
    encoder = (n * a + a + 2 * a) + (a * b + b + 2 * b) + (b * 2 * n_latent + 2 * n_latent)
    return encoder + (n_latent * b + b + 2 * b) + (b * a + a + 2 * a) + (a * n + n)


def test_paper_scale_parameter_counts():
    """Notebook 02: 3 × 2,000 features, eight dimensions; a Stackix is three Varix of 250 codes and one on 750."""
    n_vars = {"rna": 2000, "methylation": 2000, "mutation": 2000}
    assert models.n_parameters(models.varix(n_vars, 8)) == varix_size(6000, 8)
    stack = models.stackix(n_vars, 8)
    assert models.n_parameters(stack) == 3 * varix_size(2000, 250) + varix_size(750, 8) == 7_634_472
    detectors = 8 * 6000 + 6000
    assert models.n_parameters(models.maskix(n_vars, 8)) == models.n_parameters(models.vanillix(n_vars, 8)) + detectors
    assert models.n_parameters(models.disentanglix(n_vars, 8)) == varix_size(6000, 8)
