"""MIMA: product of experts, separated latents, its loss terms, and what is read off a trained model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from torch.distributions import Normal

from helpers import fusion, latents, models, separation, training
from helpers.batches import Samples
from helpers.decoders import NegativeBinomialHead
from helpers.encoders import BatchHeads, BatchTable, Posterior
from helpers.fusion import SharedPrivate, product
from helpers.penalties import Latent

N, TYPES, BATCHES = 360, 3, 3


def planted(seed: int = 0, n: int = N, gap: float = 2.0) -> MuData:
    """Two modalities that share a class, each with a smooth factor of its own, and an offset per batch and feature."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(TYPES, size=n), rng.integers(BATCHES, size=n)
    names = [f"cell {i}" for i in range(n)]
    parts = {}
    for m, n_vars in {"rna": 24, "protein": 12}.items():
        programme, offset = 2 * rng.normal(size=(TYPES, n_vars)), gap * rng.normal(size=(BATCHES, n_vars))
        own = rng.normal(size=(n, 1)) * rng.normal(size=(1, n_vars))
        x = programme[kind] + offset[batch] + own + 0.3 * rng.normal(size=(n, n_vars))
        x = (x - x.mean(0)) / x.std(0)
        var = pd.DataFrame(index=[f"{m} {j}" for j in range(n_vars)])
        parts[m] = AnnData(x.astype(np.float32), obs=pd.DataFrame(index=names), var=var)
    data = MuData(parts)
    split = np.where(np.arange(n) % 5 == 0, "test", np.where(np.arange(n) % 5 == 1, "valid", "train"))
    data.obs = pd.DataFrame({"kind": kind.astype(str), "run": [f"run {b}" for b in batch], "split": split}, index=names)
    return data


def small(data: MuData, **options) -> models.Model:
    samples = Samples(data, "cpu", covariates=["run"])
    torch.manual_seed(0)
    sizes = {"n_latent": 4, "hidden": (32,), "narrow": 0, "latent_dropout": 0.1}
    return models.mima(samples.n_vars, samples.n_classes, **sizes | options)


@pytest.fixture(scope="module")
def data() -> MuData:
    return planted()


@pytest.fixture(scope="module")
def trained(data) -> models.Model:
    model = small(data, table=True, told=True, adversary=True)
    weights = models.mean_squared({"rna": 24, "protein": 12}) | {"adversary": 20.0}
    samples = Samples(data, "cpu", covariates=["run"])
    fitting = {"epochs": 100, "batch_size": 32, "lr": 3e-3, "decay": "cosine"}
    training.fit(model, samples, weights=weights, progress=False, **fitting)
    return model


def gaussian(n: int = 5, d: int = 3, seed: int = 0) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    return Posterior(torch.randn(n, d, generator=generator), 0.5 * torch.randn(n, d, generator=generator))


# ---------------------------------------------------------------- the product of experts


@pytest.mark.parametrize("prior", [True, False])
def test_the_product_is_proportional_to_the_product_of_densities(prior):
    experts, every = [gaussian(seed=s) for s in (0, 1, 2)], torch.ones(3, 5, dtype=torch.bool)
    q, weight = product(experts, every, prior)
    assert q.mean.shape == (1, 5, 3) and torch.equal(weight, torch.ones(1, 5))
    z = torch.randn(50, 5, 3)
    log = sum(Normal(e.mean, (0.5 * e.logvar).exp()).log_prob(z) for e in experts)
    log = log + (Normal(0.0, 1.0).log_prob(z) if prior else 0)
    off = log - Normal(q.mean[0], (0.5 * q.logvar[0]).exp()).log_prob(z)  # constant in z
    assert torch.allclose(off, off[:1].expand_as(off), atol=1e-4)


