"""Perturbation and links: derivatives against differences, closed forms on a linear decoder, planted links."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from conftest import build
from scipy.stats import spearmanr

from helpers import links, models, multiome, perturbation, training
from helpers.batches import Samples
from helpers.decoders import BernoulliHead, GaussianHead
from helpers.models.dgd import start_at
from helpers.perturbation import Wanted, gradient_step, jacobian, perturb, published_step
from helpers.priors import GaussianMixture, Together

N, D = 60, 3
TYPES = ["A", "B"]


def paired(kinds=("counts", "counts"), n=N, seed=0):
    """Cells of two types with 6 genes on chr1 and chr2 and 8 peaks, of which pairs lie around the genes of chr1."""
    rng = np.random.default_rng(seed)
    x = {"rna": sp.csr_matrix(rng.poisson(5, (n, 6))), "atac": sp.csr_matrix(rng.poisson(1, (n, 8)))}
    mdata = build(x, kinds=dict(zip(x, kinds, strict=True)))
    mdata.obs["cell_type"] = pd.Categorical(np.array(TYPES)[np.arange(n) % 2])
    genes, peaks = mdata["rna"].var, mdata["atac"].var
    genes["chromosome"], genes["tss"] = ["chr1"] * 3 + ["chr2"] * 3, [10_000, 50_000, 900_000] * 2
    peaks["chromosome"] = ["chr1"] * 4 + ["chr2"] * 4
    peaks["start"] = [9_000, 49_000, 61_000, 500_000] * 2
    peaks["end"] = peaks["start"] + 500
    return mdata


def linear_model(mdata, weights, codes, components=1, head=None):
    """A DGD whose decoder is one linear layer, with its weights and codes set by hand."""
    samples = Samples(mdata, "cpu")
    torch.manual_seed(0)
    heads = {"rna": GaussianHead, "atac": GaussianHead} if head is None else head
    model = models.dgd(samples.n_vars, len(samples), D, components, hidden=(), heads=heads).eval()
    for m, head in model.decoders[0].heads.items():
        layer = next(each for each in head.children() if isinstance(each, torch.nn.Linear))
        layer.weight.data, layer.bias.data = (
            torch.as_tensor(weights[m], dtype=torch.float32),
            torch.zeros(len(weights[m])),
        )
    hold(model, samples, codes)
    return model


def hold(model, samples, z):
    """Give the model codes of all samples."""
    model.encoders[0].start_at(torch.as_tensor(z, dtype=torch.float32))
    model.encoders[0].remember(samples[torch.arange(len(samples))])


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    weights = {"rna": rng.normal(size=(6, D)), "atac": rng.normal(size=(8, D))}
    return weights, rng.normal(size=(N, D))


@pytest.fixture
def counted():
    """Counts under a decoder with a hidden layer."""
    mdata = paired()
    samples = Samples(mdata, "cpu")
    torch.manual_seed(1)
    model = models.scdgd(samples.n_vars, len(samples), D, 2, hidden=(12,)).eval()
    hold(model, samples, drawn()[1])
    return mdata, model


# --- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_jacobian_agrees_with_differences(counted, modality):
    model = counted[1].double()
    z = torch.randn(4, D, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found, h = jacobian(model, z, modality), 1e-6
    for k, way in enumerate(torch.eye(D, dtype=torch.double)):
        up, down = (model.decode(z + s * h * way)[modality].mean.log() for s in (1, -1))
        torch.testing.assert_close(found[..., k], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)
    ways = torch.randn(2, D, dtype=torch.double)
    torch.testing.assert_close(jacobian(model, z, modality, ways), found @ ways.T)


def test_responses_are_logs_where_values_cannot_be_negative():
    weights, codes = drawn()
    mdata = paired()
    model = linear_model(mdata, weights, codes, head={"rna": GaussianHead, "atac": BernoulliHead})
    z = torch.as_tensor(codes[:5], dtype=torch.float32)
    slope = torch.as_tensor(weights["atac"], dtype=torch.float32)
    torch.testing.assert_close(jacobian(model, z, "rna"), torch.as_tensor(weights["rna"]).float().expand(5, 6, D))
    share = torch.sigmoid(z @ slope.T)  # d log σ(a) / da = 1 − σ(a)
    torch.testing.assert_close(jacobian(model, z, "atac"), (1 - share)[..., None] * slope)


# --- steps ---------------------------------------------------------------------------------------------------------


def wish(z, columns, response, count=0.0, covariance=None):
    k = len(columns)
    cov = torch.eye(D) if covariance is None else covariance
    return Wanted(
        "rna",
        torch.tensor(columns),
        torch.full((len(z), k), count),
        torch.as_tensor(response).expand(len(z), k),
        {"rna": torch.full((len(z), 1), 30.0), "atac": torch.full((len(z), 1), 8.0)},
        cov.expand(len(z), D, D),
        slice(None),
    )


def test_gradient_step_is_the_closed_form_on_a_linear_decoder():
    """δ = S w Δ / (wᵀ S w + ridge): the gene is changed as wanted, and no shorter way does it."""
    weights, codes = drawn()
    model = linear_model(paired(), weights, codes)
    z, w = torch.as_tensor(codes[:4]).float(), torch.as_tensor(weights["rna"][2]).float()
    root = torch.randn(D, D, generator=torch.Generator().manual_seed(3))
    cov = root @ root.T + 0.1 * torch.eye(D)
    aim = (z @ w)[:, None] + 0.7
    moved = gradient_step(model, z, wish(z, [2], aim, covariance=cov), ridge=0.0)
    torch.testing.assert_close(moved - z, (cov @ w * 0.7 / (w @ cov @ w)).expand(4, D))
    torch.testing.assert_close(moved @ w, aim[:, 0])
    held = gradient_step(model, z, wish(z, [2], aim, covariance=cov), ridge=0.3)
    torch.testing.assert_close(held - z, (moved - z) * (w @ cov @ w) / (w @ cov @ w + 0.3))
    far = gradient_step(model, z, wish(z, [2], float("-inf"), covariance=cov), ridge=0.0)
    torch.testing.assert_close(far @ w, z @ w - 1)  # silence is out of reach: one nat at a time


def test_gradient_step_does_not_depend_on_the_scale_of_the_space():
    """Codes twice as large under weights half as large: the same effect on every feature."""
    weights, codes = drawn()
    mdata = paired()
    one = linear_model(mdata, weights, codes)
    two = linear_model(mdata, {m: w / 2 for m, w in weights.items()}, 2 * codes)
    found = [perturb(model, mdata, "rna1").X for model in (one, two)]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_a_set_of_genes_moves_together():
    weights, codes = drawn()
    model = linear_model(paired(), weights, codes)
    z, w = torch.as_tensor(codes[:4]).float(), torch.as_tensor(weights["rna"][[0, 3]]).float()
    moved = gradient_step(model, z, wish(z, [0, 3], z @ w.T + torch.tensor([0.5, -0.2])), ridge=0.0)
    torch.testing.assert_close((moved - z) @ w.T, torch.tensor([0.5, -0.2]).expand(4, 2))


def test_published_step_is_one_step_of_torch_adam(counted):
    _, model = counted
    z = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    aim = wish(z, [1], float("-inf"))
    free = z.clone().requires_grad_()
    p = model.decode(free, aim.library)["rna"]
    r = p.log_r.exp()[1]
    (r * ((r + p.mean[:, 1]) / r).log()).sum().backward()  # −log p(0)
    optimiser = torch.optim.Adam([free], lr=0.01, betas=(0.5, 0.7), weight_decay=1e-4)
    optimiser.step()
    moved = published_step(model, z, aim)
    torch.testing.assert_close(moved, free.detach())
    torch.testing.assert_close((moved - z).abs(), torch.full_like(z, 0.01), rtol=1e-3, atol=0)


# --- perturb -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [gradient_step, published_step])
def test_silence_and_activation_are_opposite(step):
    mdata = paired()
    model = models.scdgd({"rna": 6, "atac": 8}, N, D, 2, hidden=()).eval()
    hold(model, Samples(mdata, "cpu"), drawn()[1])
    own, other = (
        [perturb(model, mdata, "rna2", target=m, change=c, step=step).X for c in ("silence", "activate")]
        for m in ("rna", "atac")
    )
    assert (own[0][:, 2] < 0).all() and (own[1][:, 2] > 0).all()
    assert np.corrcoef(other[0].ravel(), other[1].ravel())[0, 1] < -0.9


def test_a_bent_decoder_is_followed_with_smaller_steps(counted):
    """No cell ends further from what was asked for, also where a whole step would lead away."""
    mdata, model = counted
    down, up = (perturb(model, mdata, "rna2", target="rna", change=c).X[:, 2] for c in ("silence", "activate"))
    assert (down <= 0).all() and (up >= 0).all() and min((down < 0).mean(), (up > 0).mean()) > 0.95
    whole = perturb(model, mdata, "rna2", target="rna", change="activate", step=partial(gradient_step, reach=0.01))
    assert (whole.X[:, 2] > 0).mean() > 0.95 and whole.X[:, 2].max() < 0.02


def test_steps_end_at_the_multiple_that_was_asked_for(counted):
    mdata, model = counted
    found = perturb(model, mdata, "rna2", target="rna", change=1.5, n_steps=15)
    reached = found.X[:, 2]
    assert np.median(reached) == pytest.approx(np.log2(1.5), rel=0.1)
    assert not perturb(model, mdata, "rna2", change=1.0).X.any()


def test_effects_are_perturbed_minus_original(counted):
    mdata, model = counted
    found = perturb(model, mdata, ["rna0", "rna4"], split="test")
    before, change = found.layers["original"], found.layers["difference"]
    np.testing.assert_allclose(before.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.X, np.log2((before + change) / before), atol=1e-5)
    test = mdata.obs["split"] == "test"
    assert list(found.obs_names) == list(mdata.obs_names[test]) and found.var.equals(mdata["atac"].var)
    z = model.encoders[0].table.weight[torch.from_numpy(np.flatnonzero(test))]
    np.testing.assert_allclose(before, torch.softmax(model.decode(z)["atac"].log_mean, -1).detach(), rtol=1e-4)


def test_groups_are_means_of_their_cells(counted):
    """With a step that knows no groups, averages by class are averages of the cells."""
    mdata, model = counted
    cells = perturb(model, mdata, "rna1", step=published_step, batch_size=7)
    grouped = perturb(model, mdata, "rna1", step=published_step, by="cell_type")
    assert list(grouped.obs_names) == TYPES and list(grouped.obs["n_cells"]) == [N // 2, N // 2]
    for k, name in enumerate(TYPES):
        own = (mdata.obs["cell_type"] == name).to_numpy()
        np.testing.assert_allclose(grouped.layers["difference"][k], cells.layers["difference"][own].mean(0), atol=1e-7)
    mdata["rna"].X[:10, 1] = 0
    mdata["rna"].X.eliminate_zeros()
    hold(model, Samples(mdata, "cpu"), drawn()[1])
    assert perturb(model, mdata, "rna1", expressing=True).n_obs == (mdata["rna"].X[:, 1].toarray() > 0).sum() < N


def test_any_modality_to_any_other_and_continuous_values():
    """On a linear decoder of continuous values, effects are differences: J_p S J_g / (J_g S J_g + ridge) · Δ."""
    weights, codes = drawn()
    mdata = paired(kinds=("continuous", "continuous"))
    model = linear_model(mdata, weights, codes)
    found = perturb(model, mdata, "atac3", source="atac", target="rna")
    off = codes - codes.mean(0)
    cov = (off.T @ off + D * off.T @ off / (N - 1)) / (N + D - 1)
    w = weights["atac"][3]
    expected = -weights["rna"] @ cov @ w / (w @ cov @ w + 0.01)
    np.testing.assert_allclose(found.X, np.tile(expected, (N, 1)), rtol=1e-3, atol=1e-5)


def test_latent_dimensions_of_covariates_stay():
    weights, codes = drawn()
    model = linear_model(paired(), weights, codes)
    z = torch.as_tensor(codes[:3]).float()
    for step in (gradient_step, published_step):
        aim = wish(z, [0], float("-inf"))
        some = replace(aim, place=slice(0, 2), covariance=aim.covariance[:, :2, :2])
        moved = step(model, z, some) - z
        assert (moved[:, :2] != 0).all() and not moved[:, 2].any()


def test_the_basal_part_of_a_prior_moves_and_gives_the_groups():
    """Codes with a part for a covariate: its dimension stays, components are those of the basal part."""
    weights, codes = drawn()
    mdata = paired()
    model = linear_model(mdata, weights, codes)
    parts = {"site": GaussianMixture(1, 2), "basal": GaussianMixture(2, 3)}
    model.prior = Together(parts)
    cells = perturbation.read(model, mdata, ["rna", "atac"], None, None)
    assert cells.place == slice(1, 3) and cells.covariance.shape == (len(cells.names), 2, 2)
    with torch.no_grad():
        own = parts["basal"].responsibilities(cells.z[:, 1:]).argmax(1)
    assert [cells.names[g] for g in cells.group] == [f"component {k}" for k in own]
    away = gradient_step(
        model, cells.z, replace(wish(cells.z, [0], 0.0), covariance=cells.covariance[cells.group], place=cells.place)
    )
    assert torch.equal(away[:, 0], cells.z[:, 0])


def test_cells_without_a_class_are_left_out(counted):
    mdata, model = counted
    mdata.obs.loc[mdata.obs_names[:5], "cell_type"] = None
    found = perturb(model, mdata, "rna0", by="cell_type")
    assert found.obs["n_cells"].sum() == N - 5
    assert links.link(model, mdata, by="cell_type").groupby("group", observed=True)["n_cells"].first().sum() == N - 5
    with pytest.raises(ValueError, match="no sample of split 'test' has a class in 'cell_type'"):
        mdata.obs["cell_type"] = mdata.obs["cell_type"].where(mdata.obs["split"] != "test")
        perturb(model, mdata, "rna0", by="cell_type", split="test")


# --- links ---------------------------------------------------------------------------------------------------------


def planted():
    """Gene 0 and peak 0 follow one direction of the codes, in type A; gene 1 and peak 1 another, opposite ways."""
    weights = {m: np.zeros((n, D)) for m, n in (("rna", 6), ("atac", 8))}
    weights["rna"][0] = weights["atac"][0] = [1, 0, 0]
    weights["rna"][1], weights["atac"][1] = [0, 1, 0], [0, -1, 0.2]
    weights["rna"][3:], weights["atac"][2:] = [0.7, 0.7, 0.1], [0, 0, 1]
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(N, D))
    mdata = paired(kinds=("continuous", "continuous"))
    return mdata, linear_model(mdata, weights, codes), codes


def test_planted_links_are_found_with_their_signs():
    mdata, model, _ = planted()
    table = links.link(model, mdata, by="cell_type")
    assert set(table["group"]) == set(TYPES) and list(table["n_cells"].unique()) == [N // 2]
    best = links.strongest(table).set_index(["gene", "peak"])
    assert best.loc[("rna0", "atac0"), "score"] > 0.99 and best.loc[("rna1", "atac1"), "score"] < -0.95
    assert best.loc[("rna0", "atac0"), "distance"] == -750 and best.loc[("rna1", "atac2"), "distance"] == 11_250
    assert ("rna0", "atac3") not in best.index and ("rna0", "atac4") not in best.index, "beyond 100 kb; chr2"
    row = table[(table["gene"] == "rna0") & (table["peak"] == "atac0")]
    assert np.allclose(row["p_value"], 1 / 4)  # three genes on the other chromosome, none of them as close
    truth = pd.DataFrame({"gene": ["rna0", "rna1"], "peak": ["atac0", "atac1"]})
    assert links.link_auc(table, truth) == 1.0


def test_scores_are_the_correlation_of_what_codes_predict():
    """For a linear decoder: over the cells of a group, but for the shrinkage of its covariance."""
    mdata, model, codes = planted()
    cells = perturbation.read(model, mdata, ["rna", "atac"], None, None)
    assert cells.names == ["component 0"]
    found = links.associations(model, mdata)
    w = {m: model.decoders[0].heads[m].mean.weight.detach().numpy() for m in ("rna", "atac")}
    expected = np.corrcoef((codes @ w["rna"].T).T, (codes @ w["atac"].T).T)[:6, 6:]
    np.testing.assert_allclose(found.X[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-4)
    assert found.uns["n_cells"] == {"component 0": N} and not found.X[2].any(), "a gene that codes do not move"


def test_a_peak_that_is_closed_in_a_type_scores_less_there(counted):
    """score = correlation × √(share in the type / share in the type where the peak is most open)."""
    mdata, model = counted
    cells = perturbation.read(model, mdata, ["rna", "atac"], "cell_type", None)
    found = links.associations(model, mdata, by="cell_type")
    slopes = jacobian(model, cells.z, "rna"), jacobian(model, cells.z, "atac")
    share = torch.softmax(model.decode(cells.z)["atac"].log_mean, 1).detach()
    level = torch.stack([share[cells.group == k].mean(0) for k in (0, 1)])
    for k, name in enumerate(TYPES):
        gene, peak = (slope[cells.group == k].mean(0) for slope in slopes)
        cov, var = (
            gene @ cells.covariance[k] @ peak.T,
            [torch.diag(j @ cells.covariance[k] @ j.T) for j in (gene, peak)],
        )
        score = cov / torch.outer(*var).sqrt() * (level[k] / level.amax(0)).sqrt()
        np.testing.assert_allclose(found.layers[name], score, atol=1e-4)


def test_one_pass_gives_what_pairs_one_by_one_give(counted, monkeypatch):
    mdata, model = counted
    wide = links.associations(model, mdata, by="cell_type")
    monkeypatch.setattr(links, "BLOCK", 200)  # a few cells at a time
    table = links.link(model, mdata, window=None, by="cell_type")
    assert len(table) == 2 * 6 * 8 and table["distance"].isna().all()
    for name in TYPES:
        own = table[table["group"] == name].pivot(index="gene", columns="peak", values="score")
        np.testing.assert_allclose(own.loc[wide.obs_names, wide.var_names], wide.layers[name], atol=1e-5)


def test_p_values_count_the_null_by_hand(counted):
    mdata, model = counted
    wide = np.abs(links.associations(model, mdata).to_df())
    table = links.link(model, mdata, by=None, window=100_000)
    one = links.strongest(table.query("group == 'component 0'"))
    layer = links.associations(model, mdata).to_df("component 0").abs()
    assert wide.shape == layer.shape == (6, 8) and len(one) == 2 * 2 * 3
    for row in one.itertuples():
        other = [g for g in layer.index if (int(g[-1]) < 3) != (int(row.gene[-1]) < 3)]
        larger = (layer.loc[other, row.peak] >= layer.loc[row.gene, row.peak]).sum()
        assert row.p_value == pytest.approx((1 + larger) / (1 + len(other)))
    everyone = links.link(model, mdata, window=None)
    own = everyone.query("group == 'component 0' and gene == 'rna0' and peak == 'atac4'").iloc[0]
    larger = (layer.loc[["rna1", "rna2"], "atac4"] >= layer.loc["rna0", "atac4"]).sum()
    assert own["p_value"] == pytest.approx((1 + larger) / 3), "a pair is not part of its own null"


def test_p_values_are_uniform_without_links():
    """Genes and peaks that follow codes at random: p is below α in a share α of pairs."""
    rng = np.random.default_rng(0)
    n_genes, n_peaks = 60, 100
    x = {m: rng.normal(size=(N, n)) for m, n in (("rna", n_genes), ("atac", n_peaks))}
    mdata = build(x)
    mdata["rna"].var["chromosome"], mdata["rna"].var["tss"] = np.resize(["chr1", "chr2"], n_genes), 1000
    mdata["atac"].var["chromosome"] = np.resize(["chr1", "chr2"], n_peaks)
    mdata["atac"].var["start"], mdata["atac"].var["end"] = 2000, 2500
    weights = {m: rng.normal(size=(v.shape[1], D)) for m, v in x.items()}
    table = links.link(linear_model(mdata, weights, rng.normal(size=(N, D))), mdata)
    assert len(table) == n_genes * n_peaks / 2
    for alpha in (0.1, 0.5):
        assert (table["p_value"] <= alpha).mean() == pytest.approx(alpha, abs=0.04)
    assert (table["fdr"] >= table["p_value"] - 1e-12).all() and (table["fdr"] < 0.05).mean() < 0.01


def test_spearman_and_distance():
    mdata = paired()
    table = links.spearman_links(mdata, by="cell_type", split="train")
    own = ((mdata.obs["cell_type"] == "B") & (mdata.obs["split"] == "train")).to_numpy()
    share = {m: mdata[m].X.toarray()[own] / mdata[m].X.toarray()[own].sum(1, keepdims=True) for m in mdata.mod}
    row = table.query("group == 'B' and gene == 'rna1' and peak == 'atac2'").iloc[0]
    assert row["score"] == pytest.approx(spearmanr(share["rna"][:, 1], share["atac"][:, 2])[0], abs=1e-5)
    assert row["n_cells"] == own.sum()
    near = links.distance_links(mdata, "rna1").set_index("peak")
    assert near.loc["atac1", "score"] == pytest.approx(1 - 750 / 100_000)
    assert set(near.index) == {"atac0", "atac1", "atac2"}


def test_specificity_asks_for_the_right_type():
    rows = [("g", "p", "A", -0.9), ("g", "p", "B", 0.2), ("g", "q", "A", 0.1), ("h", "p", "A", 0.8)]
    table = pd.DataFrame(rows, columns=["gene", "peak", "group", "score"])
    truth = pd.DataFrame({"gene": ["g"], "peak": ["p"], "types": ["A;C"]})
    assert links.specificity(table, truth) == 1.0
    assert links.link_auc(table, truth) == 1.0
    with pytest.raises(ValueError, match="1 of 1 pairs of the table are known links"):
        links.link_auc(table[:2], truth)
    with pytest.raises(ValueError, match="known links act in 1 of 1 rows"):
        links.specificity(table[:1], truth)


def test_planted_factors_act_with_their_signs_and_links_come_first():
    """A small simulation: silencing an activator closes the peaks with its motif, silencing a repressor opens them."""
    mdata = multiome.multiome(600, 100, 600, 4, 1, 4, rna_depth=3000, atac_depth=1500, noise=0.3)
    samples = Samples(mdata, "cpu")
    torch.manual_seed(0)
    model = models.scdgd(samples.n_vars, len(samples), 8, 4, hidden=(30,))
    start_at(model, start(samples))
    training.fit(model, samples, epochs=40, batch_size=64, lr=5e-3, weight_decay=1e-4, progress=False)
    for gene, sign in zip(*multiome.factors(mdata)[["gene", "sign"]].to_numpy().T, strict=True):
        found = perturb(model, mdata, gene, by="cell_type")
        bound = (found.var["motifs"] == gene).to_numpy()
        assert np.sign(found.X[:, bound].mean() - found.X[:, ~bound].mean()) == -sign
    truth = multiome.links(mdata)
    controls = [links.link_auc(each, truth) for each in (links.spearman_links(mdata), links.distance_links(mdata))]
    assert links.link_auc(links.link(model, mdata, by="cell_type"), truth) > max(controls) + 0.05


def start(samples):
    """A PCA of log shares, the modalities at equal variance."""
    batch, train = samples[torch.arange(len(samples))], samples.rows("train")
    each = [torch.log1p(1e3 * batch.x[m] / batch.library[m]) for m in samples.modalities]
    x = torch.cat([(v - v[train].mean(0)) / v[train].var(0).sum().sqrt() for v in each], 1)
    return x @ torch.linalg.svd(x[train], full_matrices=False)[2][:8].T


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_questions_are_told_apart(counted):
    mdata, model = counted
    with pytest.raises(ValueError, match="modality 'rna' has no feature 'RNA1x'; did you mean 'rna1'"):
        perturb(model, mdata, ["rna0", "RNA1x"])
    with pytest.raises(ValueError, match="model has no modality 'atax'; did you mean 'atac'"):
        perturb(model, mdata, "rna0", target="atax")
    with pytest.raises(ValueError, match="column 'celltype' is not in obs; did you mean 'cell_type'"):
        links.link(model, mdata, by="celltype")
    with pytest.raises(ValueError, match="change 'silent' is not known; did you mean 'silence'"):
        perturb(model, mdata, "rna0", change="silent")
    with pytest.raises(ValueError, match="change=-1 must be a multiple"):
        perturb(model, mdata, "rna0", change=-1)
    with pytest.raises(ValueError, match="n_steps=0 must be at least 1"):
        perturb(model, mdata, "rna0", n_steps=0)
    mdata["rna"].X = sp.csr_matrix(mdata["rna"].X.toarray() * (np.arange(6) != 3))
    hold(model, Samples(mdata, "cpu"), drawn()[1])
    for by in (None, "cell_type"):
        with pytest.raises(ValueError, match="no cell has a count of 'rna3': expressing=False"):
            perturb(model, mdata, "rna3", by=by, expressing=True)
    with pytest.raises(ValueError, match="pass the MuData"):
        perturb(model, Samples(mdata, "cpu"), "rna0")
    with pytest.raises(ValueError, match="name at least one gene"):
        perturb(model, mdata, [])


def test_cells_without_codes_are_told_what_to_do(counted):
    _, model = counted
    with pytest.raises(ValueError, match=r"samples have no code in this model.*inference\.infer"):
        perturb(model, paired(seed=5), "rna0")
    with pytest.raises(ValueError, match=r"inference\.infer"):
        links.link(model, paired(n=N + 5))


def test_features_must_be_those_of_the_model(counted):
    mdata, model = counted
    fewer = mdata[:, ~mdata.var_names.isin(["atac7"])].copy()
    hold(model, Samples(fewer, "cpu"), drawn()[1])
    with pytest.raises(ValueError, match="'atac' has 7 features and the model 8"):
        links.link(model, fewer)


def test_a_window_needs_coordinates(counted):
    mdata, model = counted
    mdata["rna"].var.loc["rna1", "tss"] = np.nan
    with pytest.warns(UserWarning, match="left out of links for want of coordinates, of 'rna': 'rna1'"):
        assert "rna1" not in set(links.link(model, mdata)["gene"])
    with pytest.raises(ValueError, match="no coordinates for 'rna1' of 'rna'; window=None takes all pairs"):
        links.link(model, mdata, "rna1")
    assert len(links.link(model, mdata, "rna1", window=None)) == 8 * 2
    with pytest.raises(ValueError, match="window=0 must be a number of base pairs above 0"):
        links.link(model, mdata, window=0)
    del mdata["atac"].var["start"]
    with pytest.raises(ValueError, match="'atac' has no coordinates: var lacks 'start'"):
        links.link(model, mdata)
    mdata["rna"].var["chromosome"] = mdata["atac"].var["chromosome"] = "chr1"
    with pytest.raises(ValueError, match="genes on other chromosomes"):
        links.link(model, mdata, window=None)
