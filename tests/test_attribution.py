"""Integrated gradients against the weights of a linear model and their own completeness; members of a term found."""

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build
from scipy import stats
from sklearn.metrics import roc_auc_score

from helpers import attribution, datasets, models, robustness, tasks
from helpers.batches import Samples
from helpers.ontology import Ontology
from helpers.training import fit


def linear(n_vars, n_latent=3):
    """An autoencoder without hidden layers: the means are affine in the input."""
    torch.manual_seed(0)
    return models.varix(n_vars, n_latent, n_layers=0)


def weights(model, n_vars):
    """Modality -> weights of the means [n_latent, n_vars]."""
    w = model.encoders[0].head.weight.detach()[: model.encoders[0].n_latent]
    return {m: part.numpy() for m, part in zip(n_vars, w.split(list(n_vars.values()), dim=1), strict=True)}


def test_a_linear_model_is_attributed_by_its_weights(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = linear(samples.n_vars)
    rows = samples.rows("test")
    found = attribution.attributions(model, samples, rows, steps=3, batch_size=7)
    for m, w in weights(model, samples.n_vars).items():
        x = np.abs(samples[rows].x[m].numpy())
        np.testing.assert_allclose(found[m], np.abs(w) * x.mean(0), rtol=1e-4, atol=1e-6)


def test_attributions_add_up_to_the_change_of_the_mean(two_modalities):
    """Completeness: their sum is f(x) - f(baseline), in a trained model with ReLU and batch normalisation."""
    samples = Samples(two_modalities, "cpu")
    torch.manual_seed(0)
    model = models.varix(samples.n_vars, 4)
    fit(model, samples, epochs=5, batch_size=32, lr=5e-3)
    batch = samples[samples.rows("test")]
    baseline = {"rna": np.full(30, 0.3)}
    at_baseline = {m: torch.zeros_like(x) + (0.3 if m == "rna" else 0) for m, x in batch.x.items()}
    with torch.no_grad():
        there = model.encode(batch)[0].mean[0]
        start = model.encode(type(batch)(at_baseline, batch.mask, batch.library, batch.index))[0].mean[0]
    for term in range(4):
        parts = attribution.integrated_gradients(model, batch, term, steps=200, baseline=baseline)
        total = sum(part.sum(1) for part in parts.values())
        torch.testing.assert_close(total.float(), (there - start)[:, term], atol=2e-2, rtol=2e-2)


def test_the_baseline_has_no_attribution(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = linear(samples.n_vars)
    own = {m: x[0].numpy() for m, x in samples[torch.tensor([4])].x.items()}
    found = attribution.attributions(model, samples, torch.tensor([4]), baseline=own)
    assert all(np.abs(v).max() < 1e-6 for v in found.values())


def test_batches_terms_and_mode_do_not_matter(two_modalities):
    samples = Samples(two_modalities, "cpu")
    torch.manual_seed(0)
    model = models.varix(samples.n_vars, 4, dropout=0.5)
    rows = samples.rows("test")
    whole = attribution.attributions(model.train(), samples, rows, steps=4)
    assert not model.training
    parts = attribution.attributions(model, samples, rows, terms=[2, 0], steps=4, batch_size=5)
    for m in whole:
        np.testing.assert_allclose(parts[m], whole[m][[2, 0]], rtol=1e-4, atol=1e-6)


def test_samples_without_a_modality_do_not_dilute_it():
    rng = np.random.default_rng(0)
    names = {"rna": [f"s{i}" for i in range(60)], "protein": [f"s{i}" for i in range(20)]}
    x = {"rna": rng.normal(size=(60, 8)), "protein": rng.normal(size=(20, 5))}
    samples = Samples(build(x, names=names), "cpu")
    model = linear(samples.n_vars)
    shifted = {m: np.ones(n) for m, n in samples.n_vars.items()}
    found = attribution.attributions(model, samples, torch.arange(60), steps=2, baseline=shifted)
    w = weights(model, samples.n_vars)
    np.testing.assert_allclose(found["rna"], np.abs(w["rna"]) * np.abs(x["rna"] - 1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["protein"], np.abs(w["protein"]) * np.abs(x["protein"] - 1).mean(0), rtol=1e-4)


def test_several_encoders_and_counts_with_covariates():
    rng = np.random.default_rng(0)
    mdata = md.MuData({"rna": ad.AnnData(rng.poisson(3, (30, 6)).astype(np.float32))})
    mdata.uns["dataset"] = {"modalities": {"rna": "counts"}}
    mdata.obs["site"] = pd.Categorical(rng.choice(["a", "b"], 30))
    samples = Samples(mdata, "cpu", covariates=["site"])
    seen = []

    class Reader(torch.nn.Module):
        modalities = ("rna",)

        def forward(self, batch):
            seen.append((len(batch), len(batch.library["rna"]), len(batch.covariates["site"]), len(batch.mask["rna"])))
            share = batch.x["rna"] / batch.library["rna"]
            return models.assembly.Posterior(share[:, :2] * (1 + batch.covariates["site"][:, None]), None)

    model = linear({"rna": 6}, 2)
    model.encoders = torch.nn.ModuleList([Reader()])
    found = attribution.attributions(model, samples, torch.arange(30), steps=5)["rna"]
    assert all(len(set(sizes)) == 1 for sizes in seen)  # captum repeats all of them alike
    batch = samples[torch.arange(30)]
    expected = (batch.x["rna"] / batch.library["rna"])[:, :2] * (1 + batch.covariates["site"][:, None])
    np.testing.assert_allclose(np.diag(found[:, :2]), expected.mean(0).numpy(), rtol=1e-4)
    assert found[0, 1:].max() == found[1, 2:].max() == 0


def test_members_of_a_planted_term_are_found():
    """Two latent factors with features of their own: attributions of a trained model separate members from others."""
    rng = np.random.default_rng(0)
    member = np.zeros((2, 40), bool)
    member[0, :10], member[1, 10:20] = True, True
    z = rng.normal(size=(300, 2))
    samples = Samples(build({"rna": z @ member.astype(float) + 0.3 * rng.normal(size=(300, 40))}), "cpu")
    torch.manual_seed(0)
    model = models.varix(samples.n_vars, 2, n_layers=1, factor=2, dropout=0.0)
    fit(model, samples, epochs=60, batch_size=32, lr=5e-3, weights={"kl": 0.1}, progress=False)
    means = torch.cat([model.encode(samples[torch.arange(300)])[0].mean[0]]).detach().numpy()
    r = np.abs(np.corrcoef(means.T, z.T)[:2, 2:])
    either = member.any(0)
    found = attribution.attributions(model, samples, samples.rows("test"), steps=8)["rna"]
    assert (attribution.agreement(found, np.stack([either, either])) > 0.95).all() and r.max() > 0.6


def test_agreement_is_scikit_learns_auroc():
    rng = np.random.default_rng(0)
    scores, member = rng.integers(0, 6, size=(5, 40)).astype(float), rng.random((5, 40)) < 0.3  # with ties
    expected = [roc_auc_score(m, s) for m, s in zip(member, scores, strict=True)]
    np.testing.assert_allclose(attribution.agreement(scores, member), expected)
    np.testing.assert_allclose(attribution.agreement(scores * 7 + 1, member), expected)
    assert np.isnan(attribution.agreement(scores[:2], np.array([[True] * 40, [False] * 40]))).all()
    assert attribution.agreement(member.astype(float), member).tolist() == [1] * 5
    noise = attribution.agreement(rng.random((400, 60)), rng.random((400, 60)) < 0.3)
    assert noise.mean() == pytest.approx(0.5, abs=0.02)


def test_errors(two_modalities):
    samples = Samples(two_modalities, "cpu")
    with pytest.raises(ValueError, match="at least one sample, and rows is empty"):
        attribution.attributions(linear(samples.n_vars), samples, torch.arange(0))
    with pytest.raises(ValueError, match="baseline names 'rnaa'; the modalities are 'rna', 'protein'"):
        attribution.attributions(linear(samples.n_vars), samples, torch.arange(3), baseline={"rnaa": np.zeros(3)})
    with pytest.raises(ValueError, match=r"attribution has shape \(2, 3\) and membership \(2, 4\)"):
        attribution.agreement(np.ones((2, 3)), np.ones((2, 4)))


# --- controls, and what terms tell ---------------------------------------------------------------------------------


def side_by_side(samples):
    return torch.cat(list(samples[torch.arange(len(samples))].x.values()), 1).numpy()


def test_first_components_are_those_of_pca_on_train(two_modalities):
    from sklearn.decomposition import PCA

    samples = Samples(two_modalities, "cpu")
    x, train = side_by_side(samples), samples.rows("train").numpy()
    members = np.zeros((x.shape[1], 2), bool)
    members[:5, 0] = members[3:9, 1] = True
    found = attribution.first_components(samples, members)
    for j in range(2):
        own = x[:, members[:, j]]
        expected = PCA(1).fit(own[train]).transform(own)[:, 0]
        assert np.abs(np.corrcoef(found[:, j], expected)[0, 1]) > 1 - 1e-6
        np.testing.assert_allclose(np.abs(found[:, j]), np.abs(expected), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="1 terms have no feature"):
        attribution.first_components(samples, np.column_stack([members, np.zeros(len(members))]))


def test_a_shuffled_ontology_keeps_sizes_and_overlaps_and_changes_members():
    rng = np.random.default_rng(0)
    members = {"rna": rng.random((40, 3)) < 0.4, "protein": rng.random((20, 3)) < 0.5}
    features = {m: tuple(f"{m}{i}" for i in range(len(mask))) for m, mask in members.items()}
    onto = Ontology("toy", (("a", "b", "c"),), (), features, members, pd.DataFrame())
    mixed = attribution.shuffled(onto, seed=1)
    for m, mask in members.items():
        np.testing.assert_array_equal(mixed.members[m].T.astype(int) @ mixed.members[m], mask.T.astype(int) @ mask)
        assert (mixed.members[m] != mask).any()
        np.testing.assert_array_equal(attribution.shuffled(onto, seed=1).members[m], mixed.members[m])
    assert mixed.terms == onto.terms and (mixed.sizes() == onto.sizes()).all()
    np.testing.assert_array_equal(attribution.stacked(onto), np.vstack([members["rna"], members["protein"]]))


def test_kinds_are_explained_by_members_of_their_own():
    members = {"a": np.eye(4, 2, dtype=bool), "b": np.eye(4, 2, k=-1, dtype=bool)}
    drivers = {kind: mask.T + 0.1 for kind, mask in members.items()}
    found = attribution.explained(drivers, members)
    assert list(found.kind) == ["a", "a", "b", "b"] and (found["AUC of attribution"] == 1).all()
    swapped = attribution.explained(drivers, {"a": members["b"], "b": members["a"]})
    assert (swapped["AUC of attribution"] < 0.5).all()


def test_reconstruction_is_the_share_of_variance_of_the_members(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = linear(samples.n_vars)
    x = side_by_side(samples)
    members = np.random.default_rng(0).random((x.shape[1], 3)) < 0.5
    found = attribution.outcome(model, samples, members)
    rows = samples.rows("test").numpy()
    x, x_hat = x[rows], np.hstack(list(tasks.reconstruct(model, samples, "test").values()))
    for j in range(3):
        own = members[:, j]
        sse, sst = ((x - x_hat)[:, own] ** 2).sum(), ((x - x.mean(0))[:, own] ** 2).sum()
        assert np.isclose(found["R² of terms"][j], 1 - sse / sst, rtol=1e-4)
    assert np.isclose(found["R²"], 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rtol=1e-4)
    np.testing.assert_allclose(found["z"], tasks.embed(model, samples), rtol=1e-5, atol=1e-6)


def test_drivers_are_attributions_side_by_side(two_modalities):
    samples = Samples(two_modalities, "cpu")
    model = linear(samples.n_vars)
    parts = attribution.attributions(model, samples, samples.rows("test"), steps=3)
    found = attribution.drivers(model, samples, steps=3)
    np.testing.assert_allclose(found, np.hstack(list(parts.values())), rtol=1e-6)


def test_separation_is_the_auroc_whatever_the_sign():
    rng = np.random.default_rng(0)
    z, sex = rng.normal(size=(60, 2)), rng.choice(["f", "m"], 60).astype(object)
    z[:, 0] += sex == "f"
    auc = [roc_auc_score(sex == "m", z[:, j]) for j in range(2)]
    np.testing.assert_allclose(attribution.separation(z, sex), [max(a, 1 - a) for a in auc])
    np.testing.assert_allclose(attribution.separation(np.stack([z, -3 * z]), sex)[1], attribution.separation(z, sex))
    some = sex.copy()
    some[:10] = None
    np.testing.assert_allclose(attribution.separation(z, some), attribution.separation(z[10:], sex[10:]))


def test_separation_within_groups_sees_through_a_group_that_goes_with_the_class():
    rng = np.random.default_rng(0)
    tissue = np.repeat([0, 1], 500)
    sex = np.where(rng.random(1000) < np.where(tissue == 1, 0.9, 0.1), "f", "m")
    z = tissue[:, None] * 3 + rng.normal(size=(1000, 1))  # knows the tissue and nothing of the sex
    assert attribution.separation(z, sex)[0] > 0.85
    assert attribution.separation(z, sex, tissue)[0] < 0.56
    assert np.isnan(attribution.separation(z, sex, sex)).all()
    with pytest.raises(ValueError, match="two classes, found 1"):
        attribution.separation(z, ["f"] * 1000)


def test_variance_between_classes_is_that_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 90).astype(object)
    z = rng.normal(size=(90, 2)) + np.array([(labels == "a") * 2.0, np.zeros(90)]).T
    f = stats.f_oneway(*(z[labels == name, 0] for name in "abc")).statistic
    epsilon = 2 * (f - 1) / (2 * f + 87)  # Kelley 1935, from F with 2 and 87 degrees of freedom
    assert np.isclose(attribution.between_classes(z, labels)[0], epsilon)
    labels[:5] = None
    np.testing.assert_allclose(attribution.between_classes(z, labels), attribution.between_classes(z[5:], labels[5:]))
    many = [attribution.between_classes(rng.normal(size=(30, 1)), rng.choice([*"abcde"], 30))[0] for _ in range(400)]
    assert abs(np.mean(many)) < 0.02
    assert np.isnan(attribution.between_classes(np.ones((9, 1)), [*"abcabcabc"])).all()


def test_class_means_follow_what_they_should():
    rng = np.random.default_rng(0)
    labels = np.repeat([*"abcd"], 50)
    should = rng.normal(size=(4, 2)).repeat(50, 0) + rng.normal(size=(200, 2))
    z = np.column_stack([5 * should[:, 0] + 1, -should[:, 1]])
    np.testing.assert_allclose(attribution.class_means_follow(z, should, labels), [1, -1])
    assert attribution.class_means_follow(z, should, ["a"] * 100 + ["b"] * 100).size == 0


def test_kinds_are_compared_term_by_term():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(80, 3))
    kinds = {"good": truth + 0.1 * rng.normal(size=(4, 80, 3)), "noise": rng.normal(size=(4, 80, 3))}
    found = attribution.compare(kinds, ["x", "y", "z"], truth, truth[:, 0] > 0)
    assert list(found.kind) == ["good"] * 3 + ["noise"] * 3 and list(found.term[:3]) == ["x", "y", "z"]
    np.testing.assert_allclose(found.robustness[:3], robustness.robustness(kinds["good"]))
    np.testing.assert_allclose(found.right[3:], robustness.right_terms(kinds["noise"], truth))
    assert found["between classes"][0] > 0.5 > 0.1 > found["between classes"][1:].max()
    assert attribution.compare(kinds, ["x", "y", "z"], truth)["between classes"].isna().all()


def test_the_yardstick_is_planted_where_something_was():
    data = datasets.load("sim-bulk")
    names = list(data.uns["truth"]["pathways"])[2:5]
    components = np.random.default_rng(0).normal(size=(3, data.n_obs, 3))
    known = attribution.yardstick(data, names, components)
    np.testing.assert_array_equal(known, data.obsm["truth_pathways"][:, 2:5])
    assert known.attrs["what"] == "planted activity" and list(known.columns) == names
    other = attribution.yardstick(data, ["chr1", "chr2", "chr3"], components)
    np.testing.assert_allclose(other, robustness.align(components).mean(0))
    assert other.attrs["what"] == "first component"
