"""What `prepare` promises: fitted on train only, repeatable on new data from disk, planted structure found."""

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from conftest import build
from mudata import MuData
from scipy import sparse
from sklearn import preprocessing

from helpers import features, prepare

SPLITS = ["train", "valid", "test"]


def modality(x, samples=None, prefix="g"):
    samples = samples if samples is not None else [f"s{i}" for i in range(x.shape[0])]
    names = [f"{prefix}{j}" for j in range(x.shape[1])]
    return AnnData(x, obs=pd.DataFrame(index=samples), var=pd.DataFrame({"rank": range(x.shape[1])}, index=names))


def example(n=60, seed=0):
    """Three modalities: dense real, CSR counts, unit interval; a label with a missing value; a planted truth."""
    rng = np.random.default_rng(seed)
    rna = (rng.normal(size=(n, 20)) * rng.uniform(0.5, 3, 20) + rng.normal(size=20)).astype(np.float32)
    counts = sparse.csr_matrix(rng.poisson(0.7, size=(n, 30)).astype(np.float32))
    beta = rng.uniform(size=(n, 12)).astype(np.float32)
    mdata = MuData(
        {"rna": modality(rna), "atac": modality(counts, prefix="p"), "methylation": modality(beta, None, "c")}
    )
    mdata.obs["kind"] = rng.choice(["α/β", "luad", "brca"], n)
    mdata.obs.loc["s3", "kind"] = None
    mdata.obsm["truth_z"] = rng.normal(size=(n, 2))
    kinds = {"rna": "continuous", "atac": "counts", "methylation": "unit"}
    mdata.uns["dataset"] = {"name": "toy", "modalities": kinds}
    return mdata


def fitted_example(**options):
    mdata = prepare.split(example(), seed=1)
    scale = {"rna": "standard", "atac": "log1p_cp10k", "methylation": "minmax"}
    return mdata, prepare.fit_transform(mdata, **{"n_features": 8, "scale": scale} | options)


def dense(adata):
    return adata.X.toarray() if sparse.issparse(adata.X) else adata.X