def test_one_expert_passes_through_without_the_prior_and_shrinks_with_it():
    q = gaussian()
    alone, _ = product([q], torch.ones(1, 5, dtype=torch.bool), prior=False)
    assert torch.allclose(alone.mean[0], q.mean) and torch.allclose(alone.logvar[0], q.logvar, atol=1e-6)
    shrunk, _ = product([q], torch.ones(1, 5, dtype=torch.bool))
    assert torch.allclose(shrunk.mean[0], q.mean / (1 + q.logvar.exp()), atol=1e-6)


def test_a_hidden_expert_cannot_change_the_product():
    mask = torch.tensor([[True] * 5, [False] * 5])
    one, _ = product([gaussian(), gaussian(seed=1)], mask)
    other, _ = product([gaussian(), gaussian(seed=2)], mask)
    assert torch.equal(one.mean, other.mean) and torch.equal(one.logvar, other.logvar)
    nobody, _ = product([gaussian(), gaussian(seed=1)], torch.zeros(2, 5, dtype=torch.bool), prior=False)
    assert not nobody.mean.any() and not nobody.logvar.any()


def test_a_sure_expert_outvotes_an_unsure_one():
    sure, unsure = (
        Posterior(torch.ones(1, 1), torch.full((1, 1), -6.0)),
        Posterior(-torch.ones(1, 1), torch.zeros(1, 1)),
    )
    q, _ = product([sure, unsure], torch.ones(2, 1, dtype=torch.bool))
    assert float(q.mean) > 0.98


def test_points_have_no_product():
    with pytest.raises(ValueError, match="make all encoders stochastic"):
        product([Posterior(torch.zeros(2, 1), None)], torch.ones(1, 2, dtype=torch.bool))


def test_blocks_stand_where_their_places_say():
    fuse = SharedPrivate(["rna", "protein"], 2)
    assert list(fuse.places) == [
        "shared", "own/rna", "batch/rna", "expert/rna", "own/protein", "batch/protein", "expert/protein",
    ]  # fmt: skip
    told = [gaussian(4, 6, seed) for seed in (0, 1)]
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    q, _ = fuse(told, mask)
    joint, _ = product([Posterior(*(v[:, :2] for v in one)) for one in told], mask)
    assert torch.equal(q.mean[0][:, fuse.places["shared"]], joint.mean[0])
    assert torch.equal(q.mean[0][:, fuse.places["own/rna"]], told[0].mean[:, 2:4])
    assert torch.equal(q.mean[0][:2, fuse.places["batch/protein"]], told[1].mean[:2, 4:])
    assert not q.mean[0][2:, fuse.places["batch/protein"]].any()  # N(0, I) where it was not measured
    with pytest.raises(ValueError, match="one candidate"):
        SharedPrivate(["rna", "protein"], 2, fusion.mixture)(told, mask)


# ---------------------------------------------------------------- the loss of the paper


def at_work(model: models.Model, data: MuData, rows=slice(0, 40)) -> Latent:
    batch = Samples(data, "cpu", covariates=["run"])[torch.arange(data.n_obs)[rows]]
    model.eval()
    q, weight = model.encode(batch)
    return Latent(q, weight, q.mean, model.prior, batch, None, model)


def squared_error(x, h) -> torch.Tensor:
    """−log N(x | h, ½) summed over features, averaged over samples."""
    return ((x - h) ** 2 + 0.5 * np.log(np.pi)).sum(-1).mean()


