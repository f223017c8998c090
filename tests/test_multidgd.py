"""multiDGD: branches, covariates in spaces of their own, sparse counts, new classes, encoders afterwards, files."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from conftest import build
from sklearn.metrics import adjusted_rand_score
from torch import nn

from helpers import inference, models, tasks, training
from helpers.batches import Samples
from helpers.decoders import Branch, ForegroundHead, NegativeBinomialHead, TotalHead
from helpers.encoders import DenseEncoder
from helpers.models.dgd import start_at
from helpers.models.multidgd import start_covariates
from helpers.priors import BASAL, GaussianMixture, Together, parts_of

SITES = ["x", "y", "z"]


def planted(n=500, k=3, n_sites=2, seed=0, shift=1.0):
    """Counts of two modalities: classes known, and sites that move every feature a little."""
    rng = np.random.default_rng(seed)
    kind, site = rng.integers(k, size=n), rng.integers(n_sites, size=n)
    counts = {}
    for m, n_vars, depth in (("rna", 40, 400), ("atac", 60, 250)):
        level = rng.normal(size=(k, n_vars))[kind] + shift * rng.normal(size=(3, n_vars))[site]
        share = np.exp(level + 0.2 * rng.normal(size=(n, 1)))
        share *= rng.lognormal(np.log(depth), 0.3, size=(n, 1)) / share.sum(1, keepdims=True)
        counts[m] = sp.csr_matrix(rng.poisson(share))
    mdata = build(counts, kinds=dict.fromkeys(counts, "counts"))
    mdata.obs["kind"] = pd.Categorical([f"k{c}" for c in kind])
    mdata.obs["site"] = pd.Categorical(np.array(SITES)[site], SITES[:n_sites])
    return mdata


def profile_codes(samples, n_latent):
    """Principal components of log shares, all samples."""
    x = [np.log1p(1e3 * v / v.sum(1, keepdims=True)) for v in (samples[torch.arange(len(samples))].x.values())]
    x = np.hstack([np.asarray(v) for v in x])
    x = x - x[samples.rows("train").numpy()].mean(0)
    return x @ np.linalg.svd(x[samples.rows("train").numpy()], full_matrices=False)[2][:n_latent].T


def fitted(mdata, covariates=("site",), epochs=60, heads=None, seed=0):
    torch.manual_seed(seed)
    samples = Samples(mdata, "cpu", covariates=covariates)
    train = samples.rows("train")
    sizes = {name: samples.n_classes[name] for name in covariates}
    model = models.multidgd(
        samples.n_vars, len(samples), 4, 3, sizes, hidden=(32,), branch=(32,), n_train=len(train), heads=heads
    )
    start_at(model, profile_codes(samples, 4), train, seed=seed)
    start_covariates(model, samples)
    training.fit(model, samples, epochs=epochs, batch_size=64, lr=3e-3, weight_decay=1e-4, seed=seed)
    return samples, model


@pytest.fixture(scope="module")
def trained():
    mdata = planted()
    return mdata, *fitted(mdata)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_parts_of_a_prior_are_independent():
    torch.manual_seed(0)
    basal, site = GaussianMixture(3, 4), GaussianMixture(2, 2, "isotropic", sd=0.5)
    both, z = Together({BASAL: basal, "site": site}), torch.randn(7, 5)
    labels = torch.tensor([0, 1, -1, 0, 1, 1, 0])
    torch.testing.assert_close(both.log_prob(z), basal.log_prob(z[:, :3]) + site.log_prob(z[:, 3:]))
    known = basal.log_prob(z[:, :3]) + site.log_prob(z[:, 3:], labels)
    torch.testing.assert_close(both.log_prob(z, {"site": labels}), known)
    torch.testing.assert_close(both.log_prior(), basal.log_prior() + site.log_prior())
    drawn = both.sample(20_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000, 5)
    torch.testing.assert_close(drawn.mean(0)[3:], site.mean.detach().mean(0), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="one of them must be 'basal'"):
        Together({"site": site})


def test_one_more_component_leaves_the_others():
    mixture = GaussianMixture(2, 3, "isotropic")
    more = mixture.extended(torch.tensor([[2.0, 2.0], [4.0, 4.0]]))
    assert more.n_components == 4 and mixture.n_components == 3
    torch.testing.assert_close(more.mean[:3], mixture.mean)
    assert more.mean[3].tolist() == [3.0, 3.0]


def test_a_branch_is_layers_and_a_head():
    branch = Branch(4, [8, 6], 10, NegativeBinomialHead)
    told = branch(torch.randn(5, 4), torch.full((5, 1), 100.0))
    torch.testing.assert_close(told.mean.sum(1), torch.full((5,), 100.0))
    assert [layer.out_features for layer in branch.body if isinstance(layer, nn.Linear)] == [8, 6]
    assert branch.head.logits.in_features == 6


def test_published_sizes():
    model = models.multidgd({"rna": 13_431, "atac": 400}, 5, 20, 22, {"site": 4})
    assert model.prior.n_latent == 22 and model.prior.parts["site"].neg_log_var.shape == (4, 1)
    widths = {
        m: [v.out_features for v in arm.body if isinstance(v, nn.Linear)] for m, arm in model.decoders[0].heads.items()
    }
    assert widths == {"rna": [100, 116], "atac": [100, 100]}  # the larger of 100 and the root of the features
    assert float(model.prior.parts["site"].sd) == pytest.approx(0.2 * 2 / 4)
    large = models.multidgd({"rna": 5}, 5, 20, 81, {"site": 81})  # the published code rounds these deviations to 0
    assert bool(large.prior.log_prob(torch.zeros(1, 22)).isfinite())


def test_a_total_of_its_own_does_not_know_the_library():
    head = TotalHead(3, 7, total=500.0)
    h = torch.randn(4, 3)
    a, b = (head(h, torch.full((4, 1), n)).mean for n in (10.0, 1e5))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(head(torch.zeros(1, 3)).mean.sum(), torch.tensor(500.0))


# --- training ------------------------------------------------------------------------------------------------------


def test_terms_are_named_by_part(trained):
    _, samples, model = trained
    batch = samples[samples.rows("train")]
    terms = model.eval().losses(batch)
    assert list(terms) == ["nll/rna", "nll/atac", "prior/codes", "prior/site", "prior/mixture"]
    z = model.encoders[0].table.weight[batch.index]
    place, site = parts_of(model.prior)["site"]
    torch.testing.assert_close(terms["prior/site"], -site.log_prob(z[:, place]).mean())
    classes = model.train().losses(batch)["prior/site"]
    torch.testing.assert_close(classes, -site.log_prob(z[:, place], batch.covariates["site"]).mean())


def test_types_and_sites_are_found_apart(trained):
    """Components follow the types and not the sites; held-out samples find their site without a label."""
    mdata, samples, model = trained
    found = inference.infer(model, samples, "test")
    obs = mdata.obs[mdata.obs["split"] == "test"]
    component = tasks.cluster(found, samples, "test")
    assert adjusted_rand_score(obs["kind"], component) > 0.95
    place, site = parts_of(model.prior)["site"]
    z = torch.from_numpy(tasks.embed(found, samples, "test"))
    guessed = site.responsibilities(z[:, place]).argmax(-1).numpy()
    assert (guessed == obs["site"].cat.codes).mean() > 0.95


def test_covariates_must_come_with_the_data(trained):
    mdata, _, model = trained
    with pytest.raises(ValueError, match=r"the labels are in column 'site': give training.fit Samples"):
        training.fit(model, Samples(mdata, "cpu"), epochs=1)
    with pytest.raises(ValueError, match="a covariate cannot be called 'basal'"):
        models.multidgd({"rna": 5}, 5, covariates={"basal": 3})
    with pytest.raises(ValueError, match="'site' must have two classes"):
        models.multidgd({"rna": 5}, 5, covariates={"site": 1})


def test_two_covariates_have_two_places():
    mdata = planted(n=150)
    mdata.obs["donor"] = pd.Categorical(np.arange(150) % 3)
    samples, model = fitted(mdata, ("site", "donor"), epochs=2)
    assert model.prior.place == {BASAL: slice(0, 4), "site": slice(4, 6), "donor": slice(6, 8)}
    assert tasks.embed(inference.infer(model, samples, "test", steps=500, tolerance=1.0), samples, "test").shape[1] == 8


def test_covariates_start_at_their_components():
    mdata = planted(n=100)
    samples = Samples(mdata, "cpu", covariates=["site"])
    model = start_covariates(models.multidgd(samples.n_vars, 100, 4, 3, samples.n_classes), samples)
    place, site = parts_of(model.prior)["site"]
    z, train = model.encoders[0].table.weight.detach()[:, place], samples.rows("train")
    torch.testing.assert_close(z[train], site.mean.detach()[samples.covariates["site"][train]])
    torch.testing.assert_close(z[samples.rows("test")[0]], site.mean.detach().mean(0))


# --- sparse and dense ----------------------------------------------------------------------------------------------


def test_sparse_counts_train_and_are_inferred_like_dense_ones():
    mdata = planted(n=120)
    dense = mdata.copy()
    for m in dense.mod:
        dense.mod[m].X = dense[m].X.toarray()
    a, b = (fitted(data, epochs=3) for data in (mdata, dense))
    for (name, x), y in zip(a[1].state_dict().items(), b[1].state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3, equal_nan=True, msg=name)
    codes = [inference.codes(model, samples, "test") for samples, model in (a, b)]
    np.testing.assert_allclose(*codes, atol=0.03)


def test_a_batch_is_not_made_dense(trained):
    _, samples, model = trained
    batch = samples[samples.rows("train")[:8]]
    model.train().losses(batch)
    assert not batch.x.dense


# --- new samples ---------------------------------------------------------------------------------------------------


def test_a_missing_modality_is_told_by_the_other(trained):
    """Peaks from expression alone: far better than the mean profile, little worse than from both."""
    mdata, samples, model = trained
    test = samples[samples.rows("test")]
    alone = inference.infer(model, samples, "test", modalities=["rna"])
    whole = inference.infer(model, samples, "test")

    def nll(share):
        x, mean = test.x["atac"].numpy(), share * test.library["atac"].numpy()
        return float((mean - x * np.log(mean)).sum(1).mean())

    rows = samples.rows("test").numpy()
    told = tasks.translate(alone, samples, "rna", "atac", "test") / test.library["atac"].numpy()
    best = tasks.reconstruct(whole, samples, "test")["atac"] / test.library["atac"].numpy()
    mean = np.asarray(mdata["atac"].X[samples.rows("train").numpy()].mean(0))
    assert nll(best) <= nll(told) < nll(best) + 0.2 * (nll(mean / mean.sum()) - nll(best))
    assert len(rows) == len(told)


def test_mosaic_samples_train_and_gaps_are_filled():
    mdata = planted(n=200)
    some = mdata["atac"][:120].copy()
    names = {"rna": list(mdata.obs_names), "atac": list(some.obs_names)}
    mosaic = build({"rna": mdata["rna"].X, "atac": some.X}, kinds={"rna": "counts", "atac": "counts"}, names=names)
    mosaic.obs["site"] = mdata.obs["site"].to_numpy()
    _, model = fitted_mosaic(mosaic)
    full = tasks.impute(inference.infer(model, mosaic), mosaic)
    assert full["atac"].n_obs == 200 and int(full["atac"].obs["imputed"].sum()) == 80
    order = [str(name) for name in full.obs_names]
    x = full["atac"][order].X
    kept = [order.index(name) for name in some.obs_names]
    np.testing.assert_array_equal(np.asarray(x)[kept], some.X.toarray())


def fitted_mosaic(mdata):
    torch.manual_seed(0)
    samples = Samples(mdata, "cpu")
    model = models.multidgd(samples.n_vars, len(samples), 3, 2, hidden=(16,), branch=(16,))
    training.fit(model, samples, epochs=5, batch_size=64, lr=3e-3)
    return samples, model


def test_an_unseen_site_gets_a_component_of_its_own():
    """Samples of a third site, never trained on: a component is put around them, and their loss falls."""
    whole = planted(n=600, n_sites=3, seed=3)
    old = whole[whole.obs["site"] != "z"].copy()
    old.obs["site"] = old.obs["site"].cat.remove_unused_categories()
    _, model = fitted(old)
    new = whole[whole.obs["site"] == "z"].copy()
    among, own = inference.infer(model, new), inference.add_class(model, new, "site")
    place, site = parts_of(own.prior)["site"]
    assert site.n_components == 3 and model.prior.parts["site"].n_components == 2
    z = torch.from_numpy(tasks.embed(own, new))
    assert (site.responsibilities(z[:, place]).argmax(-1) == 2).float().mean() > 0.9

    def loss(fit):
        batch = Samples(new, "cpu")[torch.arange(new.n_obs)]
        told = fit.decode(tasks.z_of(fit, batch), batch.library)
        return float(sum(-inference.log_likelihood(p, batch.stored(m)).mean() for m, p in told.items()))

    assert loss(own) < loss(among)
    with pytest.raises(ValueError, match=r"no covariate 'sit'; did you mean 'site'\?"):
        inference.add_class(model, new, "sit")


def test_an_encoder_is_learned_afterwards(trained):
    """It reads new samples at once, is a good place to start from, and the decoder stays as it was."""
    mdata, samples, model = trained
    before = [p.detach().clone() for p in model.decoders.parameters()]
    reader = inference.amortised(model, samples, hidden=(64,), epochs=60, lr=3e-3, batch_size=64)
    assert all(torch.equal(a, b) for a, b in zip(before, reader.decoders.parameters(), strict=True))
    assert all(p.requires_grad for p in model.decoders.parameters())
    kind = mdata.obs.loc[mdata.obs["split"] == "test", "kind"]
    assert adjusted_rand_score(kind, tasks.cluster(reader, samples, "test")) > 0.9
    test, search = samples[samples.rows("test")], inference.Search(model, tuple(samples.modalities))
    found, warm = (tasks.z_of(inference.infer(model, samples, "test", start=start), test) for start in (None, reader))
    none = torch.zeros_like(found)
    losses = [float(search.loss(z, test).mean()) for z in (none, tasks.z_of(reader, test), found, warm)]
    assert losses[1] < losses[0] and max(losses[2:]) < losses[1] and abs(losses[3] - losses[2]) < 1.0


def test_an_encoder_of_one_s_own_is_trained(trained):
    _, samples, model = trained
    own = DenseEncoder(samples.n_vars, 6, [], stochastic=False)
    assert inference.amortised(model, samples, own, epochs=1, batch_size=64).encoders[0] is own


# --- bad input -----------------------------------------------------------------------------------------------------


def test_broken_and_empty_counts_are_named(trained):
    mdata, _, model = trained
    broken = mdata.copy()
    broken["rna"].X = broken["rna"].X * 0.5
    with pytest.raises(ValueError, match=r"'rna' holds \d+ values that are no whole numbers: a likelihood of counts"):
        inference.infer(model, broken)
    empty = mdata.copy()
    x = empty["atac"].X.toarray()
    x[[3, 8]] = 0
    empty.mod["atac"].X = sp.csr_matrix(x)
    with pytest.raises(ValueError, match=r"2 samples have not one count in modality 'atac': 's3', 's8'; leave them"):
        training.fit(model, Samples(empty, "cpu", covariates=["site"]), epochs=1)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_without_its_data(trained, tmp_path):
    mdata, samples, model = trained
    models.save(model, tmp_path / "whole.safetensors")
    again = models.load(tmp_path / "whole.safetensors")
    np.testing.assert_array_equal(tasks.embed(again, samples, "train"), tasks.embed(model, samples, "train"))
    models.save(model, tmp_path / "bare.safetensors", codes=False)
    bare = models.load(tmp_path / "bare.safetensors")
    assert bare.encoders[0].n_obs == 0
    test = mdata[samples.rows("test").numpy()].copy()
    np.testing.assert_array_equal(inference.codes(bare, test), inference.codes(model, test))
    found = inference.infer(bare, test)
    models.save(found, tmp_path / "found.safetensors")
    np.testing.assert_array_equal(
        tasks.embed(models.load(tmp_path / "found.safetensors"), test), tasks.embed(found, test)
    )


def test_heads_are_known_by_name_and_functions_are_not(trained, tmp_path):
    small = {"rna": 5, "protein": 4}
    named = models.multidgd(small, 3, 2, 2, heads={"protein": ForegroundHead})
    models.save(named, tmp_path / "a")
    assert isinstance(models.load(tmp_path / "a").decoders[0].heads["protein"].head, ForegroundHead)
    nameless = models.multidgd(small, 3, 2, 2, heads={"protein": lambda *n: ForegroundHead(*n)})
    models.save(nameless, tmp_path / "b")
    with pytest.raises(ValueError, match=r"cannot say how its model is built \(heads\): build it, and call load"):
        models.load(tmp_path / "b")
    into = models.load(tmp_path / "b", models.multidgd(small, 9, 2, 2, heads={"protein": ForegroundHead}))
    torch.testing.assert_close(into.prior.parts[BASAL].mean, nameless.prior.parts[BASAL].mean)
    with pytest.raises(ValueError, match="are not of this model"):
        models.load(tmp_path / "b", models.multidgd(small, 3, 4, 2))
    (tmp_path / "c").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is damaged or not one of ours"):
        models.load(tmp_path / "c")


def test_a_grown_model_and_its_encoder_are_loaded_too(trained, tmp_path):
    """A model with one more class, one of codes from a part of the modalities, and an encoder learned afterwards."""
    mdata, samples, model = trained
    test = mdata[samples.rows("test").numpy()].copy()
    grown = inference.add_class(model, test, "site")
    models.save(grown, tmp_path / "grown")
    again = models.load(tmp_path / "grown")
    assert again.prior.parts["site"].n_components == 3
    np.testing.assert_array_equal(tasks.embed(again, test), tasks.embed(grown, test))
    alone = inference.infer(model, test, modalities=["rna"])
    models.save(alone, tmp_path / "alone")
    np.testing.assert_array_equal(tasks.embed(models.load(tmp_path / "alone"), test), tasks.embed(alone, test))
    reader = inference.amortised(model, mdata, hidden=(8,), modalities=["rna"], epochs=1, batch_size=64)
    models.save(reader, tmp_path / "reader")
    np.testing.assert_array_equal(tasks.embed(models.load(tmp_path / "reader"), test), tasks.embed(reader, test))


def test_a_start_must_not_know_what_codes_must_not_see(trained):
    mdata, samples, model = trained
    both = inference.amortised(model, mdata, hidden=(8,), epochs=1, batch_size=64)
    with pytest.raises(
        ValueError, match="the encoder to start from reads 'atac', and codes are to be found from 'rna'"
    ):
        inference.infer(model, samples, "test", modalities=["rna"], start=both)


def test_other_features_are_noticed(trained):
    """By name and order, where a model is trained further, read from, or given new samples."""
    mdata, _, model = trained
    turned = mdata.copy()
    turned.mod["rna"] = turned["rna"][:, ::-1].copy()
    with pytest.raises(
        ValueError, match="on the same features in another order of modality 'rna': put the data in its"
    ):
        inference.infer(model, turned, "test")
    with pytest.raises(ValueError, match="in another order"):
        tasks.embed(model, turned, "train")
    renamed = mdata.copy()
    renamed["rna"].var_names = [f"x{k}" for k in range(renamed["rna"].n_vars)]
    with pytest.raises(ValueError, match="on 40 other features, such as 'rna0', 'rna1', 'rna2'"):
        training.fit(model, Samples(renamed, "cpu", covariates=["site"]), epochs=1)


def test_unsuitable_data_are_named(trained):
    mdata, samples, model = trained
    with pytest.raises(ValueError, match=r"no sample is in split 'tset'; did you mean 'test'\?"):
        inference.infer(model, samples, "tset")
    with pytest.raises(ValueError, match=r"has a code for each of 500 samples, and the data have \d+: build it with"):
        training.fit(model, mdata[:400].copy(), epochs=1)
    nameless = mdata.copy()
    del nameless.uns["dataset"]
    with pytest.raises(ValueError, match="do not say that it holds counts: load them by"):
        inference.infer(model, nameless, "test")
    with pytest.raises(ValueError, match="pass a MuData, not AnnData"):
        inference.infer(model, mdata["rna"])
    with pytest.raises(ValueError, match="covariate 'site' did not come with the data"):
        start_covariates(model, Samples(mdata, "cpu"))


def test_bf16_trains_counts_too(trained):
    _, samples, _ = trained
    small = models.multidgd(samples.n_vars, len(samples), 2, 2, samples.n_classes, hidden=(8,), branch=())
    history = training.fit(small, samples, epochs=2, batch_size=64, precision="bf16")
    assert np.isfinite(history["value"]).all()