def one(x, split=None, **options):
    """Prepare a single modality; the first two thirds train unless `split` says otherwise."""
    mdata = MuData({"rna": modality(x)})
    n = mdata.n_obs
    mdata.obs["split"] = split if split is not None else np.repeat(SPLITS, [n - 2 * (n // 6), n // 6, n // 6])
    return prepare.fit_transform(mdata, **options)["rna"]


# ---------------------------------------------------------------- split


def test_split_has_the_asked_sizes_and_is_deterministic():
    mdata = example(101)
    first = prepare.split(mdata, seed=5).obs["split"].copy()
    assert list(first.cat.categories) == SPLITS
    assert first.value_counts()[SPLITS].tolist() == pytest.approx([60.6, 20.2, 20.2], abs=1)
    assert prepare.split(mdata, seed=5).obs["split"].equals(first)
    assert not prepare.split(mdata, seed=6).obs["split"].equals(first)


def test_stratified_split_keeps_proportions_and_totals():
    mdata = example(600)
    labels = np.repeat([f"c{i}" for i in range(50)], 12)  # 7.2 / 2.4 / 2.4 each: rounding must not drift
    mdata.obs["label"] = np.random.default_rng(0).permutation(labels)
    part = prepare.split(mdata, stratify="label", seed=2).obs["split"]
    table = pd.crosstab(mdata.obs["label"], part)[SPLITS].to_numpy()
    assert np.abs(table.sum(axis=0) - [360, 120, 120]).max() <= 1
    assert np.abs(table - [7.2, 2.4, 2.4]).max() < 2 and table.min() >= 1


def test_missing_labels_are_a_stratum_and_small_classes_train():
    mdata = example(100)
    label = np.array(["a"] * 50 + ["b"] * 25 + ["trio"] * 3 + ["twin"] * 2 + [None] * 20, dtype=object)
    for values in (label, pd.Categorical(label)):
        mdata.obs["label"] = values
        with pytest.warns(UserWarning, match="2 samples in classes of 'label' with fewer than 3"):
            part = prepare.split(mdata, stratify="label").obs["split"]
        table = pd.crosstab(mdata.obs["label"].astype(object).fillna("none"), part)[SPLITS]
        assert table.loc["twin"].tolist() == [2, 0, 0] and table.loc["trio"].tolist() == [1, 1, 1]
        assert np.abs(table.loc["none"] - [12, 4, 4]).max() <= 1
        assert np.abs(table.sum() - [60, 20, 20]).max() <= 1


def test_groups_never_straddle_and_sizes_are_near():
    mdata = example(300)
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 80, 300).astype(object)
    patient[:10] = None  # every sample without a patient is its own group
    mdata.obs["patient"] = patient
    part = prepare.split(mdata, group="patient", seed=4).obs["split"]
    assert part.groupby(mdata.obs["patient"].to_numpy(), observed=True).nunique().max() == 1
    assert np.abs(part.value_counts()[SPLITS] - [180, 60, 60]).max() <= 3
    mdata.obs["label"] = pd.factorize(patient)[0] % 3
    part = prepare.split(mdata, group="patient", stratify="label", seed=4).obs["split"]
    assert part.groupby(mdata.obs["patient"].to_numpy(), observed=True).nunique().max() == 1
    share = pd.crosstab(mdata.obs["label"], part, normalize="index")[SPLITS]
    assert np.abs(share - [0.6, 0.2, 0.2]).to_numpy().max() < 0.08


def test_a_rare_class_counts_as_much_as_a_common_one_when_groups_are_dealt():
    off = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(100), rng.geometric(0.2, 100))
        rare = rng.uniform(size=patient.size) < np.repeat(rng.beta(0.3, 5, 100), np.bincount(patient))
        mdata = MuData({"rna": modality(np.ones((patient.size, 1), np.float32))})
        mdata.obs["patient"], mdata.obs["label"] = patient, np.where(rare, "rare", "common")
        part = prepare.split(mdata, group="patient", stratify="label", seed=seed).obs["split"]
        off.append(np.abs(part[rare].value_counts(normalize=True)[SPLITS] - [0.6, 0.2, 0.2]).max())
    assert np.mean(off) < 0.03  # 0.05 if the common class were weighted by its size


def test_three_groups_fill_three_splits():
    mdata = example(30)
    mdata.obs["site"] = np.repeat(["x", "y", "z"], 10)
    assert sorted(prepare.split(mdata, group="site").obs["split"].value_counts()) == [10, 10, 10]


def test_split_by_column_and_by_ids():
    mdata = example(12)
    mdata.obs["fold"] = ["Train", "validation", "test "] * 4
    assert prepare.split(mdata, column="fold").obs["split"].tolist() == SPLITS * 4
    names = mdata.obs_names
    ids = {"train": names[:6], "valid": list(names[6:9]), "test": names[9:]}
    assert prepare.split(mdata, ids=ids).obs["split"].tolist() == np.repeat(SPLITS, [6, 3, 3]).tolist()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fractions": (0.6, 0.2, 0.3)}, "summing to 1"),
        ({"fractions": (0.8, 0.2)}, "three positive"),
        ({"fractions": (1.0, 0.0, 0.0)}, "three positive"),
        ({"stratify": "colour"}, "no column 'colour'"),
        ({"stratify": "unique"}, "most values of 'unique'"),
        ({"group": "site"}, "valid and test would be empty|test would be empty"),
        ({"column": "site"}, "12 values of 'site' are not train"),
        ({"column": "half"}, "test would be empty"),
        ({"column": "half", "stratify": "kind"}, "only one of"),
        ({"ids": {"train": ["s1", "ghost"]}}, "1 names of ids are not in the data: 'ghost'"),
        ({"ids": {"train": ["s1"], "test": ["s1"]}}, "1 names of ids are listed twice: 's1'"),
        (
            {"ids": {"train": ["s1"]}},
            r"11 samples are in no list of ids: 's0', 's10', 's11', 's2', 's3', \.\.\. \(11 in all\)",
        ),
        ({"ids": {"training": ["s1"]}}, "the keys training"),
    ],
)
def test_split_errors(options, message):
    mdata = example(12)
    mdata.obs["unique"] = [f"u{i}" for i in range(12)]
    mdata.obs["site"] = ["x", "y"] * 6
    mdata.obs["half"] = ["train", "valid"] * 6
    with pytest.raises(ValueError, match=message):
        prepare.split(mdata, **options)
    assert "split" not in mdata.obs