@torch.no_grad()
def test_every_term_is_what_the_paper_says(data):
    model = small(data)
    latent = at_work(model, data)
    z, x, places = latent.z[0], latent.batch.x, model.fuse.places
    part = {name: z[:, place] for name, place in places.items()}

    def read(m: str, h: torch.Tensor) -> torch.Tensor:
        decoder = model.decoders[model.fuse.names.index(m)].decoder
        return squared_error(x[m], decoder(h, {})[m].mean)

    found = model.reconstruct(model, latent)
    for m in ("rna", "protein"):
        whole = part["shared"] + part[f"own/{m}"] + part[f"batch/{m}"]
        assert float(found[f"nll/{m}"]) == pytest.approx(float(read(m, whole)), rel=1e-5)
        alone = separation.private(latent)[m]
        assert float(alone) == pytest.approx(float(read(m, part[f"own/{m}"] + part[f"batch/{m}"])), rel=1e-5)
    there = separation.translated(latent)
    assert list(there) == ["rna to protein", "protein to rna"]
    assert float(there["rna to protein"]) == pytest.approx(
        float(read("protein", part["expert/rna"] + part["batch/protein"])), rel=1e-5
    )
    kl = separation.kl_parts(latent)
    assert list(kl) == list(places)
    logvar = latent.q.logvar[0][:, places["shared"]]
    exact = torch.distributions.kl_divergence(Normal(part["shared"], (0.5 * logvar).exp()), Normal(0.0, 1.0))
    assert float(kl["shared"]) == pytest.approx(float(exact.sum(-1).mean()), rel=1e-5)


def test_translation_moves_no_batch_and_no_own_latent(data):
    model = small(data)
    latent = at_work(model, data)
    sum(separation.translated(latent).values()).backward()
    moved = {"shared": 0.0, "own": 0.0, "batch": 0.0}
    for encoder in model.encoders:
        mean, _ = encoder.head.weight.grad.chunk(2, 0)
        moved["shared"] += float(mean[:4].abs().sum())
        moved["own"] += float(mean[4:].abs().sum())
        grad = encoder.of_batch.layer.weight.grad
        moved["batch"] += 0.0 if grad is None else float(grad.abs().sum())
    assert moved["shared"] > 0 and moved["own"] == moved["batch"] == 0


def test_golden_parameter_counts():
    """Paper sizes: hidden layers for wide modalities only, and a latent layer per batch."""
    model = models.mima({"rna": 1000, "morphology": 512}, {"section": 16})
    wide = 1000 * 300 + 300 + 300 * 300 + 300 + 4 * 300  # two layers with their batch norms
    head = lambda n: (n + 1) * 400 + (n + 1) * 16 * 200  # noqa: E731
    back = 100 * 300 + 300 + 300 * 300 + 300 + 4 * 300 + 301 * 1000
    assert models.n_parameters(model) == wide + head(300) + back + head(512) + 101 * 512


def test_unimodal_learns_from_own_and_batch_latent_alone(data):
    samples = Samples(data, "cpu", covariates=["run"])
    torch.manual_seed(0)
    model = models.mima_unimodal(
        samples.n_vars, samples.n_classes, n_latent=4, hidden=(32,), narrow=0, table=True, told=True, adversary=True
    )
    history = training.fit(model, samples, epochs=15, batch_size=64, lr=3e-3, weights={"kl": 0.1}, progress=False)
    assert {"nll/rna", "kl/own/rna", "kl/batch/rna", "adversary/own/rna"} <= set(history["term"])
    assert not any(term.startswith(("translation", "private", "kl/shared")) for term in history["term"])
    before = model.encoders[0].head.weight[:4].clone()
    training.fit(model, samples, epochs=2, batch_size=64, weight_decay=0.0, progress=False)
    assert torch.equal(before, model.encoders[0].head.weight[:4])  # the shared latent is not touched
    valid = history[(history["term"] == "nll/rna") & (history["split"] == "valid")]["value"].to_numpy()
    assert valid[-1] < 0.7 * valid[0]


# ---------------------------------------------------------------- batches


def test_batch_table_is_centred_and_silent_about_unknown_batches():
    table = BatchTable(4, 4)
    q = table(torch.zeros(4, 1), torch.tensor([0, 1, 2, -1]))
    assert torch.allclose(q.mean[:3].sum(0), torch.zeros(4), atol=1e-6)
    assert not q.mean[3].any() and not q.logvar[3].any()
    assert torch.equal(table.centres[:3], q.mean[:3])
    assert not table.centres[3].any()  # never met: an average batch


