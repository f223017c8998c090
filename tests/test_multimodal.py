"""Joint models beside controls: closed forms of the controls, the scores, and what each setting leaves out."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from conftest import build
from scipy.stats import nbinom

from helpers import ablations, multimodal
from helpers.batches import Samples
from helpers.decoders import ForegroundHead
from helpers.likelihoods import NegativeBinomial, Shares
from helpers.multimodal import Training

HOW = Training(n_latent=3, n_components=2, hidden=(8,), epochs=4, batch_size=16, patience=None)


def cells(n=90, seed=0, modalities=("rna", "atac"), empty=False):
    """Two types, in which halves of the features are higher, seen at two sites; a label is missing here and there."""
    rng = np.random.default_rng(seed)
    kind, x = np.arange(n) % 2, {}
    for m, n_vars, depth in zip(modalities, (12, 20), (60, 15), strict=False):
        up = np.where((np.arange(n_vars) < n_vars // 2) == kind[:, None].astype(bool), 3.0, 1.0)
        x[m] = sp.csr_matrix(rng.poisson(depth * up / up.sum(1, keepdims=True)))
    if empty:
        x["atac"][0] = 0
    mdata = build(x, kinds=dict.fromkeys(x, "counts"))
    mdata.obs["cell_type"] = pd.Categorical(np.array(["A", "B"])[kind]).set_categories(["A", "B", "?"])
    mdata.obs.loc[mdata.obs_names[:3], "cell_type"] = "?"
    mdata.obs["site"] = pd.Categorical(np.array(["s1", "s2", "s3"])[rng.integers(0, 3, n)])
    return mdata


@pytest.fixture(scope="module")
def fitted():
    mdata = cells()
    return mdata, multimodal.train(mdata, Training(3, 2, (8,), epochs=25, batch_size=16, lr=1e-2), "site")[0]


# --- data ----------------------------------------------------------------------------------------------------------


def test_prepared_keeps_whole_counts_of_complete_cells():
    data = multimodal.prepared(cells(empty=True), "cell_type", n_features=10, unlabelled="?")
    assert data.n_obs == 89 and {*data.obs["split"]} == {"train", "valid", "test"}
    assert data["atac"].shape == (89, 10) and sp.issparse(data["atac"].X)
    assert all((a.X.data == np.round(a.X.data)).all() for a in data.mod.values())
    assert data.obs["cell_type"].isna().sum() == 2  # one of the three was the empty cell
    assert data.uns["dataset"]["name"] == "test"


# --- controls ------------------------------------------------------------------------------------------------------


def test_mean_profile_is_the_train_profile_times_depth():
    mdata = cells()
    samples = Samples(mdata, "cpu")
    batch = samples[samples.rows("test")]
    p = multimodal.mean_profile(samples)(batch)["rna"]
    total = mdata["rna"].X[(mdata.obs["split"] == "train").to_numpy()].sum(0).A1 + 0.5
    expected = batch.library["rna"].numpy() * total / total.sum()
    np.testing.assert_allclose(p.mean.numpy(), expected, rtol=1e-5)


def test_nll_of_a_control_is_that_of_scipy():
    samples = Samples(cells(), "cpu")
    predict = multimodal.mean_profile(samples)
    batch = samples[samples.rows("test")]
    p = predict(batch)["atac"]
    r, mean = p.log_r.exp().numpy(), p.mean.numpy()
    by_hand = -nbinom.logpmf(batch.x["atac"].numpy(), r, r / (r + mean)).sum(1)
    np.testing.assert_allclose(multimodal.per_cell(predict, samples, "atac"), by_hand, rtol=1e-4)


def test_dispersion_is_found_by_maximum_likelihood():
    rng = np.random.default_rng(0)
    mean, r = 400 / 8, 2.0
    x = rng.poisson(rng.gamma(r, mean / r, (1500, 8)))
    samples = Samples(build({"rna": sp.csr_matrix(x)}, kinds={"rna": "counts"}), "cpu")
    flat = {"rna": torch.full((1, 8), 1 / 8)}
    p = multimodal.as_counts(lambda batch: flat, samples, steps=400)(samples[torch.arange(5)])["rna"]
    assert float(p.log_r.exp().median()) == pytest.approx(r, rel=0.35)  # depth of a cell is given, hence a bit above


def test_a_useless_value_is_weighed_down_and_a_good_one_kept():
    samples = Samples(cells(n=300), "cpu")
    noise = torch.rand(300, 12, generator=torch.Generator().manual_seed(0)) ** 4
    flat = multimodal.per_cell(multimodal.mean_profile(samples), samples, "rna").mean()
    useless = multimodal.as_counts(lambda b: {"rna": noise[b.index]}, samples, steps=300)
    good = multimodal.as_counts(lambda b: {"rna": b.x["rna"]}, samples, steps=300)
    assert multimodal.per_cell(useless, samples, "rna").mean() == pytest.approx(flat, rel=0.02)
    assert multimodal.per_cell(good, samples, "rna").mean() < 0.9 * flat


def test_pca_and_neighbours_see_the_type_that_the_mean_does_not():
    mdata = cells(n=200)
    samples = Samples(mdata, "cpu")
    flat = multimodal.per_cell(multimodal.mean_profile(samples), samples, "rna").mean()
    assert multimodal.per_cell(multimodal.from_pca(samples, 2), samples, "rna").mean() < flat - 1
    near = multimodal.from_neighbours(mdata, "atac", "rna", 3, 10)
    assert multimodal.per_cell(near, samples, "rna").mean() < flat - 0.5


# --- scores --------------------------------------------------------------------------------------------------------


def test_losses_given_a_total_do_not_depend_on_other_features():
    """A model of half of the features, and one of all that says the same of those, are equal."""
    mdata = cells()
    logits, log_r = torch.randn(1, 12), torch.randn(12)

    def model(n):
        return lambda b: {"rna": NegativeBinomial(Shares(logits[:, :n], b.library["rna"].log()), log_r[:n])}

    whole, half = Samples(mdata, "cpu"), Samples(mdata[:, mdata["rna"].var_names[:6]].copy(), "cpu")
    found = multimodal.per_cell(model(12), whole, "rna", columns=np.arange(6))
    np.testing.assert_allclose(found, multimodal.per_cell(model(6), half, "rna"), rtol=1e-5)


def test_halves_of_the_counts_add_up_and_leave_other_cells_whole():
    mdata = cells()
    first, second = multimodal.halves(mdata, seed=1)
    test = (mdata.obs["split"] == "test").to_numpy()
    for m in mdata.mod:
        a, b, x = (each[m].X.toarray() for each in (first, second, mdata))
        np.testing.assert_array_equal(a[test] + b[test], x[test])
        np.testing.assert_array_equal(a[~test], x[~test])
        np.testing.assert_array_equal(b[~test], x[~test])
        assert a[test].sum() / x[test].sum() == pytest.approx(0.5, abs=2 / float(x[test].sum()) ** 0.5)  # four sd
    assert (first.obs["split"] == mdata.obs["split"]).all()
    mdata["atac"].X = sp.csr_matrix(np.diag(np.ones(90))[:, :20])
    assert set(multimodal.halves(mdata)[0].obs["split"][test]) == {"unused"}


def test_codes_that_have_learned_noise_by_heart_are_found_out(fitted):
    """As many principal components as features: perfect on what it saw, and no better than chance on the other half."""
    mdata, model = fitted
    table = multimodal.reconstruction({"multiDGD": model}, mdata, n_latent=30)
    nll = table[table["modality"] == "atac"].set_index(["counts", "method"])["nll"]
    assert nll["seen", "PCA"] < nll["seen", "multiDGD"]
    assert nll["other half", "multiDGD"] < nll["other half", "PCA"]


def test_evaluate_scores_the_truth_perfectly_and_chance_as_chance():
    samples = Samples(cells(), "cpu")

    def truth(batch):
        logs = torch.where(batch.x["atac"] > 0, 0.0, -9.0)
        p = NegativeBinomial(Shares(logs, batch.library["atac"].log()), torch.zeros(20))
        return {"atac": p, "rna": p}

    table = multimodal.evaluate({"truth": truth, "flat": multimodal.mean_profile(samples)}, samples, ["atac"])
    best, flat = table.set_index("method").loc[["truth", "flat"]].to_dict("records")
    assert best["auroc"] == best["auprc"] == 1 and best["kind"] == "model" and flat["kind"] == "control"
    assert flat["auroc"] < 0.8 and flat["positive"] == pytest.approx(
        float((samples[samples.rows("test")].x["atac"] > 0).float().mean())
    )


def test_rmse_and_r_are_those_of_numpy():
    samples = Samples(cells(), "cpu")
    predict = multimodal.from_pca(samples, 3)
    batch = samples[samples.rows("test")]
    x, mean = batch.x["rna"].numpy(), predict(batch)["rna"].mean.numpy()
    found = multimodal.agreement(predict, samples, "rna")
    assert found["rmse"] == pytest.approx(np.sqrt(((x - mean) ** 2).mean()), rel=1e-5)
    each = [np.corrcoef(np.log1p(x[:, j]), np.log1p(mean[:, j]))[0, 1] for j in range(12)]
    assert found["r"] == pytest.approx(sorted(each)[(len(each) - 1) // 2], abs=1e-4)  # torch takes the lower median


def test_models_hold_codes_of_test_cells_and_find_types_and_sites(fitted):
    mdata, model = fitted
    samples = Samples(mdata, "cpu")
    flat = multimodal.mean_profile(samples)
    better = multimodal.per_cell(flat, samples, "rna") - multimodal.per_cell(
        multimodal.predictor(model), samples, "rna"
    )
    assert better.mean() > 1
    z = multimodal.basal_codes(model, mdata, "test")
    assert z.shape[1] == 3 and set(multimodal.covariate_classes(model, samples, "site")) <= {0, 1, 2}
    kind = mdata.obs["cell_type"][mdata.obs["split"] == "test"].astype(str)
    assert ablations.same_neighbours(z, kind, 5) > 0.2


def test_planes_are_the_two_dimensions_of_the_covariate_and_the_main_ones_of_the_rest(fitted):
    mdata, model = fitted
    found = multimodal.planes(model, mdata, "cell_type", "site")
    z = multimodal.tasks.embed(model, mdata, "test")
    np.testing.assert_array_equal(found["site"], z[:, model.prior.place["site"]])
    assert np.corrcoef(found["cell_type"].T)[0, 1] == pytest.approx(0, abs=1e-3)
    assert list(multimodal.planes(model, mdata, "cell_type")) == ["cell_type"]


def test_translations_name_the_ceiling_and_the_controls(fitted):
    mdata, model = fitted
    table = multimodal.translations(model, mdata, steps=100, tolerance=0.1)
    assert set(zip(table["source"], table["target"], strict=True)) == {("rna", "atac"), ("atac", "rna")}
    top = table[table["method"] == "the model, seen itself"]
    assert np.allclose(top["ratio"], 1)
    ours = table[table["method"] == "the model"].set_index("target")
    flat = table[table["method"] == "mean profile"].set_index("target")
    assert (ours["ratio"] > 1).all() and (ours["ratio"] < flat["ratio"] + 0.1).all()
    assert (table["kind"] == "control").sum() == 4


def test_proteins_get_their_own_head_and_the_vae_the_same_decoder():
    mdata = cells(modalities=("rna", "protein"))
    samples = Samples(mdata, "cpu")
    model = multimodal.untrained(samples, HOW)
    assert isinstance(model.decoders[0].heads["protein"].head, ForegroundHead)
    vae, history = multimodal.train_vae(cells(), HOW)
    assert {"nll/rna", "nll/atac", "kl"} <= set(history["term"])
    assert vae.decoders[0].heads["rna"].head.logits.weight.shape == (12, 8)
