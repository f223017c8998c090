"""Components merged into clusters, what they stand for, and the study that compares ways to cluster counts."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import build
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from helpers import components, inference, models, tasks
from helpers.batches import Samples
from helpers.components import merged, merges
from helpers.priors import GaussianMixture

CENTRES = np.array([[0, 0, 0, 0], [6, 0, 0, 0], [0, 6, 3, 0]], float)


def blobs(n=600, seed=0, centres=CENTRES):
    """Codes around centres with a standard deviation of one, and whose they are."""
    rng = np.random.default_rng(seed)
    own = rng.integers(len(centres), size=n)
    return centres[own] + rng.normal(size=(n, centres.shape[1])), own


def mixture_at(means, sd=1.0):
    """A mixture with these means [k, d], one standard deviation and equal weights."""
    prior = GaussianMixture(means.shape[1], len(means), sd=sd)
    with torch.no_grad():
        prior.mean.copy_(torch.as_tensor(means))
    return prior


def cut(z, k, seed=0):
    """A mixture of k components at the k-means clusters of codes."""
    return mixture_at(KMeans(k, n_init=5, random_state=seed).fit(z).cluster_centers_)


def icl(x, own):
    """Integrated classification likelihood, nats, of Gaussians with one common diagonal covariance."""
    n, d = x.shape
    total, within = 0.0, np.zeros(d)
    for k in np.unique(own):
        total += (own == k).sum() * np.log((own == k).mean()) - d / 2 * np.log(n)
        within += ((x[own == k] - x[own == k].mean(0)) ** 2).sum(0)
    return total - n / 2 * np.log(within / n).sum()


# --- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 6, 9, 15])
def test_clusters_are_found_whatever_the_number_of_components(k):
    z, own = blobs()
    prior = cut(z, k)
    clusters = merged(prior, z)
    assert sorted(set(clusters)) == [0, 1, 2] and clusters.shape == (k,)
    assert adjusted_rand_score(own, clusters[components.component_of(prior, z)]) > 0.97
    count = np.bincount(clusters[components.component_of(prior, z)])
    assert (np.diff(count) <= 0).all()  # numbered from the largest


@pytest.mark.parametrize("k", [2, 3, 8])
def test_parts_of_one_gaussian_become_one_cluster(k):
    z = np.random.default_rng(k).normal(size=(1000, 6)) * [3, 1, 1, 1, 1, 1]
    assert (merged(cut(z, k), z) == 0).all()


def test_gains_are_differences_of_the_likelihood_and_no_pair_gains_more():
    z, _ = blobs(200)
    prior = cut(z, 6)
    own = components.component_of(prior, z)
    steps, found = merges(prior, z)
    assert list(steps.n_clusters) == [5, 4, 3, 2, 1] and len(found) == 6
    for before, after, step in zip(found, found[1:], steps.itertuples(), strict=False):
        assert icl(z, after[own]) - icl(z, before[own]) == pytest.approx(step.gain, abs=1e-6)
        heads = np.unique(before[own])
        for i, j in zip(*np.triu_indices(len(heads), 1), strict=True):
            other = np.where(before == heads[j], heads[i], before)
            assert icl(z, other[own]) <= icl(z, after[own]) + 1e-6
        assert (after[own] == np.where(before[own] == step.second, step.first, before[own])).all()  # nested
    assert (steps.gain[:3] > 0).all() and (steps.gain[3:] < 0).all()


def test_a_wanted_number_is_given():
    z, _ = blobs()
    prior = cut(z, 9)
    for n in (1, 2, 5, 9):
        assert len(set(merged(prior, z, n_clusters=n))) == n
    with pytest.raises(ValueError, match="n_clusters is 10; 9 components hold samples, so choose 1 to 9"):
        merged(prior, z, n_clusters=10)


def test_codes_drawn_to_their_components_need_another_space():
    x, own = blobs()
    prior = cut(x, 8)
    component = components.component_of(prior, x)
    drawn = prior.mean.detach().numpy()[component] + 0.02 * (x - x.mean(0))
    assert len(set(merged(prior, drawn))) == 8
    assert adjusted_rand_score(own, merged(prior, drawn, x)[component]) > 0.97


def test_units_of_the_space_and_constant_dimensions_do_not_matter():
    x, _ = blobs()
    prior = cut(x, 8)
    other = np.hstack([x * [1e-3, 5, 1, 200] + 7, np.full((len(x), 1), 3.0)])
    assert (merged(prior, x, other) == merged(prior, x)).all()


def test_components_without_samples_follow_the_most_probable():
    z, _ = blobs()
    prior = mixture_at(np.vstack([CENTRES, [[14, 0, 0, 0], [0, 14, 7, 0]]]))
    clusters = merged(prior, z)
    assert clusters[3] == clusters[1] and clusters[4] == clusters[2] and len(set(clusters)) == 3


def test_samples_that_are_all_alike_within_components_can_be_merged():
    z = np.repeat(CENTRES, 5, axis=0)
    assert list(np.bincount(merged(mixture_at(CENTRES), z))) == [1, 1, 1]
    assert (merged(mixture_at(CENTRES), np.zeros((20, 4))) == 0).all()


@pytest.mark.parametrize("space", [np.zeros((599, 2)), np.zeros(600), np.full((600, 2), np.nan)])
def test_the_space_must_fit_the_codes(space):
    z, _ = blobs()
    with pytest.raises(ValueError, match="finite and have a row for each of 600 codes"):
        merged(cut(z, 4), z, space)


def test_a_start_knows_how_wide_codes_lie():
    z, _ = blobs(3000)
    prior = GaussianMixture(4, 3, sd=0.01)
    prior.start_at(torch.from_numpy(z).float())
    assert float(prior.sd) == pytest.approx(0.7, rel=0.03)
    fixed = GaussianMixture(4, 3, "fixed", sd=0.3)
    fixed.start_at(torch.from_numpy(z).float())
    assert float(fixed.sd) == pytest.approx(0.3) and torch.allclose(
        torch.exp(-0.5 * fixed.neg_log_var), torch.tensor(0.3)
    )


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.fixture
def placed():
    """A scDGD without hidden layers whose codes lie at known components; twelve genes, four for each of three."""
    z, own = blobs(90)
    mdata = build({"rna": sp.csr_matrix(np.random.default_rng(0).poisson(3, size=(90, 12)))}, kinds={"rna": "counts"})
    mdata.obs["kind"] = [None if i < 5 else "abc"[o] for i, o in enumerate(own)]
    model = models.scdgd({"rna": 12}, 90, 4, 4, hidden=(), prior=mixture_at(np.vstack([CENTRES, [[99, 0, 0, 0]]])))
    model.encoders[0].start_at(torch.from_numpy(z).float())
    layer = model.decoders[0].heads["rna"].logits
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[4:8, 0] = layer.weight[8:, 1] = 0.3
        layer.bias.zero_()
    return model, mdata, own


def test_the_table_of_components_has_row_percentages(placed):
    model, mdata, own = placed
    table = components.component_table(model, mdata, "kind", split=None)
    assert list(table.columns) == ["a", "b", "c"] and list(table.index) == [0, 1, 2]
    np.testing.assert_allclose(table.sum(axis=1), 100)
    assert sum(table.attrs["n"].values()) == 85 and (np.diag(table) > 95).all()  # five have no class
    joined = components.component_table(model, mdata, "kind", split=None, clusters=np.array([0, 0, 1, 0]))
    n = np.bincount(own[5:])
    assert joined.index.name == "cluster" and joined.loc[0, "a"] == pytest.approx(100 * n[0] / (n[0] + n[1]), abs=2)
    train = components.component_table(model, Samples(mdata, "cpu", covariates=["kind"]), "kind")
    known = (mdata.obs["split"] == "train") & mdata.obs["kind"].notna()
    assert sum(train.attrs["n"].values()) == known.sum()
    with pytest.raises(ValueError, match="column 'kind': give Samples"):
        components.component_table(model, Samples(mdata, "cpu"), "kind")
    with pytest.raises(ValueError, match="'sort' is not a column"):
        components.component_table(model, mdata, "sort")
    with pytest.raises(ValueError, match="prior has no components"):
        components.component_table(models.vad({"rna": 12}, 90, 4), mdata, "kind")


def test_the_graph_has_the_distances_of_means(placed):
    prior = placed[0].prior
    edges = components.component_graph(prior)
    means = prior.mean.detach().numpy()
    np.testing.assert_allclose(edges.distance, np.sort(pdist(means)), rtol=1e-6)
    assert edges.percentile.iloc[-1] == 100 and (edges.percentile <= 50).sum() == 3
    row = edges.iloc[0]
    assert np.linalg.norm(means[int(row["first"])] - means[int(row["second"])]) == pytest.approx(row.distance)
    few = components.component_graph(prior, [0, 2])
    assert few[["first", "second"]].to_numpy().tolist() == [[0, 2]]
    for wrong in ([1], [0, 4]):
        with pytest.raises(ValueError, match="two or more of 4 components"):
            components.component_graph(prior, wrong)


def test_markers_are_the_genes_that_a_component_raises(placed):
    model, mdata, _ = placed
    names = mdata["rna"].var_names
    with torch.no_grad():
        model.prior.logits.copy_(torch.tensor([1.0, 0.5, 0.0, -50.0]))
    found = components.markers(model, 1, names, n=4)
    assert set(found.feature) == set(names[4:8]) and (found.log2_fold > 1).all()
    share = torch.softmax(torch.tensor(np.repeat([[0, 0, 0], [0, 1.8, 0], [0, 0, 1.8]], 4, axis=1)), 1).numpy() * 1e4
    weight = np.exp([1.0, 0.0])
    elsewhere = weight @ share[[0, 2], 4] / weight.sum()
    assert found.expected.iloc[0] == pytest.approx(share[1, 4], rel=1e-4)
    assert found.elsewhere.iloc[0] == pytest.approx(elsewhere, rel=1e-4)
    assert found.log2_fold.iloc[0] == pytest.approx(np.log2((share[1, 4] + 1) / (elsewhere + 1)), rel=1e-4)
    both = components.markers(model, 0, names, n=12, clusters=np.array([1, 0, 0, 1]))
    assert set(both.feature[:8]) == set(names[4:])
    with pytest.raises(ValueError, match="component 4 is unknown or leaves no other: there are 4 in all"):
        components.markers(model, 4, names)
    with pytest.raises(ValueError, match="leaves no other"):
        components.markers(model, [0, 1, 2, 3], names)
    with pytest.raises(ValueError, match="no modality 'rnaa'; did you mean 'rna'"):
        components.markers(model, 0, names, modality="rnaa")
    with pytest.raises(ValueError, match="3 names for 12 features"):
        components.markers(model, 0, names[:3])


# --- the study -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells():
    """240 cells of three types, sixty genes."""
    rng = np.random.default_rng(3)
    own = rng.integers(3, size=240)
    share = np.exp(rng.normal(size=(3, 60)))[own] * np.exp(0.3 * rng.normal(size=(240, 60)))
    x = rng.poisson(rng.lognormal(6, 0.2, size=(240, 1)) * share / share.sum(1, keepdims=True))
    mdata = build({"rna": sp.csr_matrix(x)}, kinds={"rna": "counts"})
    mdata.obs["kind"] = [None if i < 4 else f"type {o}" for i, o in enumerate(own)]
    return mdata, own


def test_pca_codes_know_the_train_split_alone(cells):
    mdata, own = cells
    samples = Samples(mdata, "cpu")
    z = components.pca_codes(samples, 5)
    other = mdata.copy()
    x = other["rna"].X.toarray()
    x[(other.obs["split"] == "test").to_numpy()] = 1
    other["rna"].X = sp.csr_matrix(x)
    train = samples.rows("train").numpy()
    np.testing.assert_array_equal(components.pca_codes(Samples(other, "cpu"), 5)[train], z[train])
    assert adjusted_rand_score(own, KMeans(3, n_init=5, random_state=0).fit_predict(z)) > 0.95
    np.testing.assert_allclose(components.pca_codes(samples, 8)[:, :5], z, atol=1e-4)
    with pytest.raises(ValueError, match="has no 61 dimensions: lower n_latent"):
        components.pca_codes(samples, 61)


def test_communities_are_planted_clusters():
    z, own = blobs(300)
    found = components.communities(z)
    assert adjusted_rand_score(own, found) > 0.9
    assert (found == components.communities(z)).all() and (np.diff(np.bincount(found)) <= 0).all()
    assert len(components.communities(z[:4])) == 4


def test_errors_of_reconstruction_follow_their_definitions(cells):
    mdata, _ = cells
    samples = Samples(mdata, "cpu")
    model = inference.infer(models.scdgd({"rna": 60}, 240, 3, 2, hidden=(8,)), samples, "test", tolerance=1.0)
    found = components.reconstruction(model, samples)
    rows = samples.rows("test").numpy()
    off = tasks.reconstruct(model, samples, "test")["rna"] - mdata["rna"].X[rows].toarray()
    assert found["rmse"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-4)
    assert found["rmse_per_cell"] == pytest.approx(np.sqrt((off**2).mean(1)).mean(), rel=1e-4)
    with torch.no_grad():
        terms = model.losses(samples[samples.rows("test")])
    assert found["nll"] == pytest.approx(terms["nll/rna"].item(), rel=1e-5)


def test_the_study_finds_planted_types_with_too_many_components(cells):
    mdata, _ = cells
    options = {"seeds": [0], "epochs": 20, "n_latent": 8, "hidden": (20,), "batch_size": 32, "lr": 5e-3}
    start = {"scDGD": components.from_pca}
    table = components.clusterings(mdata, "kind", [3, 6], starts=start, **options)
    by = table.set_index(["method", "k"])
    assert len(table) == 2 * 3 + 2 * 3 + 1 and table.k.isna().sum() == 1
    assert by.ari["scDGD", 3] > 0.9 and by.ari["scDGD, merged", 6] > 0.9 and by.ari["VAE, k-means", 3] > 0.9
    assert by.n_clusters["scDGD, merged", 6] == 3
    assert abs(by.ari["random labels", 3]) < 0.1 and abs(by.nmi["random labels", 3]) < 0.1
    assert by.nll["scDGD", 3] == by.nll["scDGD, merged", 3] and np.isnan(by.nll["PCA, k-means", 3])
    assert (by.rmse_per_cell.dropna() <= by.rmse.dropna()).all()  # a mean of roots is below the root of the mean
    samples = Samples(mdata, "cpu", covariates=["kind"])
    again = components.clusterings(samples, "kind", [3], starts=start, peers=False, **options)
    assert again.nll[0] == by.nll["scDGD", 3] and again.ari[0] == by.ari["scDGD", 3]


def test_starts_place_codes_where_they_say(cells):
    samples = Samples(cells[0], "cpu")
    z, rows = components.pca_codes(samples, 4), samples.rows("train")
    for start, other in ((components.codes_from_pca, 1), (components.codes_from_noise, 2)):
        models_of = [models.scdgd({"rna": 60}, 240, 4, 3) for _ in range(2)]
        before = models_of[0].prior.mean.detach().clone()
        for model, seed in zip(models_of, (1, other), strict=True):
            start(model, z, rows, seed)
        codes = [model.encoders[0].table.weight.detach() for model in models_of]
        assert codes[0][rows].square().sum(1).mean().sqrt() == pytest.approx(0.5, rel=0.1)
        assert torch.equal(codes[0], codes[1]) == (other == 1) and torch.equal(models_of[0].prior.mean, before)