def test_batch_heads_read_each_sample_by_its_own_batch_and_keep_centres():
    heads, h = BatchHeads(5, 2, 3), torch.randn(6, 5)
    code = torch.tensor([0, 1, 0, 1, -1, 0])
    q = heads(h, code)
    by_hand = h @ heads.layer.weight.view(2, 6, 5)[1].T + heads.layer.bias.view(2, 6)[1]
    assert torch.allclose(q.mean[1], by_hand[1, :3], atol=1e-6) and not q.mean[4].any()
    for _ in range(200):
        heads(h, code)
    assert torch.allclose(heads.centres[1], q.mean[[1, 3]].mean(0).detach(), atol=1e-3)


@torch.no_grad()
def test_mixing_is_zero_where_batches_mix_and_large_where_they_do_not(data):
    model = small(data, mixing=True)
    latent, term = at_work(model, data, slice(0, 200)), model.penalties["mixing"]
    code, place = latent.batch.covariates["run"], model.fuse.places["shared"]
    mean = latent.q.mean.detach().clone()
    noise = torch.randn(len(code), 4, generator=torch.Generator().manual_seed(0))

    def at(z: torch.Tensor) -> float:
        mean[0][:, place] = z
        return float(term(latent._replace(q=Posterior(mean, latent.q.logvar))))

    apart = at(noise + 20 * code[:, None])
    assert at(noise) < 0.1 and apart > 2.0
    usual = torch.bincount(code) / len(code)
    alone = sum(float(u * torch.log(u / (0.02 * u + 0.98 * (i == j)))) * float(usual[j])
                for j in range(3) for i, u in enumerate(usual))  # fmt: skip
    assert apart == pytest.approx(alone, rel=1e-3)


def test_mixing_pulls_batches_together():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(120, 2, generator=generator)
    code = torch.arange(120) % 2
    z = (z + 2.0 * code[:, None]).requires_grad_()
    model = type("M", (), {"fuse": SharedPrivate(["a"], 2)})()
    term = separation.Mixing("run", 2)
    adam = torch.optim.Adam([z], lr=0.05)
    batch = type("B", (), {"covariates": {"run": code}})()
    for _ in range(150):
        latent = Latent(Posterior(z[None], torch.zeros_like(z)[None]), None, z[None], None, batch, None, model)
        adam.zero_grad()
        term(latent).backward()
        adam.step()
    gap = (z[code == 1].mean(0) - z[code == 0].mean(0)).norm() / z.std()
    assert float(gap.detach()) < 0.6  # from 2.0 · √2 over a spread of about 1.4


@torch.no_grad()
def test_orthogonal_is_the_mean_squared_correlation(data):
    model = small(data, orthogonal=True)
    latent = at_work(model, data, slice(0, 200))
    z = {name: latent.q.mean[0][:, place].detach().numpy() for name, place in model.fuse.places.items()}
    by_hand = [np.corrcoef(z["shared"].T, z[f"own/{m}"].T)[:4, 4:] ** 2 for m in ("rna", "protein")]
    assert float(separation.orthogonal(latent)) == pytest.approx(np.mean(by_hand), rel=1e-2)


# ---------------------------------------------------------------- what a trained model says


def told(z: np.ndarray, data: MuData, column: str) -> float:
    """Accuracy of a logistic regression that was fitted on the train split, on the rest."""
    from sklearn.linear_model import LogisticRegression

    y, train = data.obs[column].to_numpy(), (data.obs["split"] == "train").to_numpy()
    fitted = LogisticRegression(max_iter=2000).fit(z[train], y[train])
    return fitted.score(z[~train], y[~train])


def test_planted_structure_is_told_apart(trained, data):
    found = latents.of(trained, data)
    assert told(found["shared"], data, "kind") > 0.95
    assert told(found["shared"], data, "run") < 0.55  # chance 0.33
    assert told(found["batch/rna"], data, "run") == told(found["batch/protein"], data, "run") == 1.0
    assert told(data["rna"].X, data, "run") == 1.0


