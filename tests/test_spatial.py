"""Coordinates of spots: from every kind of file to the maps; and the parser of the lymph node on small files."""

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from helpers import checks, datasets, prepare, spatial

PROTEINS = ["CD3E", "CD19", "PTPRC"]


def spots(n=6, first=0, **obsm):
    """One modality of counts with coordinates."""
    names = [f"spot{first + i}" for i in range(n)]
    adata = ad.AnnData(np.arange(3.0 * n, dtype=np.float32).reshape(n, 3), obs=pd.DataFrame(index=names))
    adata.var_names = [f"feature{n}_{first}_{i}" for i in range(3)]
    adata.obs["region"] = ["a", "b"] * (n // 2)
    for key, value in obsm.items():
        adata.obsm[key] = value
    return adata


def places(n=6, first=0):
    return np.column_stack([np.arange(n) + first, 10.0 * (np.arange(n) + first)])


# --- coordinates ---


def test_coordinates_are_two_numbers_a_spot():
    mdata = md.MuData({"rna": spots()})
    mdata.obsm["spatial"] = places().astype(np.int64)
    found = spatial.coordinates(mdata)
    assert found.dtype == np.float64 and np.array_equal(found, places())
    found[0] = -1
    assert np.array_equal(mdata.obsm["spatial"], places()), "a copy"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (None, r"tissue maps need mdata.obsm\['spatial'\], two numbers a spot"),
        (np.zeros((6, 3)), "is 6 x 3 of float64; it must be two numbers"),
        (np.full((6, 2), "x", dtype=object), "of object; it must be two numbers"),
        (np.where(np.arange(6)[:, None] == 2, np.nan, places()), "1 spots have no place .* 'spot2'; leave them out"),
        (np.where(np.arange(6)[:, None] > 0, np.inf, places()), "5 spots have no place"),
    ],
)
def test_maps_without_coordinates_are_refused(place, said):
    mdata = md.MuData({"rna": spots()})
    if place is not None:
        mdata.obsm["spatial"] = place
    with pytest.raises(ValueError, match=said):
        spatial.coordinates(mdata)


def test_coordinates_come_with_an_h5ad(tmp_path):
    spots(spatial=places()).write_h5ad(tmp_path / "slide.h5ad")
    mdata = datasets.load(tmp_path / "slide.h5ad", label_key="region")
    assert np.array_equal(spatial.coordinates(mdata), places()) and mdata.obs_names[0] == "spot0"


def test_coordinates_come_with_an_h5mu_in_the_order_of_its_samples(tmp_path):
    mdata = md.MuData({"rna": spots(), "protein": spots(4, first=2)})
    mdata.obsm["spatial"] = places()
    mdata.write(tmp_path / "slide.h5mu")
    for kept in ((), ("protein", "rna"), ("protein",)):
        again = datasets.load(tmp_path / "slide.h5mu", modalities=kept)
        number = again.obs_names.str.removeprefix("spot").astype(int)
        assert np.array_equal(spatial.coordinates(again)[:, 0], number)
    assert again.n_obs == 4


def test_coordinates_of_a_modality_become_those_of_the_samples(tmp_path):
    rna, protein = spots(4, spatial=places(4)), spots(4, first=2, spatial=places(4, first=2))
    md.MuData({"rna": rna, "protein": protein}).write(tmp_path / "slide.h5mu")
    mdata = datasets.load(tmp_path / "slide.h5mu")
    assert mdata.n_obs == 6
    number = mdata.obs_names.str.removeprefix("spot").astype(int)
    assert np.array_equal(spatial.coordinates(mdata)[:, 0], number)


def test_spots_that_no_modality_places_are_named(tmp_path):
    md.MuData({"rna": spots(4, spatial=places(4)), "protein": spots(4, first=2)}).write(tmp_path / "slide.h5mu")
    with pytest.raises(ValueError, match=r"2 spots have no place .* 'spot4', 'spot5'"):
        spatial.coordinates(datasets.load(tmp_path / "slide.h5mu"))


def test_the_samples_own_coordinates_stand_before_those_of_a_modality(tmp_path):
    mdata = md.MuData({"rna": spots(spatial=np.zeros((6, 2)))})
    mdata.obsm["spatial"] = places()
    mdata.write(tmp_path / "slide.h5mu")
    assert np.array_equal(spatial.coordinates(datasets.load(tmp_path / "slide.h5mu")), places())


