"""The simulated tissue: every planted structure can be found again, and what is not planted is not there."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from helpers import checks, datasets, prepare, tissue

SMALL = {"n_patients": 3, "n_spots": 60, "n_genes": 60, "n_ions": 40, "n_morphology": 20}


@pytest.fixture(scope="module")
def spots():
    return datasets.load("sim-spatial")


@pytest.fixture(scope="module")
def clean(spots):
    return tissue.clean(spots)


@pytest.fixture(scope="module")
def raw(spots):
    """20 principal components [n_obs, 20] of each modality as measured."""
    return {name: directions(spots, name) for name in spots.mod}


@pytest.fixture(scope="module")
def pure(clean):
    """The same of the planted values."""
    return {name: directions(clean, name) for name in clean.mod}


@pytest.fixture(scope="module")
def small():
    return tissue.tissue(**SMALL)


def values(mdata, name):
    """Standardised values [n_obs, n_vars]: log1p of counts per 10,000, log1p of intensities, morphology as it is."""
    x = mdata[name].X.toarray() if sp.issparse(mdata[name].X) else np.asarray(mdata[name].X)
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True)) if name == "rna" else np.log1p(x) if name == "msi" else x
    return (x - x.mean(0)) / (x.std(0) + 1e-9)


def directions(mdata, name, n=20):
    return PCA(n, svd_solver="randomized", random_state=0).fit_transform(values(mdata, name))


def told_by_neighbours(x, labels, held):
    """Share of the `held` spots whose label 15 nearest neighbours among the others tell."""
    labels = np.asarray(labels.astype(str))
    return KNeighborsClassifier(15).fit(x[~held], labels[~held]).score(x[held], labels[held])


def held_out(mdata, share=0.2):
    return np.random.default_rng(0).random(mdata.n_obs) < share


def without_means(x, groups):
    """Values less the mean of their group."""
    return x - pd.DataFrame(x).groupby(np.asarray(groups.astype(str))).transform("mean").to_numpy()


def explained(x, y):
    """Share of the variance of y [n, k] that a linear map of x, fitted on other spots, knows."""
    held = np.arange(len(x)) % 4 == 0
    x = np.hstack([x, np.ones((len(x), 1))])
    off = y[held] - x[held] @ np.linalg.lstsq(x[~held], y[~held], rcond=None)[0]
    return 1 - (off**2).sum() / ((y[held] - y[~held].mean(0)) ** 2).sum()


# --- form ---


def test_form_and_names(spots):
    assert {name: adata.shape for name, adata in spots.mod.items()} == {
        "rna": (1920, 300),
        "msi": (1920, 200),
        "morphology": (1920, 64),
    }
    counts = spots["rna"].X
    assert sp.issparse(counts) and counts.format == "csr" and np.array_equal(counts.data, np.round(counts.data))
    assert counts.sum(1).min() > 0 and 1500 < counts.sum(1).mean() < 3000
    assert np.isfinite(spots["msi"].X).all() and spots["msi"].X.min() > 0
    skew = np.mean([pd.Series(column).skew() for column in spots["msi"].X.T])
    assert skew > 1 and spots["morphology"].X.min() < 0 < spots["morphology"].X.max()
    about = spots.uns["dataset"]
    assert (about["label_key"], about["batch_key"]) == ("region", "section")
    assert about["modalities"] == {"rna": "counts", "msi": "continuous", "morphology": "continuous"}
    assert checks.problems(checks.parts_of(spots)) == []


def test_sections_belong_to_patients_and_sites(spots):
    obs = spots.obs
    assert obs["section"].nunique() == 16 and obs["patient"].nunique() == 8 and set(obs["site"]) == {"near", "far"}
    assert (obs["section"].value_counts() == 120).all()
    assert ((obs["patient"].astype(str) + "-" + obs["site"].astype(str)) == obs["section"].astype(str)).all()


def test_spots_lie_on_a_hexagonal_grid(spots):
    for _, rows in spots.obs.groupby("section", observed=True).indices.items():
        place = spots.obsm["spatial"][rows]
        assert place.min() == 0 and np.ptp(place, axis=0).min() > 600
        away = NearestNeighbors(n_neighbors=7).fit(place).kneighbors(place)[0][:, 1:]
        assert away.min() == pytest.approx(100) and np.median(away) == pytest.approx(100)


def test_the_same_seed_gives_the_same_data_and_another_one_others(small):
    again, other = tissue.tissue(**SMALL), tissue.tissue(**SMALL, seed=1)
    for name in small.mod:
        assert np.array_equal(values(small, name), values(again, name))
        assert not np.allclose(values(small, name), values(other, name))
    assert small.obs.equals(again.obs) and small.uns["dataset"]["sha256"] == again.uns["dataset"]["sha256"]


def test_more_patients_hold_the_fewer_ones(small):
    more = tissue.tissue(**SMALL | {"n_patients": 5})[small.obs_names]
    assert (more["rna"].X != small["rna"].X).nnz == 0 and np.array_equal(more["msi"].X, small["msi"].X)
    assert np.array_equal(more.obs["region"].astype(str)[small.obs["site"] == "far"],
                          small.obs["region"].astype(str)[small.obs["site"] == "far"])  # fmt: skip


def test_sizes_and_strengths_are_refused_by_name():
    for wrong, said in (
        ({"n_patients": 1}, "n_patients=1 must be at least 2"),
        ({"n_spots": 30}, "n_spots=30 a section at least 60"),
        ({"n_ions": 5}, "'msi' must have at least 20"),
        ({"depth": 3}, "depth=3 must be at least 50"),
        ({"batch": -1}, "batch=-1 must be >= 0"),
        ({"noise": float("nan")}, "noise=nan must be >= 0"),
    ):
        with pytest.raises(ValueError, match=said):
            tissue.tissue(**SMALL | wrong)
    with pytest.raises(ValueError, match="no option 'n_spot'; did you mean 'n_spots'"):
        datasets.load("sim-spatial", n_spot=60)


# --- regions ---


def test_regions_are_patches(spots):
    same = []
    for _, rows in spots.obs.groupby("section", observed=True).indices.items():
        place, region = spots.obsm["spatial"][rows], spots.obs["region"].cat.codes.to_numpy()[rows]
        near = NearestNeighbors(n_neighbors=7).fit(place).kneighbors(place)[1][:, 1:]
        same.append((region[near] == region[:, None]).mean())
    chance = (spots.obs["region"].value_counts(normalize=True) ** 2).sum()
    assert np.mean(same) > 0.6 > 3 * chance


def test_regions_lie_unevenly_but_common_ones_are_in_most_sections(spots):
    table = pd.crosstab(spots.obs["region"], spots.obs["section"])
    assert ((table.loc[list(tissue.REGIONS)] > 0).sum(axis=1) >= 10).all() and (table.sum(axis=1) >= 12).all()
    site = pd.crosstab(spots.obs["region"], spots.obs["site"], normalize="columns")
    assert site.loc["normal epithelium", "far"] > 1.5 * site.loc["normal epithelium", "near"]
    assert site.loc["tumour ISUP 5", "near"] > 2 * site.loc["tumour ISUP 5", "far"]


def test_a_rare_region_is_in_one_section(spots):
    found = tissue.rare(spots)
    assert set(found) == set(tissue.RARE) and len(set(found.values())) == 2
    for region, section in found.items():
        there = spots.obs["section"][spots.obs["region"] == region]
        assert set(there) == {section} and len(there) >= 12 and section.endswith("near")


def test_a_rare_region_can_be_told_from_the_other_tumours(spots, pure):
    tumour = spots.obs["region"].str.startswith("tumour").to_numpy()
    held = np.arange(tumour.sum()) % 3 == 0
    for name in tissue.RARE:
        is_it = (spots.obs["region"][tumour] == name).to_numpy()
        for x in (spots.obsm["truth_shared"], *pure.values()):
            learner = LogisticRegression(C=0.1, class_weight="balanced").fit(x[tumour][~held], is_it[~held])
            assert roc_auc_score(is_it[held], learner.decision_function(x[tumour][held])) > 0.97


# --- what drives the modalities ---


def test_regions_can_be_told_in_every_modality(spots, raw, pure):
    held = held_out(spots)
    largest = spots.obs["region"].value_counts(normalize=True).max()
    assert told_by_neighbours(spots.obsm["truth_shared"], spots.obs["region"], held) > 0.85
    for name in spots.mod:
        assert told_by_neighbours(pure[name], spots.obs["region"], held) > 0.8
        assert told_by_neighbours(raw[name], spots.obs["region"], held) > 1.5 * largest


def test_gradients_and_own_factors_are_smooth_in_space_but_not_quite(spots):
    place, section = spots.obsm["spatial"], spots.obs["section"].cat.codes.to_numpy()
    near = NearestNeighbors(n_neighbors=2).fit(np.column_stack([place, 1e5 * section]))
    near = near.kneighbors(np.column_stack([place, 1e5 * section]))[1][:, 1]
    for factors in (spots.obsm["truth_shared"][:, -3:], *(spots.obsm[f"truth_own_{m}"] for m in spots.mod)):
        assert factors.shape[1] == 3 and np.allclose(factors.std(0), 1, atol=0.15)
        along = [np.corrcoef(column, column[near])[0, 1] for column in factors.T]
        assert 0.25 < min(along) and max(along) < 0.6


def test_gradients_within_regions_are_seen_by_all_modalities(spots, pure):
    for x in pure.values():
        assert explained(without_means(x, spots.obs["region"]), spots.obsm["truth_shared"][:, -3:]) > 0.8


def test_within_regions_one_modality_knows_much_of_another_but_not_its_own_factors(spots, pure):
    rna, msi = (without_means(pure[name], spots.obs["region"]) for name in ("rna", "msi"))
    assert 0.3 < explained(rna, msi) < 0.9 and 0.3 < explained(msi, rna) < 0.9
    own = {name: spots.obsm[f"truth_own_{name}"] for name in ("rna", "msi")}
    assert explained(rna, own["rna"]) > 0.8 and explained(msi, own["msi"]) > 0.8
    assert explained(msi, own["rna"]) < 0.05 and explained(rna, own["msi"]) < 0.05


def test_features_answer_in_three_ways(spots, clean):
    design = np.hstack([spots.obsm["truth_shared"], spots.obsm["truth_own_msi"], np.ones((spots.n_obs, 1))])
    log = np.log(clean["msi"].X.astype(float))
    off = log - design @ np.linalg.lstsq(design, log, rcond=None)[0]
    linear = clean["msi"].var["answer"].to_numpy() == "linear"
    left = off.var(0) / np.maximum(log.var(0), 1e-12)
    assert left[linear].max() < 1e-6 and np.median(left[~linear]) > 0.02
    assert set(clean["msi"].var["answer"]) == {"linear", "saturating", "rectified"}


def test_strengths_take_away_what_they_name():
    plain = tissue.tissue(**SMALL, batch=0, noise=0)
    truth = tissue.clean(plain)
    for name in ("msi", "morphology"):
        assert np.allclose(plain[name].X, truth[name].X, rtol=1e-5)
    expected = plain.obsm["truth_expected_rna"]
    shares = [x / x.sum(1, keepdims=True) for x in (expected, truth["rna"].X)]
    assert np.allclose(*shares, rtol=1e-4)
    flat = tissue.tissue(**SMALL, gradient=0, own=0)
    assert not flat.obsm["truth_shared"][:, -3:].any()
    linear = tissue.tissue(**SMALL, bend=0, interaction=0, noise=0)
    slope = np.log(linear["msi"].X.astype(float)), np.log(tissue.clean(linear)["msi"].X.astype(float))
    rows = (linear.obs["section"] == "P02-far").to_numpy()
    both = [np.corrcoef(a[rows], b[rows])[0, 1] for a, b in zip(slope[0].T, slope[1].T, strict=True) if b.std() > 0.1]
    assert min(both) > 0.999, "without bend and interaction, a section is a straight line on the log scale"


# --- batch effects ---


def test_batch_effects_are_in_the_raw_data_and_not_in_the_clean(spots, raw, pure):
    held, section = held_out(spots), spots.obs["section"]
    before = {name: told_by_neighbours(x, section, held) for name, x in raw.items()}
    after = {name: told_by_neighbours(x, section, held) for name, x in pure.items()}
    assert before["msi"] > 0.95 and 0.4 < before["rna"] < 0.8 and 0.3 < before["morphology"] < before["rna"]
    assert max(after.values()) < 0.3 and all(after[name] < 0.6 * before[name] for name in raw)
    assert told_by_neighbours(spots.obsm["truth_shared"], section, held) < 0.25


def test_every_section_of_msi_is_a_cluster_of_its_own(spots, raw):
    section = spots.obs["section"].cat.codes.to_numpy()
    near = NearestNeighbors(n_neighbors=16).fit(raw["msi"]).kneighbors(raw["msi"])[1][:, 1:]
    assert (section[near] == section[:, None]).mean() > 0.98


def test_the_detector_saturates_and_sections_interact_with_biology():
    for strength in ("bend", "interaction"):
        options = {"bend": 0, "interaction": 0, "noise": 0, strength: 1.0}
        with_it = tissue.tissue(**SMALL, **options)
        log, truth = (np.log(m["msi"].X.astype(float)) for m in (with_it, tissue.clean(with_it)))
        rows = (with_it.obs["section"] == "P02-far").to_numpy()
        moving = truth[rows].std(0) > 0.1
        straight = [
            np.corrcoef(a, b)[0, 1] for a, b in zip(log[rows][:, moving].T, truth[rows][:, moving].T, strict=True)
        ]
        assert min(straight) < 0.995


# --- what is made of it ---


def test_clean_values_come_for_the_samples_and_features_that_are_left(small):
    part = small[small.obs["patient"] == "P02"].copy()
    part.mod["rna"] = part["rna"][:, 10:30].copy()
    whole, found = tissue.clean(small), tissue.clean(part)
    rows = small.obs_names.get_indexer(part.obs_names)
    assert found["rna"].shape == (120, 20) and np.array_equal(found["rna"].X, whole["rna"].X[rows, 10:30])
    assert found.obs.equals(part.obs) and found.uns["dataset"]["batch_key"] == "section"


def test_clean_values_go_through_prepare(small):
    raw = prepare.split(small, seed=0)
    ready = prepare.fit_transform(raw, scale={"rna": "standard", "msi": "standard", "morphology": "standard"})
    right = prepare.transform(tissue.clean(raw), ready)
    assert {m: a.shape for m, a in right.mod.items()} == {m: a.shape for m, a in ready.mod.items()}
    assert np.isfinite(right["rna"].X).all() and np.abs(right["msi"].X.mean()) < 1
    with pytest.raises(ValueError, match="'rna' is prepared and the planted values are not"):
        tissue.clean(ready)


def test_truth_survives_a_file(small, tmp_path):
    small.write(tmp_path / "tissue.h5mu")
    again = datasets.load(tmp_path / "tissue.h5mu")
    assert tissue.rare(again) == tissue.rare(small)
    assert np.allclose(tissue.clean(again)["msi"].X, tissue.clean(small)["msi"].X)
    assert tissue.null_batch(again, "P01-far").n_obs == small.n_obs + 60


def test_data_without_this_truth_are_refused():
    other = datasets.load("sim-bulk", n_obs=80)
    for ask in (tissue.clean, tissue.rare, lambda m: tissue.null_batch(m, str(m.obs["site"].iloc[0]))):
        with pytest.raises(ValueError, match=r"'sim-bulk' has no planted .* only data of sim-spatial"):
            ask(other)


def test_a_null_batch_is_the_same_spots_measured_again(small):
    twice = tissue.null_batch(small, "P01-far", seed=1)
    assert twice.n_obs == small.n_obs + 60 and twice.obs["section"].nunique() == 7
    again = (twice.obs["section"] == "P01-far again").to_numpy()
    first = (twice.obs["section"] == "P01-far").to_numpy()
    for column in ("region", "patient", "twin"):
        assert list(twice.obs[column][again]) == list(twice.obs[column][first])
    assert (twice.obs["twin"] != "").sum() == 120 and np.array_equal(
        twice.obsm["spatial"][again], twice.obsm["spatial"][first]
    )
    assert twice.obs_names[again].tolist() == [f"{name} again" for name in twice.obs_names[first]]
    assert (twice["rna"].X[: small.n_obs] != small["rna"].X).nnz == 0 and sp.issparse(twice["rna"].X)
    for name in small.mod:
        x = twice[name].X.toarray() if sp.issparse(twice[name].X) else twice[name].X
        assert not np.array_equal(x[again], x[first])
        off, expected = x[again] - x[first], twice.obsm[f"truth_expected_{name}"][first]
        assert np.abs(off.mean()) < 0.1 * np.abs(expected).mean() + 0.02


def test_a_null_batch_cannot_be_told_from_its_original(small):
    twice = tissue.null_batch(small, "P02-near")
    pair = twice[(twice.obs["twin"] != "").to_numpy()]
    labels = pair.obs["section"].cat.remove_unused_categories()
    for name in pair.mod:
        x = values(pair, name)
        fair = np.mean([told_by_neighbours(x, labels, np.arange(120) % 60 % 5 == k) for k in range(5)])
        assert fair < 0.62, name  # chance is 0.5


def test_any_data_have_an_exact_null_batch():
    other = datasets.load("sim-bulk", n_obs=80)
    site = str(other.obs["site"].iloc[0])
    twice = tissue.null_batch(other, site, exact=True)
    again, first = ((twice.obs["site"] == name).to_numpy() for name in (f"{site} again", site))
    for name in other.mod:
        assert np.array_equal(twice[name].X[again], twice[name].X[first])
    assert (
        checks.problems(checks.parts_of(twice)) == []
        and twice.uns["dataset"]["sha256"] != other.uns["dataset"]["sha256"]
    )


def test_a_null_batch_of_a_mosaic_lacks_what_its_original_lacks(small):
    rna, msi = small["rna"][small.obs["patient"] != "P01"].copy(), small["msi"]
    mosaic = checks.assemble(
        checks.Parts({"rna": rna, "msi": msi}, small.obs, "mosaic", batch_key="section", label_key="region")
    )
    twice = tissue.null_batch(mosaic, "P01-near", exact=True)
    assert twice["rna"].n_obs == 240 and twice["msi"].n_obs == 420


def test_unknown_batches_are_named(small):
    with pytest.raises(ValueError, match="'section' has no batch 'P01-fare'; did you mean 'P01-far'"):
        tissue.null_batch(small, "P01-fare")
    bare = checks.assemble(checks.Parts(dict(small.mod), small.obs, "bare"))
    with pytest.raises(ValueError, match="'bare' has no batch column; load it with batch_key="):
        tissue.null_batch(bare, "P01-far")
