"""Integration methods: planted factors and batches found, mosaics, and nothing that silently vanishes."""

import importlib.util
import logging
import os
import random
import signal
import sys
import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build

from helpers import foreign, integration, views
from helpers.integration import METHODS, Method, run

N = 120
LINEAR = ("PCA", "concatenated PCA", "Harmony")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def with_batches(mdata: mudata.MuData, seed: int = 0) -> mudata.MuData:
    labels = np.random.default_rng(seed).permutation(np.arange(mdata.n_obs) % 2)
    mdata.obs["batch"] = pd.Categorical(np.where(labels, "b", "a"))
    return mdata


@pytest.fixture
def planted() -> mudata.MuData:
    """Three clusters of one factor shared by two modalities, and a shift between two batches in both."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % 3
    shared = np.array([-2.0, 0.0, 2.0])[kind] + 0.2 * rng.normal(size=N)
    batch = np.arange(N) // 3 % 2  # as many of every cluster: what differs between batches is the shift
    x = {}
    for name, n in {"rna": 30, "msi": 20}.items():
        own, shift = rng.normal(size=N), rng.normal(size=n)
        x[name] = np.outer(shared, rng.normal(size=n)) + np.outer(own, rng.normal(size=n)) * 0.3
        x[name] += np.outer(batch, shift) + 0.3 * rng.normal(size=(N, n))
    mdata = build(x)
    mdata.obs["batch"] = pd.Categorical(np.where(batch, "b", "a"))
    mdata.obs["kind"], mdata.obs["shared"] = kind, shared
    return mdata


@pytest.fixture
def cells() -> mudata.MuData:
    """Counts of 40 genes, 15 proteins and 50 peaks of 90 cells: two types, two batches."""
    rng = np.random.default_rng(1)
    kind = np.arange(90) % 2
    x = {}
    for name, n, depth in (("rna", 40, 3.0), ("protein", 15, 20.0), ("atac", 50, 1.0)):
        profile = rng.gamma(2.0, depth / 2.0, size=(2, n))
        x[name] = rng.poisson(profile[kind]) + 0.0
    mdata = with_batches(build(x, kinds=dict.fromkeys(x, "counts")))
    mdata.obs["kind"] = kind
    return mdata


def without(mdata: mudata.MuData, lacking: dict[str, np.ndarray]) -> mudata.MuData:
    """A mosaic: each modality without some samples (bool [n_obs])."""
    mods = {name: a[~lacking.get(name, np.zeros(mdata.n_obs, bool))].copy() for name, a in mdata.mod.items()}
    out = mudata.MuData(mods)[mdata.obs_names].copy()
    out.obs, out.uns["dataset"] = mdata.obs.copy(), mdata.uns["dataset"]
    return out


def correlation(z: np.ndarray, truth: np.ndarray) -> float:
    """Multiple correlation of a factor with an embedding: R of the least squares fit."""
    design = np.column_stack([z, np.ones(len(z))])
    fit = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    return float(np.corrcoef(fit, truth)[0, 1])


def batch_share(z: np.ndarray, batch: np.ndarray) -> float:
    """Share of an embedding's variance that lies between two batches."""
    means = np.where(batch[:, None], z[batch].mean(0), z[~batch].mean(0))
    return float(((means - z.mean(0)) ** 2).sum() / ((z - z.mean(0)) ** 2).sum())


# ---------------------------------------------------------------- what methods are given