def test_preparation_keeps_coordinates_beside_their_spots():
    mdata = datasets.load("sim-spatial", n_patients=2, n_spots=60, n_genes=40, n_ions=30, n_morphology=20)
    where = pd.DataFrame(spatial.coordinates(mdata), mdata.obs_names)
    raw = prepare.split(prepare.complete(mdata, n_samples=150), stratify="region", seed=0)
    ready = prepare.fit_transform(raw, n_features=20, scale="standard")
    for later in (raw, ready, ready[ready.obs["split"] == "test"].copy(), prepare.transform(raw, ready)):
        assert np.array_equal(spatial.coordinates(later), where.loc[later.obs_names])
    assert raw.n_obs == 150


def test_notebook_07_asks_for_batches_and_labels_and_takes_one_modality():
    parts = checks.Parts({"protein": spots(60)}, spots(60).obs.assign(slice=["s1"] * 30 + ["s2"] * 30), "slide")
    parts.label_key, parts.batch_key = "region", "slice"
    assert checks.needs(parts)["07 MIMA integration"] == []
    parts.batch_key = ""
    assert checks.needs(parts)["07 MIMA integration"] == ["a batch column with two batches or more (batch_key)"]


# --- the lymph node ---


@pytest.fixture
def slices(tmp_path):
    """Two small slices in the published format: sparse counts, row and column of the grid, one region named twice."""
    rng, files = np.random.default_rng(0), {}
    for name, vessel, n in (("s1", "medulla vessels", 5), ("s2", "medulla vessel", 4)):
        obs = pd.DataFrame({"final_annot": [vessel, "cortex", "follicle", "cortex", "hilum"][:n], "src": name})
        obs.index = [f"{name}-{i}" for i in range(n)]
        x = sp.csr_matrix(rng.poisson(3.0, (n, 3)).astype(np.float32))
        adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=PROTEINS))
        adata.obsm["spatial"] = np.array([[0, 0], [0, 2], [1, 1], [2, 0], [3, 3]])[:n]
        files[f"{name}_adata_adt.h5ad"] = tmp_path / f"{name}_adata_adt.h5ad"
        adata.write_h5ad(tmp_path / f"{name}_adata_adt.h5ad")
    return files


def changed(files, name, change):
    adata = ad.read_h5ad(files[name])
    change(adata).write_h5ad(files[name])


def test_the_lymph_node_is_two_slices_of_counts_with_regions(slices):
    parts = spatial.lymph_node(slices)
    assert checks.problems(parts) == []
    mdata = checks.assemble(parts)
    assert mdata["protein"].shape == (9, 3) and list(mdata["protein"].var_names) == PROTEINS
    published = np.vstack([ad.read_h5ad(path).X.toarray() for path in slices.values()])
    assert isinstance(mdata["protein"].X, np.ndarray) and np.array_equal(mdata["protein"].X, published)
    assert mdata.obs["region"].tolist()[::5] == ["medulla vessels"] * 2 and mdata.obs["region"].nunique() == 4
    assert mdata.obs["slice"].tolist() == ["s1"] * 5 + ["s2"] * 4


def test_its_grid_is_hexagonal_in_micrometres(slices):
    place = spatial.coordinates(checks.assemble(spatial.lymph_node(slices)))
    assert np.allclose(np.linalg.norm(place[1:3] - place[0], axis=1), 100)
    assert np.allclose(place[1], [100, 0]) and np.allclose(place[3], [0, 2 * np.sqrt(0.75) * 100])
    assert np.array_equal(place[:4], place[5:9])


def test_some_of_its_spots_keep_their_places(slices):
    whole, some = (checks.assemble(spatial.lymph_node(slices, n_obs=n, seed=3)) for n in (None, 5))
    rows = whole.obs_names.get_indexer(some.obs_names)
    assert some.n_obs == 5 and np.array_equal(some.obsm["spatial"], whole.obsm["spatial"][rows])
    assert np.array_equal(some["protein"].X, whole["protein"].X[rows])
    with pytest.raises(ValueError, match="n_obs=99 cannot be had of lymphnode-spatial"):
        spatial.lymph_node(slices, n_obs=99)


def test_slices_that_do_not_belong_together_or_lack_something_are_refused(slices):
    def without_annotation(adata):
        del adata.obs["final_annot"]
        return adata

    changed(slices, "s2_adata_adt.h5ad", lambda adata: adata[:, ::-1].copy())
    with pytest.raises(ValueError, match="the proteins of the slices 's1', 's2' differ"):
        spatial.lymph_node(slices)
    changed(slices, "s1_adata_adt.h5ad", without_annotation)
    with pytest.raises(ValueError, match=r"s1_adata_adt.h5ad lacks the column final_annot"):
        spatial.lymph_node(slices)
    slices["s1_adata_adt.h5ad"].write_bytes(slices["s1_adata_adt.h5ad"].read_bytes()[:500])
    with pytest.raises(ValueError, match=r"s1_adata_adt.h5ad cannot be read: the file is truncated"):
        spatial.lymph_node(slices)