def test_two_samples_are_too_few():
    with pytest.raises(ValueError, match="2 samples cannot fill"):
        prepare.split(MuData({"rna": modality(np.ones((2, 3), np.float32))}))


# ---------------------------------------------------------------- fitted on train only, repeatable on new data


@pytest.mark.parametrize("select", list(features.SELECTORS))
@pytest.mark.parametrize("scale", list(features.SCALERS))
def test_held_out_rows_do_not_reach_the_fit(select, scale):
    rng = np.random.default_rng(0)
    x = rng.poisson(3, size=(60, 25)).astype(np.float32)
    changed = x.copy()
    changed[40:] = rng.poisson(50, size=(20, 25)) * rng.permutation(25)
    a, b = (one(values, select=select, scale=scale, n_features=6) for values in (x, changed))
    assert a.uns["prepare"]["features"].tolist() == b.uns["prepare"]["features"].tolist()
    for key in ("shift", "scale", "fill", "clip"):
        np.testing.assert_array_equal(a.uns["prepare"][key], b.uns["prepare"][key])
    np.testing.assert_array_equal(a.X[:40], b.X[:40])


def test_transform_repeats_the_preparation_after_a_trip_over_disk(tmp_path):
    raw, fitted = fitted_example()
    fitted.write_h5mu(tmp_path / "fitted.h5mu")
    loaded = mudata.read_h5mu(tmp_path / "fitted.h5mu")
    shuffled = {name: adata[:, adata.var_names[::-1]].copy() for name, adata in raw.mod.items()}
    for store in (fitted, loaded):
        again = prepare.transform(MuData(shuffled), store)
        for name in raw.mod:
            assert again[name].var_names.equals(fitted[name].var_names)
            np.testing.assert_array_equal(dense(again[name]), dense(fitted[name]))
            assert again[name].var["rank"].equals(fitted[name].var["rank"])
    for name, adata in loaded.mod.items():
        np.testing.assert_array_equal(dense(adata), dense(fitted[name]))
        np.testing.assert_array_equal(prepare.inverse(adata.X, adata), prepare.inverse(fitted[name].X, fitted[name]))


def test_the_result_keeps_annotation_and_the_input_is_untouched():
    raw = prepare.split(example())
    before = {name: dense(adata).copy() for name, adata in raw.mod.items()}
    fitted = prepare.fit_transform(raw, n_features=8, scale={"rna": "robust", "atac": "maxabs", "methylation": "none"})
    pd.testing.assert_frame_equal(fitted.obs, raw.obs)
    np.testing.assert_array_equal(fitted.obsm["truth_z"], raw.obsm["truth_z"])
    assert fitted.uns["dataset"] == raw.uns["dataset"]
    fitted.uns["dataset"]["name"] = "changed"
    assert raw.uns["dataset"]["name"] == "toy"
    for name, adata in raw.mod.items():
        np.testing.assert_array_equal(dense(adata), before[name])
        assert "prepare" not in adata.uns
        assert fitted[name].X.dtype == np.float32
    kinds = [fitted[name].uns["prepare"]["kind"] for name in ("rna", "atac", "methylation")]
    assert kinds == ["continuous", "continuous", "unit"]