def test_counts_become_log_cp10k_or_log_ratios_and_others_stay(cells):
    values = views.inputs(cells, ["rna", "protein"], standardise=False)
    x = np.asarray(cells["rna"].X, dtype=float)
    np.testing.assert_allclose(values["rna"], np.log1p(1e4 * x / x.sum(1, keepdims=True)), rtol=1e-5)
    y = np.log1p(np.asarray(cells["protein"].X, dtype=float))
    np.testing.assert_allclose(values["protein"], y - y.mean(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(values["protein"].sum(1), 0, atol=1e-4)


def test_every_feature_that_varies_has_mean_zero_and_variance_one(planted):
    planted["rna"].X[:, 3] = 7.0
    rna = views.inputs(planted)["rna"]
    assert rna.shape == (N, 29)
    np.testing.assert_allclose(rna.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rna.std(0), 1, atol=1e-5)


def test_inputs_leave_the_data_alone(cells):
    before = {name: a.X.copy() for name, a in cells.mod.items()}
    views.inputs(cells)
    assert all(np.array_equal(before[name], a.X) for name, a in cells.mod.items())


def test_features_are_standardised_over_the_samples_that_have_them(planted):
    lacking = np.arange(N) < 30
    msi = views.inputs(without(planted, {"msi": lacking}))["msi"]
    assert np.isnan(msi[lacking]).all()
    np.testing.assert_allclose(msi[~lacking].std(0), 1, atol=1e-5)


def test_values_that_are_not_numbers_or_not_counts_are_refused(planted, cells):
    planted["rna"].X[2, 3] = np.nan
    with pytest.raises(ValueError, match="modality 'rna' has NaN"):
        views.inputs(planted)
    cells["rna"].X[0, 0] = -1
    with pytest.raises(ValueError, match=r"'rna' is called counts, but .* below 0"):
        views.inputs(cells)
    cells["atac"].X[:] = 2
    with pytest.raises(views.Unsuited, match="modality 'atac' has no feature that varies"):
        views.inputs(cells, ["atac"])
    with pytest.raises(ValueError, match=r"no modality 'proteins'; did you mean 'protein'\?"):
        views.inputs(cells, ["proteins"])


# ---------------------------------------------------------------- linear methods


def test_concatenation_gives_modalities_equal_weight():
    """Whatever their number of features: both factors, each in one modality only, are among two components."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(N, 2))
    x = {
        m: np.outer(factor[:, i], np.ones(n)) + 0.1 * rng.normal(size=(N, n))
        for i, (m, n) in enumerate([("a", 300), ("b", 6)])
    }
    mdata = with_batches(build(x))
    z = integration.concatenated_pca(mdata, "batch", 2)
    assert all(correlation(z, factor[:, i]) > 0.99 for i in range(2))
    spread = z.std(0)
    assert spread[1] / spread[0] > 0.8


def test_shared_factor_is_found_by_concatenated_pca_and_mofa(planted):
    for method in (integration.concatenated_pca, integration.mofa):
        assert correlation(method(planted, "batch", 5), planted.obs["shared"].to_numpy()) > 0.98


def test_pca_is_the_projection_on_leading_directions(planted):
    x = views.inputs(planted, ["msi"])["msi"].astype(float)
    z = integration.pca(planted, "batch", 4, modality="msi")
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)[:4]
    np.testing.assert_allclose(np.linalg.norm(z, axis=0), singular / np.sqrt(20), rtol=1e-4)


def test_harmony_takes_most_of_a_planted_batch_shift_away_and_leaves_the_clusters(planted):
    from sklearn.metrics import silhouette_score

    batch = (planted.obs["batch"] == "b").to_numpy()
    before, after = integration.concatenated_pca(planted, "batch", 5), integration.harmony(planted, "batch", 5)
    assert batch_share(before, batch) > 0.05
    assert batch_share(after, batch) < 0.25 * batch_share(before, batch)
    assert silhouette_score(after, planted.obs["kind"]) > silhouette_score(before, planted.obs["kind"])


def test_harmony_of_one_modality_is_on_its_pca(planted):
    alone = build({"msi": np.asarray(planted["msi"].X)})
    alone.obs["batch"] = planted.obs["batch"]
    named = integration.harmony(planted, "batch", 4, modality="msi")
    np.testing.assert_array_equal(named, integration.harmony(alone, "batch", 4))


def test_batches_as_groups_are_centred_by_themselves(planted):
    z = integration.mofa(planted, "batch", 4, groups=True, iterations=100)
    batch = (planted.obs["batch"] == "b").to_numpy()
    assert batch_share(z, batch) < 0.01
    assert correlation(z, planted.obs["shared"].to_numpy()) > 0.9  # the sample's own order was put back


def test_factors_of_no_use_are_near_zero_and_stay(planted):
    z = integration.mofa(planted, "batch", 12, iterations=200)
    assert z.shape == (N, 12) and (z.std(0) < 0.05).any() and (z.std(0) > 0.5).any()


# ---------------------------------------------------------------- mosaics


def test_a_mosaic_is_embedded_where_a_method_can(planted):
    lacking = {"rna": np.arange(N) < 20, "msi": np.arange(N) >= 90}
    runs = run([*LINEAR, "MOFA+"], without(planted, lacking), "batch", 4, progress=False)
    seen = {name: np.isfinite(z).all(1) for name, z in runs.embeddings.items()}
    assert all(np.isnan(runs.embeddings[name][~rows]).all() for name, rows in seen.items())
    np.testing.assert_array_equal(seen["PCA"], ~lacking["rna"])
    for name in ("concatenated PCA", "Harmony"):
        np.testing.assert_array_equal(seen[name], ~lacking["rna"] & ~lacking["msi"])
    assert seen["MOFA+"].all()
    assert correlation(runs.embeddings["MOFA+"], planted.obs["shared"].to_numpy()) > 0.95


def test_no_sample_with_all_modalities_is_a_reason(planted):
    apart = without(planted, {"rna": np.arange(N) < 60, "msi": np.arange(N) >= 60})
    runs = run(LINEAR, apart, "batch", 4, progress=False)
    assert list(runs.embeddings) == ["PCA"]
    assert runs.skipped["reason"].str.contains("no sample has all of 'rna', 'msi'").all()


# ---------------------------------------------------------------- methods for counts, where they are installed


OPTIONS = {"scVI": {"epochs": 2}, "totalVI": {"epochs": 2}, "MultiVI": {"epochs": 2}, "Scanorama": {}}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_peer_embeds_or_is_named_with_the_command_that_installs_it(cells, name):
    wanted = {name: METHODS[name].on(**OPTIONS[name])}
    runs = run(wanted, cells, "batch", 5, progress=False)
    if installed(METHODS[name].package):
        assert runs.skipped.empty and np.isfinite(runs.embeddings[name]).all()
        again = run(wanted, cells, "batch", 5, progress=False).embeddings[name]
        np.testing.assert_array_equal(runs.embeddings[name], again)
    else:
        row = runs.skipped.iloc[0]
        assert (row.method, row.status) == (name, "skipped") and "is not installed" in row.reason
        assert row.command.startswith("pip install") and "make peers" in row.command


@pytest.mark.parametrize(
    ("name", "rows"), [("scVI", slice(30, 90)), ("totalVI", slice(30, 90)), ("MultiVI", slice(0, 90))]
)
def test_a_peer_embeds_the_part_of_a_mosaic_that_it_can(cells, name, rows):
    cells.obs["batch"] = np.repeat(["a", "b", "c"], 30)  # a without genes, b without proteins, c with all
    lacking = {"rna": np.arange(90) < 30, "protein": (np.arange(90) >= 30) & (np.arange(90) < 60)}
    runs = run({name: METHODS[name].on(**OPTIONS[name])}, without(cells, lacking), "batch", 5, progress=False)
    can = np.zeros(90, bool)
    can[rows] = True
    assert (list(runs.skipped["status"]) == ["skipped"]) is not installed("scvi")
    for z in runs.embeddings.values():
        np.testing.assert_array_equal(np.isfinite(z).all(1), can)


def test_methods_for_counts_refuse_other_data_in_words(planted, cells):
    del cells.mod["protein"]
    with pytest.raises(views.Unsuited, match=r"totalVI needs counts of proteins, .* there are 'rna', 'atac'"):
        integration.totalvi(cells, "batch")
    with pytest.raises(views.Unsuited, match="scVI needs counts of genes, and 'rna' holds continuous values"):
        integration.scvi(planted, "batch")
    with pytest.raises(views.Unsuited, match="MultiVI needs counts of peaks"):
        integration.multivi(build({"rna": np.ones((4, 3))}, kinds={"rna": "counts"}), "batch")


def test_samples_without_counts_are_named(cells):
    cells["rna"].X[[4, 8]] = 0
    with pytest.raises(views.Unsuited, match="2 samples have no counts: 's4', 's8'"):
        integration.scvi(cells, "batch")


# ---------------------------------------------------------------- several at once


def test_runs_are_deterministic_and_leave_everything_as_it_was(planted, capfd):
    state, folder, environment = np.random.get_state()[1].copy(), os.getcwd(), dict(os.environ)
    others = random.getstate(), torch.random.get_rng_state(), logging.root.manager.disable
    first, second = (run([*LINEAR, "MOFA+"], planted, "batch", 4, seed=3, progress=False) for _ in range(2))
    assert list(first.embeddings) == list(first.seconds) == [*LINEAR, "MOFA+"]
    for name, z in first.embeddings.items():
        assert z.shape == (N, 4) and z.dtype == np.float32
        np.testing.assert_array_equal(z, second.embeddings[name])
    assert np.array_equal(state, np.random.get_state()[1]) and folder == os.getcwd()
    assert environment == dict(os.environ) and others[0] == random.getstate()
    assert torch.equal(others[1], torch.random.get_rng_state()) and others[2] == logging.root.manager.disable
    assert capfd.readouterr() == ("", "")


def test_a_method_that_fails_is_told_and_costs_no_other(planted):
    def breaks(mdata, batch_key, n_latent, seed):
        raise KeyError("lost")

    def gaps(mdata, batch_key, n_latent, seed):
        z = np.zeros((mdata.n_obs, n_latent))
        z[7, 1] = np.nan
        return z

    given = {
        "breaks": Method(breaks, ""),
        "gaps": Method(gaps, ""),
        "narrow": Method(lambda m, b, n_latent, seed: np.zeros((m.n_obs, 2)), ""),
        "empty": Method(lambda m, b, n_latent, seed: np.full((m.n_obs, n_latent), np.nan), ""),
        "absent": Method(breaks, "", "scvi_that_is_not_there"),
        "PCA": METHODS["PCA"],
    }
    foreign.INSTALL["scvi_that_is_not_there"] = "pip install it"
    runs = run(given, planted, "batch", 4, progress=False)
    del foreign.INSTALL["scvi_that_is_not_there"]
    assert list(runs.embeddings) == ["PCA"]
    table = runs.skipped.set_index("method")
    assert list(table["status"]) == ["failed"] * 4 + ["skipped"]
    assert table.loc["breaks", "reason"] == "KeyError: 'lost'"
    assert "no finite values for 's7'" in table.loc["gaps", "reason"]
    assert "shape [120, 2], not [120, 4]" in table.loc["narrow", "reason"]
    assert "(120 in all)" in table.loc["empty", "reason"]
    assert table.loc["absent", "command"] == "pip install it"


def test_one_batch_is_refused_by_those_that_align_batches(planted):
    planted.obs["batch"] = "only"
    with pytest.raises(views.Unsuited, match=r"Harmony aligns batches, .* all of one 'batch': 'only'"):
        integration.harmony(planted, "batch", 4)
    with pytest.raises(views.Unsuited, match="Scanorama aligns batches"):
        integration.scanorama(planted, "batch", 4)
    runs = run(LINEAR, planted, "batch", 4, progress=False)
    assert list(runs.embeddings) == ["PCA", "concatenated PCA"]
    assert list(runs.skipped["status"]) == ["skipped"]


def test_what_was_asked_wrongly_is_an_error_at_once(planted):
    with pytest.raises(ValueError, match=r"no method 'harmony'; did you mean 'Harmony'\?"):
        run(["harmony"], planted, "batch")
    with pytest.raises(ValueError, match="'PCA' is named more than once"):
        run(["PCA", "PCA"], planted, "batch")
    with pytest.raises(ValueError, match="there is no column 'slide' in obs"):
        run(["PCA"], planted, "slide")
    for n_latent in (0, N, 2.0):
        with pytest.raises(ValueError, match="must be a whole number from 1 to n_obs - 1, here 119"):
            run(["PCA"], planted, "batch", n_latent)
    planted.obs["batch"] = pd.Series(["a"] * (N - 2) + [None] * 2, index=planted.obs_names)
    with pytest.raises(ValueError, match="2 samples have no 'batch': 's118', 's119'"):
        run(["PCA"], planted, "batch")


def test_more_dimensions_than_features_are_a_reason(planted):
    with pytest.raises(views.Unsuited, match="n_latent=25 is more than 120 samples with 20 varying features allow"):
        integration.pca(planted, "batch", 25, modality="msi")
    runs = run(["concatenated PCA", "MOFA+"], planted, "batch", 60, progress=False)
    assert runs.skipped["reason"].str.contains("n_latent=60 is more than").all() and not runs.embeddings


def test_a_modality_that_nobody_has_is_a_reason(planted):
    lost = without(planted, {"msi": np.ones(N, bool)})
    runs = run(["PCA", "concatenated PCA", "MOFA+"], lost, "batch", 4, progress=False)
    assert list(runs.skipped["method"]) == ["concatenated PCA"] and np.isfinite(runs.embeddings["MOFA+"]).all()


def test_one_modality_is_not_concatenated(planted):
    with pytest.raises(views.Unsuited, match="two modalities, and there is only 'rna'"):
        integration.concatenated_pca(build({"rna": np.asarray(planted["rna"].X)}), "batch", 4)


# ---------------------------------------------------------------- other people's packages


def test_a_package_is_silent_and_its_traces_are_put_back(capfd):
    np.random.seed(5)
    expected, handler = np.random.RandomState(5).random(), signal.getsignal(signal.SIGINT)
    here = os.getcwd()
    with warnings.catch_warnings(record=True) as said, foreign.isolated(0, "json"):
        print("noise")
        print("noise", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("noisy").critical("noise")
        os.environ["NOISE"] = "1"
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        np.random.seed(9)
        assert os.getcwd() != here
    assert np.random.random() == expected and "NOISE" not in os.environ and os.getcwd() == here
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr() == ("", "") and not said


def test_a_package_that_leaves_python_does_not_take_us_with_it():
    with pytest.raises(RuntimeError, match="json stopped: Error: no data"), foreign.isolated(0, "json"):
        print("Error: no data")
        sys.exit()
    with pytest.raises(KeyboardInterrupt), foreign.isolated(0, "json"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)


def test_a_package_that_is_absent_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(foreign.INSTALL, "not_there_at_all", "pip install it")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all is not installed: pip install it"):
        with foreign.isolated(0, "not_there_at_all"):
            pass


def test_every_package_of_a_method_has_a_command():
    assert {method.package for method in METHODS.values()} - {""} == set(foreign.INSTALL)