def test_corrected_data_lose_the_batch_and_keep_the_class(trained, data):
    corrected = latents.decoded(trained, data, "rna", corrected=True)
    denoised = latents.decoded(trained, data, "rna")
    assert told(denoised, data, "run") > 0.95 and told(corrected, data, "kind") > 0.95
    run = pd.get_dummies(data.obs["run"]).to_numpy(float)
    means = [run.T @ x / run.sum(0)[:, None] for x in (denoised, corrected)]
    assert means[1].std(0).mean() < 0.35 * means[0].std(0).mean()


def test_translation_tells_the_class_and_the_targets_batch(trained, data):
    test = (data.obs["split"] == "test").to_numpy()
    y = data["protein"].X[test]
    told_of = latents.decoded(trained, data, "protein", "rna", split="test")
    assert told_of.shape == y.shape
    train = data[data.obs["split"] == "train"]
    same = np.stack([train["protein"].X[(train.obs["kind"] == k).to_numpy()].mean(0) for k in data.obs["kind"][test]])
    assert ((y - told_of) ** 2).mean() < 0.8 * ((y - same) ** 2).mean()


def test_several_sources_speak_together_whatever_the_minibatch(trained, data):
    rows = np.arange(data.n_obs)
    mosaic = MuData({"rna": data["rna"][rows >= 100].copy(), "protein": data["protein"][rows < 250].copy()})
    mosaic = mosaic[data.obs_names].copy()
    mosaic.obs = data.obs.copy()
    one, two = (latents.decoded(trained, mosaic, "rna", ["rna", "protein"], batch_size=n) for n in (4096, 32))
    assert np.allclose(one, two, atol=1e-5)


def test_a_translation_never_sees_its_target(trained, data):
    other = data.copy()
    other["protein"].X = np.random.default_rng(1).normal(size=other["protein"].shape).astype(np.float32)
    one, two = (latents.decoded(trained, d, "protein", "rna") for d in (data, other))
    assert np.array_equal(one, two)


def test_mosaics_are_embedded_whole(trained, data):
    rows = np.arange(data.n_obs)
    mosaic = MuData({"rna": data["rna"][rows >= 100].copy(), "protein": data["protein"][rows < 250].copy()})
    mosaic = mosaic[data.obs_names].copy()
    mosaic.obs = data.obs.copy()
    found, whole = latents.of(trained, mosaic), latents.of(trained, data)
    assert np.isfinite(found["shared"]).all()
    assert np.isnan(found["own/rna"][:100]).all() and np.isfinite(found["own/rna"][100:]).all()
    assert np.allclose(found["shared"][100:250], whole["shared"][100:250], atol=1e-5)
    filled = latents.decoded(trained, mosaic, "rna")
    translated = latents.decoded(trained, data, "rna", "protein")
    assert np.isfinite(filled).all()
    assert np.corrcoef(filled[:100].ravel(), translated[:100].ravel())[0, 1] > 0.99


def test_mosaics_train(data):
    rows = np.arange(data.n_obs)
    mosaic = MuData({"rna": data["rna"][rows >= 120].copy(), "protein": data["protein"][rows < 240].copy()})
    mosaic = mosaic[data.obs_names].copy()
    mosaic.obs = data.obs.copy()
    model = small(mosaic, table=True, told=True)
    samples = Samples(mosaic, "cpu", covariates=["run"])
    weights = models.mean_squared(samples.n_vars)
    history = training.fit(model, samples, epochs=25, batch_size=64, lr=3e-3, weights=weights, progress=False)
    assert np.isfinite(history["value"]).all()
    assert told(latents.of(model, mosaic)["shared"], data, "kind") > 0.9