def test_mosaic_data_in_a_mixed_order(tmp_path):
    rng = np.random.default_rng(0)
    a = modality(rng.normal(size=(20, 5)).astype(np.float32), [f"s{i}" for i in range(20)])
    b = modality(rng.normal(size=(18, 4)).astype(np.float32), [f"s{i}" for i in range(12, 30)], "m")
    mdata = MuData({"rna": a, "mirna": b})
    mdata.obsm["truth_z"] = np.arange(30.0)[:, None]
    mdata = mdata[rng.permutation(mdata.obs_names)].copy()
    mdata = prepare.split(mdata)
    fitted = prepare.fit_transform(mdata)
    assert fitted.obs_names.equals(mdata.obs_names)
    np.testing.assert_array_equal(fitted.obsm["truth_z"], mdata.obsm["truth_z"])
    train = mdata.obs_names[mdata.obs["split"] == "train"]
    for name, source in (("rna", a), ("mirna", b)):
        mine = fitted[name]
        assert set(mine.obs_names) == set(source.obs_names)
        at = fitted.obsmap[name].ravel().astype(int)  # 0: not in the modality
        assert mine.obs_names[at[at > 0] - 1].equals(fitted.obs_names[at > 0])
        np.testing.assert_allclose(mine[mine.obs_names.isin(train)].X.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(prepare.inverse(mine.X, mine), source[mine.obs_names].X, atol=1e-6)
    fitted.write_h5mu(tmp_path / "mosaic.h5mu")
    assert mudata.read_h5mu(tmp_path / "mosaic.h5mu").obs["split"].tolist() == mdata.obs["split"].tolist()
    only = prepare.transform(MuData({"mirna": b}), fitted)  # new data may lack a modality
    np.testing.assert_array_equal(only["mirna"][fitted["mirna"].obs_names].X, fitted["mirna"].X)


# ---------------------------------------------------------------- scalers


@pytest.mark.parametrize(
    "scale, judge",
    [
        ("standard", preprocessing.StandardScaler()),
        ("minmax", preprocessing.MinMaxScaler(clip=True)),
        ("robust", preprocessing.RobustScaler()),
        ("maxabs", preprocessing.MaxAbsScaler()),
    ],
)
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_scalers_agree_with_scikit_learn(scale, judge, layout):
    x = np.random.default_rng(0).normal(5, 3, size=(90, 7)).astype(np.float32)
    x[x < 3] = 0
    x[:, 6] = 4  # constant: kept under select="none", scaled by 1
    got = one(layout(x), select="none", scale=scale)
    judge.fit(x[:60])
    np.testing.assert_allclose(dense(got), judge.transform(x), rtol=1e-5, atol=1e-5)
    assert sparse.issparse(got.X) == (layout is not np.asarray and scale == "maxabs")
    if scale == "minmax":
        assert got.X.min() >= 0 and got.X.max() <= 1
    else:
        np.testing.assert_allclose(prepare.inverse(got.X, got), x, rtol=1e-5, atol=1e-5)


def test_standard_scaling_survives_a_large_offset():
    x = (1e6 + np.random.default_rng(0).normal(size=(300, 4))).astype(np.float32)
    got = one(x, scale="standard")
    np.testing.assert_allclose(got.X[:200].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(got.X[:200].std(axis=0), 1, atol=1e-4)


def test_log1p_cp10k_is_the_definition_and_keeps_csr():
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, size=(60, 40)).astype(np.float32)
    x[5] = 0  # an empty cell stays empty
    got, plain = (one(layout(x), scale="log1p_cp10k", n_features=10) for layout in (sparse.csr_matrix, np.asarray))
    cp10k = x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4  # library size over all 40, not the 10 kept
    kept = [int(name[1:]) for name in got.var_names]
    assert sparse.issparse(got.X) and got.X.format == "csr"
    np.testing.assert_allclose(got.X.toarray(), np.log1p(cp10k[:, kept]), rtol=1e-5)
    np.testing.assert_allclose(plain.X, got.X.toarray(), rtol=1e-6)
    np.testing.assert_allclose(prepare.inverse(got.X, got), cp10k[:, kept], rtol=1e-4)
    best = np.argsort(-np.log1p(cp10k[:40]).var(axis=0))[:10]
    assert sorted(best) == kept  # the filter sees normalised values


def test_library_size_of_new_data_counts_the_fitted_features_only():
    x = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, size=(60, 12)).astype(np.float32))
    fitted = MuData({"rna": one(x, scale="log1p_cp10k", n_features=5)})
    wide = modality(sparse.hstack([sparse.csr_matrix(np.full((60, 1), 7.0)), x]).tocsr().astype(np.float32))
    wide.var_names = ["stranger", *[f"g{i}" for i in range(12)]]
    np.testing.assert_array_equal(dense(prepare.transform(MuData({"rna": wide}), fitted)["rna"]), dense(fitted["rna"]))
    few = modality(x)[:, fitted["rna"].var_names].copy()
    with pytest.warns(UserWarning, match="7 of 12 features of the library size are missing"):
        prepare.transform(MuData({"rna": few}), fitted)


def test_new_data_are_clipped_by_minmax_only():
    x = np.random.default_rng(0).uniform(size=(60, 3)).astype(np.float32)
    far = MuData({"rna": modality(x * 100 - 50)})
    unit = prepare.transform(far, MuData({"rna": one(x, scale="minmax")}))["rna"].X
    free = prepare.transform(far, MuData({"rna": one(x, scale="standard")}))["rna"].X
    assert unit.min() == 0 and unit.max() == 1 and np.abs(free).max() > 10


# ---------------------------------------------------------------- feature filters


def test_variance_and_mad_find_what_is_planted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 30)).astype(np.float32)
    x[:, [4, 17, 29]] *= 5
    x[::40, 8] += 100  # outliers: large variance, ordinary MAD
    assert one(x, select="mad", n_features=3).var_names.tolist() == ["g4", "g17", "g29"]
    assert "g8" in one(x, select="variance", n_features=1).var_names
    got = one(sparse.csr_matrix(x), select="variance", n_features=4, scale="none")
    assert got.var_names.tolist() == ["g4", "g8", "g17", "g29"] and sparse.issparse(got.X)


def blocks(n_obs, n_blocks, size, rng, noise=0.3):
    """Features in shuffled blocks that share a factor, with signs."""
    factors = rng.normal(size=(n_obs, n_blocks))
    block = rng.permutation(np.repeat(np.arange(n_blocks), size))
    x = factors[:, block] * rng.choice([-1, 1], block.size) + noise * rng.normal(size=(n_obs, block.size))
    return x.astype(np.float32), block


@pytest.mark.parametrize("select", ["correlation", "variance_correlation"])
def test_one_representative_per_planted_block(select):
    x, block = blocks(150, 12, 10, np.random.default_rng(0))
    got = one(x, select=select, n_features=12)
    assert sorted(block[[int(name[1:]) for name in got.var_names]]) == list(range(12))


def test_many_features_are_clustered_in_pieces(monkeypatch):
    monkeypatch.setattr(features, "MAX_LINKAGE", 60)
    x, block = blocks(150, 12, 25, np.random.default_rng(1))
    got = one(sparse.csr_matrix(x), select="correlation", n_features=12, scale="none")
    assert sorted(block[[int(name[1:]) for name in got.var_names]]) == list(range(12))
    assert one(x, select="correlation", n_features=200).n_vars == 200


def test_representatives_are_medoids_and_deterministic():
    x, _ = blocks(100, 3, 8, np.random.default_rng(2))
    kept = [int(name[1:]) for name in one(x, select="correlation", n_features=3).var_names]
    r = 1 - np.abs(np.corrcoef(x[:68].T))
    for medoid in kept:
        cluster = np.flatnonzero(r[medoid] < 0.5)
        assert medoid == cluster[r[np.ix_(cluster, cluster)].sum(axis=0).argmin()]
    again = one(x, select="correlation", n_features=3)
    assert [int(name[1:]) for name in again.var_names] == kept


def test_duplicated_features_still_give_the_number_asked_for():
    x = np.repeat(np.random.default_rng(0).normal(size=(60, 4)), 5, axis=1).astype(np.float32)
    assert one(x, select="correlation", n_features=7).n_vars == 7


def test_variance_then_correlation_first_narrows_by_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 60)).astype(np.float32)
    x[:, :20] *= 10
    got = one(x, select="variance_correlation", n_features=2)
    assert all(int(name[1:]) < 20 for name in got.var_names)