def test_write_puts_layers_and_latents_where_the_field_expects_them(trained, data):
    copy = data.copy()
    latents.write(trained, copy)
    assert copy.obsm["X_mima"].shape == (N, 4) and copy.obsm["X_mima_own_rna"].shape == (N, 4)
    assert set(copy["rna"].layers) == {"denoised", "corrected", "from_protein", "corrected_from_protein"}
    assert np.allclose(copy["rna"].layers["from_protein"], latents.decoded(trained, data, "rna", "protein"))


def test_saved_and_loaded_a_model_says_the_same(trained, data, tmp_path):
    models.save(trained, tmp_path / "mima.safetensors")
    again = models.load(tmp_path / "mima.safetensors")
    assert np.array_equal(latents.of(again, data)["shared"], latents.of(trained, data)["shared"])
    part = data[data.obs["run"] == "run 2"].copy()  # codes would start at 0 here; names do not
    rows = (data.obs["run"] == "run 2").to_numpy()
    assert np.allclose(latents.of(again, part)["batch/rna"], latents.of(trained, data)["batch/rna"][rows])


def test_an_unknown_batch_is_read_as_an_average_one(trained, data):
    new = data.copy()
    new.obs["run"] = new.obs["run"].astype(str).replace("run 2", "run 9")
    with pytest.warns(UserWarning, match="run 9"):
        found = latents.of(trained, new)
    rows = (new.obs["run"] == "run 9").to_numpy()
    assert not found["batch/rna"][rows].any() and np.isfinite(found["shared"]).all()


def test_counts_have_a_likelihood_of_counts(data):
    counts = data.copy()
    rng = np.random.default_rng(0)
    counts["rna"].X = rng.poisson(np.exp(0.5 * data["rna"].X) * 3 + 0.05).astype(np.float32)
    counts.uns["dataset"] = {"modalities": {"rna": "counts", "protein": "continuous"}}
    model = small(counts, heads={"rna": NegativeBinomialHead}, table=True, told=True)
    samples = Samples(counts, "cpu", covariates=["run"])
    training.fit(model, samples, epochs=10, batch_size=64, lr=3e-3, weights={"kl": 0.1}, progress=False)
    denoised = latents.decoded(model, counts, "rna")
    assert np.allclose(denoised.sum(1), counts["rna"].X.sum(1), rtol=1e-3)
    assert np.allclose(latents.decoded(model, counts, "rna", corrected=True).sum(1), 1e4, rtol=1e-3)


# ---------------------------------------------------------------- what is refused


def test_training_needs_the_batches(data):
    model = small(data)
    with pytest.raises(ValueError, match="covariates=\\['run'\\]"):
        training.fit(model, data, epochs=1, batch_size=64, progress=False)
    few = models.mima({"rna": 24, "protein": 12}, {"run": 2}, n_latent=4, hidden=(8,))
    with pytest.raises(ValueError, match="the model has 2 batches, the data 3"):
        training.fit(few, Samples(data, "cpu", covariates=["run"]), epochs=1, batch_size=64, progress=False)


def test_reading_needs_the_column_the_modality_and_the_right_model(trained, data):
    bare = data.copy()
    del bare.obs["run"]
    with pytest.raises(ValueError, match="corrects for 'run', which is no column"):
        latents.of(trained, bare)
    with pytest.raises(ValueError, match="no modality 'atac'"):
        latents.decoded(trained, data, "rna", "atac")
    other = data.copy()
    other.obs["run"] = other.obs["run"].astype(str).replace("run 0", "run 7")
    with pytest.raises(ValueError, match="stand for other batches than in training"):
        latents.of(trained, Samples(other, "cpu", covariates=["run"]))
    with pytest.raises(ValueError, match="no modality 'proteins'"):
        small(data, heads={"proteins": NegativeBinomialHead})
    with pytest.raises(ValueError, match="one column of batches"):
        models.mima({"rna": 3}, {"run": 2, "site": 3})
    with pytest.raises(ValueError, match=r"models\.mima"):
        latents.of(models.varix({"rna": 24, "protein": 12}), data)