def test_constant_features_are_dropped_with_a_count():
    x = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
    x[:40, 2] = 3.5  # varies in the held-out rows only
    x[:, 7] = 0
    with pytest.warns(UserWarning, match="2 of 10 features are constant in the train split"):
        got = one(x, select="nonzero_variance")
    assert got.var_names.tolist() == [f"g{i}" for i in (0, 1, 3, 4, 5, 6, 8, 9)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one(x, select="none").n_vars == 10


# ---------------------------------------------------------------- NaN


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_nan_policies(layout):
    x = np.random.default_rng(0).uniform(1, 2, size=(60, 5)).astype(np.float32)
    x[2, 1] = x[9, 1] = np.nan  # train
    x[50, 3] = np.nan  # held out
    mean = np.nanmean(x[:40], axis=0, dtype=float)
    for nan, kept, fill in [
        ("mean", range(5), mean),
        ("zero", range(5), 0 * mean),
        ("drop_features", [0, 2, 3, 4], mean),
    ]:
        got = one(layout(x), nan=nan, scale="none", select="nonzero_variance")
        expected = np.where(np.isnan(x), fill, x)[:, list(kept)]
        np.testing.assert_allclose(dense(got), expected, rtol=1e-6)
        assert sparse.issparse(got.X) == (layout is sparse.csr_matrix)
        again = prepare.transform(MuData({"rna": modality(layout(x))}), MuData({"rna": got}))["rna"]
        np.testing.assert_array_equal(dense(again), dense(got))
    with pytest.raises(ValueError, match=r"rna: 3 values are missing \(NaN\), in the features 'g1', 'g3'; choose nan="):
        one(layout(x))


def test_new_nan_is_refused_under_error_and_infinity_always():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    fitted, new = MuData({"rna": one(x)}), x.copy()
    new[0, 0] = np.nan
    with pytest.raises(ValueError, match="rna: 1 values are missing"):
        prepare.transform(MuData({"rna": modality(new)}), fitted)
    new[0, 0] = np.inf
    for nan in prepare.NAN_POLICIES:
        with pytest.raises(ValueError, match="rna: 1 values are infinite, in the features 'g0'"):
            one(new, nan=nan)


def test_a_feature_that_is_missing_everywhere():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[:, 1] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 features are constant"):
        assert one(x, nan="mean").var_names.tolist() == ["g0", "g2"]
    np.testing.assert_array_equal(one(x, nan="mean", select="none").X[:, 1], 0)
    with pytest.raises(ValueError, match="no feature is left"):
        one(np.full((60, 3), np.nan, np.float32), nan="drop_features")


def test_nan_counts_are_left_out_of_the_library_size():
    x = np.random.default_rng(0).poisson(4, size=(60, 5)).astype(np.float32)
    x[0, 0] = np.nan
    for layout in (np.asarray, sparse.csr_matrix):
        got = one(layout(x), nan="zero", scale="log1p_cp10k", select="none")
        np.testing.assert_allclose(dense(got)[0, 1:], np.log1p(x[0, 1:] / np.nansum(x[0]) * 1e4), rtol=1e-5)


# ---------------------------------------------------------------- categories


def test_one_hot_is_fixed_on_train_and_passes_through(tmp_path):
    mdata = example(12)
    mdata.obs["stage"] = ["I", "II", "I", "II", None, "I", "IV", "II", "I", "II", "I", "II"]
    mdata.obs["grade γ"] = [1.0, 2.0, np.nan] * 4  # whole numbers that a missing value made floats
    ids = {"train": mdata.obs_names[:6], "valid": mdata.obs_names[6:9], "test": mdata.obs_names[9:]}
    mdata = prepare.split(mdata, ids=ids)
    with pytest.warns(UserWarning, match="1 categories of 'stage' were not seen in the train split: 'IV'"):
        coded = prepare.encode_categories(mdata, ["stage", "grade γ"])
    block = coded["annotation"]
    assert block.var_names.tolist() == ["stage=I", "stage=II", "grade γ=1", "grade γ=2"]
    np.testing.assert_array_equal(block.X[:7, :2], [[1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(block.X[:3, 2:], [[1, 0], [0, 1], [0, 0]])
    assert coded.uns["dataset"]["modalities"]["annotation"] == "binary" and "annotation" not in mdata.mod
    fitted = prepare.fit_transform(coded, select="none", scale="none")
    np.testing.assert_array_equal(fitted["annotation"].X, block.X)
    fitted.write_h5mu(tmp_path / "coded.h5mu")
    new = example(4, seed=9)
    new.obs["stage"], new.obs["grade γ"] = ["II", "I", "II", None], [2, 1, 1, np.nan]
    for store in (fitted, mudata.read_h5mu(tmp_path / "coded.h5mu")):
        again = prepare.transform(new, store)["annotation"]
        np.testing.assert_array_equal(again.X, [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
        np.testing.assert_array_equal(prepare.inverse(again.X, again), again.X)


def test_one_hot_errors():
    mdata = prepare.split(example(12))
    mdata.obs["void"] = None
    for columns, name, message in [
        ("kind", "rna", "a modality 'rna' already"),
        (["colour"], "annotation", "no column 'colour'"),
        (["void"], "annotation", "'void' has no value on the train split"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare.encode_categories(mdata, columns, name)
    mdata.obs["sex"] = ["f", "m"] * 6
    assert prepare.encode_categories(mdata, "sex")["annotation"].var_names.tolist() == ["sex=f", "sex=m"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"select": "vraiance"}, "select='vraiance' for rna is not one of variance,"),
        ({"scale": "z"}, "scale='z' for rna is not one of standard,"),
        ({"nan": None}, "nan=None for rna is not one of error,"),
        ({"n_features": 0}, "n_features=0 for rna"),
        ({"n_features": 2.5}, "n_features=2.5 for rna"),
        ({"scale": {"rna": "none"}}, "scale is given for 'rna'; the modalities are 'rna', 'atac', 'methylation'"),
        ({"scale": "log1p_cp10k"}, "rna: [0-9]+ values are below 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        fitted_example(**options)


def test_errors_of_the_data():
    mdata = example()
    with pytest.raises(ValueError, match=r"call prepare.split\(mdata\) first"):
        prepare.fit_transform(mdata)
    apart = MuData({"rna": mdata["rna"][:30].copy(), "mirna": modality(np.ones((5, 2)), [f"t{i}" for i in range(5)])})
    apart.obs["split"] = ["train"] * 30 + ["test"] * 5
    with pytest.raises(ValueError, match="mirna: none of its 5 samples is in the train split"):
        prepare.fit_transform(apart)
    with pytest.raises(ValueError, match="rna: no feature is left"):
        with pytest.warns(UserWarning, match="constant"):
            one(np.ones((30, 3), np.float32))
    twice = mdata.copy()
    twice["rna"].var_names = ["g0"] * 2 + [f"g{i}" for i in range(18)]
    with pytest.raises(ValueError, match="rna: 1 feature names occur more than once: 'g0'"):
        prepare.fit_transform(prepare.split(twice))


def test_errors_of_new_data():
    raw, fitted = fitted_example()
    with pytest.raises(ValueError, match="rna is prepared already"):
        prepare.transform(fitted, fitted)
    with pytest.raises(ValueError, match="rna is prepared already"):
        prepare.fit_transform(fitted)
    with pytest.raises(ValueError, match="rna is not prepared"):
        prepare.transform(raw, raw)
    some = raw["rna"][:, [name for name in raw["rna"].var_names if name not in fitted["rna"].var_names[:6]]]
    with pytest.raises(ValueError, match=r"rna: 6 of 8 fitted features are missing: .*\(6 in all\)"):
        prepare.transform(MuData({"rna": some.copy()}), fitted)
    with pytest.raises(ValueError, match="no preparation was fitted for 'protein'"):
        prepare.transform(MuData({"protein": raw["rna"].copy()}), fitted)
    with pytest.raises(ValueError, match="x has 3 features, the modality has 8"):
        prepare.inverse(np.ones((2, 3)), fitted["rna"])


def test_a_sparse_matrix_is_not_made_dense_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(prepare, "MAX_DENSE_GB", 1e-6)
    x = sparse.random(60, 50, 0.3, format="csr", dtype=np.float32, random_state=0)
    with pytest.raises(MemoryError, match=r"rna: scale='standard' makes a dense matrix of 60 x 50.*'maxabs'"):
        one(x)
    assert one(x, scale="maxabs").X.format == "csr"


def test_decoded_torch_tensors_go_back_to_raw_units():
    _, fitted = fitted_example()
    x = torch.tensor(fitted["rna"].X, requires_grad=True)
    np.testing.assert_allclose(prepare.inverse(x, fitted["rna"]), prepare.inverse(fitted["rna"].X, fitted["rna"]))


def test_complete_keeps_samples_that_have_every_modality():
    names = {"rna": ["a", "b", "c", "d"], "protein": ["b", "c", "d", "e"]}
    mdata = build({"rna": np.ones((4, 2)), "protein": np.ones((4, 3))}, names=names)
    with pytest.warns(UserWarning, match="2 of 5 samples lack a modality"):
        whole = prepare.complete(mdata)
    assert set(whole.obs_names) == {"b", "c", "d"} and whole["protein"].n_obs == 3
    assert prepare.complete(whole, 2, seed=1).n_obs == 2
    assert list(prepare.complete(whole, 2, seed=1).obs_names) == list(prepare.complete(whole, 2, seed=1).obs_names)
    apart = build({"rna": np.ones((1, 2)), "protein": np.ones((1, 2))}, names={"rna": ["a"], "protein": ["b"]})
    with pytest.raises(ValueError, match="no sample has all of 'rna', 'protein'"):
        prepare.complete(apart)
