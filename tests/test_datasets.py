"""Data sets: what loads, what is refused and with which sentence, and downloads from servers that misbehave."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import re
import stat
import subprocess
import sys
import tracemalloc
import zipfile

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import rdata
import scipy.sparse as sp
import tifffile
import xarray as xr
from faults import data_server

from helpers import bundled, checks, datasets, project, sources

NO_NETWORK = [
    name for name, entry in datasets.registry().items() if all(sources.is_cached(file) for file in entry.files)
]  # embedded and bundled ones always, downloads where WORKBOOK_DATA has them


def shape_text(mdata):
    """Shapes as the registry writes them: samples x features/features, next group of modalities."""
    groups: list[list] = []
    for adata in mdata.mod.values():
        if groups and groups[-1][0] == adata.n_obs:
            groups[-1][1].append(adata.n_vars)
        else:
            groups.append([adata.n_obs, [adata.n_vars]])
    return ", ".join(f"{n} x {'/'.join(map(str, n_vars))}" for n, n_vars in groups)


def matrix(n_obs=6, n_vars=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n_obs, n_vars)).astype(np.float32)


def modality(x, samples=None, features=None):
    samples = [f"s{i}" for i in range(x.shape[0])] if samples is None else samples
    features = [f"f{j}" for j in range(x.shape[1])] if features is None else features
    return checks.part(x, samples, features)


def parts(modalities, obs=None, **fields):
    names = pd.Index([]).append([adata.obs_names for adata in modalities.values()]).drop_duplicates()
    obs = pd.DataFrame(index=names) if obs is None else pd.DataFrame(obs, index=names)
    return checks.Parts(modalities, obs, "mine", **fields)


@contextlib.contextmanager
def refused(*fragments, error=ValueError):
    """The error is one line and holds every fragment."""
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- the registry ---


@pytest.mark.parametrize("name", NO_NETWORK)
def test_loads_as_the_registry_says(name, tmp_path):
    entry, mdata = datasets.registry()[name], datasets.load(name)
    about = mdata.uns["dataset"]
    assert shape_text(mdata) == entry.shape
    assert (about["name"], about["label_key"], about["batch_key"]) == (name, entry.label_key, entry.batch_key)
    assert about["modalities"] == dict(entry.modalities) and re.fullmatch("[0-9a-f]{64}", about["sha256"])
    assert mdata.obs[entry.label_key].nunique() > 1 and len(mdata.obs) == mdata.n_obs
    assert all(adata.X.dtype == np.float32 for adata in mdata.mod.values())
    mdata.write(tmp_path / "copy.h5mu")
    again = datasets.load(tmp_path / "copy.h5mu")
    assert again.uns["dataset"]["modalities"] == about["modalities"]
    assert again.uns["dataset"]["label_key"] == entry.label_key
    for m, adata in mdata.mod.items():
        assert (sp.csr_matrix(again[m].X) != sp.csr_matrix(adata.X)).nnz == 0
    assert again.obs_names.equals(mdata.obs_names)


@pytest.mark.parametrize("name", list(datasets.registry()))
def test_entries_are_complete(name):
    entry = datasets.registry()[name]
    assert entry.source in ("embedded", "bundled", "download") and bool(entry.files) == (entry.source == "download")
    assert set(entry.modalities.values()) <= set(checks.KINDS) and entry.label_key
    assert entry.about and entry.licence and entry.citation and entry.notebooks
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"
    for file in entry.files:
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", file.url)
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.n_bytes > 0
    assert len({file.path for file in entry.files}) == len(entry.files)


def test_the_page_on_data_says_what_the_registry_says():
    page = (project.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, entry in datasets.registry().items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(word in row for word in (entry.shape, entry.label_key, entry.licence, " ".join(entry.notebooks)))
        for file in entry.files:
            repository, commit = file.url.split("/")[4:6]
            assert repository in page and commit[:7] in page
            assert file.path.endswith(".tif") or (file.path in page and file.sha256 in page)


def test_ontologies_are_complete_and_described_on_the_page():
    page = (project.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, entry in datasets.ontologies().items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(word in row for word in (entry.about, entry.shape, entry.licence, " ".join(entry.notebooks)))
        assert entry.citation and entry.n_bytes > 1000 and name not in datasets.registry()
        for file in entry.files:
            assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", file.url)
            repository, commit = file.url.split("/")[4:6]
            assert repository in page and commit[:7] in page and file.path in page
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.sha256 in page


def test_an_ontology_is_no_data_set():
    with refused("'reactome' is an ontology", "helpers.ontology"):
        datasets.load("reactome")


def test_options_reach_the_generator_and_unknown_ones_are_named():
    assert datasets.load("sim-bulk", n_obs=80, n_rna=70, seed=5)["rna"].shape == (80, 70)
    with refused("sim-bulk", "'n_ob'", "did you mean 'n_obs'?"):
        datasets.load("sim-bulk", n_ob=80)


def test_unknown_name_gives_the_closest():
    with refused("'sim-bluk'", "did you mean 'sim-bulk'?", "tcga-brca"):
        datasets.load("sim-bluk")
    with refused("'tcga-brac'", "did you mean 'tcga-brca'?"):
        datasets.fetch("tcga-brac")


def test_modalities_are_chosen_in_order():
    mdata = datasets.load("sim-bulk", n_obs=60, modalities=["mutation", "rna"], label_key="stage")
    assert list(mdata.mod) == ["mutation", "rna"] and mdata.uns["dataset"]["label_key"] == "stage"
    with refused("'methylaton'", "did you mean 'methylation'?"):
        datasets.load("sim-bulk", n_obs=60, modalities=["methylaton"])


def test_choosing_modalities_of_a_mosaic_keeps_only_their_samples():
    whole = datasets.load("sim-bulk", n_obs=100, missing=0.5)
    chosen = datasets.load("sim-bulk", n_obs=100, missing=0.5, modalities=["rna"])
    assert chosen.n_obs == whole["rna"].n_obs < whole.n_obs == 100
    assert chosen.obs_names.equals(chosen["rna"].obs_names)


def test_digits_are_images():
    image = datasets.load("digits")["image"]
    assert list(image.uns["image_shape"]) == [8, 8, 1] and (image.X.min(), image.X.max()) == (0, 1)


def test_digits_stand_for_the_cancer_types_of_simulated_tumours():
    mdata = datasets.load("bulk-digits", n_obs=60, seed=2)
    rna, image, obs = mdata["rna"], mdata["image"], mdata.obs
    assert not rna.obs_names.isin(image.obs_names).any() and mdata.n_obs == 60 + 901
    types = list(obs["cancer_type"].cat.categories)
    shown, tumours = obs.loc[image.obs_names], obs.loc[rna.obs_names]
    assert len(types) == 5 and [types[int(k)] for k in shown["digit"]] == shown["cancer_type"].tolist()
    alone = datasets.load("sim-bulk", n_obs=60, n_types=5, seed=2)
    assert np.array_equal(rna.X, alone["rna"].X) and tumours["cancer_type"].equals(alone.obs["cancer_type"])
    assert tumours["digit"].isna().all() and not tumours.drop(columns="digit").isna().any(axis=None)
    assert shown.drop(columns=["digit", "cancer_type"]).isna().all(axis=None)
    plain = datasets.load("digits")
    assert shown["digit"].astype(str).equals(plain.obs["digit"].loc[image.obs_names].astype(str))


def test_pictures_of_digits_are_resized():
    small, large = (datasets.load("bulk-digits", n_obs=60, size=size)["image"] for size in (8, (16, 24)))
    plain = datasets.load("digits")["image"]
    assert np.allclose(small.X, plain[small.obs_names].X) and list(large.uns["image_shape"]) == [16, 24, 1]
    assert large.n_vars == 16 * 24 and 0.9 < large.X.mean() / small.X.mean() < 1.1


def test_unpaired_sets_load_and_stay_loadable_from_a_copy_but_users_must_ask(tmp_path):
    mdata = datasets.load("bulk-digits", n_obs=60, size=8)
    assert datasets.registry()["bulk-digits"].unpaired and mdata.uns["dataset"]["unpaired"]
    assert datasets.validate(mdata) is mdata
    mdata.write(tmp_path / "copy.h5mu")
    assert datasets.load(tmp_path / "copy.h5mu").n_obs == mdata.n_obs
    del mdata.uns["dataset"]["unpaired"]
    mdata.write(tmp_path / "other.h5mu")
    with refused("no samples in common"):
        datasets.load(tmp_path / "other.h5mu")
    assert "unpaired" not in datasets.load("sim-bulk", n_obs=60).uns["dataset"]


def test_import_is_light():
    heavy = "{'scanpy', 'umap', 'jax', 'sklearn', 'matplotlib', 'torch'}"
    code = f"import sys, helpers.datasets; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project.ROOT, check=True)
    assert done.stdout.strip() == ""


# --- what is refused ---


def broken(value, at=(2, 1), sparse=False):
    x = np.abs(matrix())
    x[at] = value
    return modality(sp.csr_matrix(x) if sparse else x)


@pytest.mark.parametrize("sparse", [False, True])
def test_nan_is_refused_unless_allowed(sparse):
    data = parts({"rna": broken(np.nan, sparse=sparse)})
    with refused(
        "mine: modality 'rna' has 1 missing values (NaN), first in 'f1'", "prepare.fit_transform(..., nan=...)"
    ):
        checks.refuse(data)
    assert checks.problems(data, allow_nan=True) == []
    assert np.isnan(checks.assemble(data)["rna"].X.toarray() if sparse else checks.assemble(data)["rna"].X).sum() == 1


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused_even_beside_allowed_nan(sparse, value):
    data = parts({"rna": broken(value, sparse=sparse)})
    with refused("modality 'rna' has 1 infinite values, first in 'f1'"):
        checks.refuse(data, allow_nan=True)


def test_float64_beyond_float32_counts_as_infinite():
    x = matrix().astype(np.float64)
    x[0, 3] = 1e300
    adata = ad.AnnData(x, var=pd.DataFrame(index=list("abcd")))
    assert "1 infinite values, first in 'd'" in checks.problems(parts({"rna": adata}))[0]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        ("counts", -1.0, "1 negative counts"),
        ("unit", 1.5, "values outside 0 to 1"),
        ("binary", 2.0, "other than 0 and 1"),
    ],
)
def test_values_must_fit_their_kind(kind, value, sentence, sparse):
    x = np.ones((6, 4), np.float32)
    x[0, 1] = value
    data = parts({"rna": modality(sp.csr_matrix(x) if sparse else x)}, kinds={"rna": kind})
    with refused("modality 'rna'", f"of kind '{kind}'", sentence, "'f1'"):
        checks.refuse(data)
    assert checks.problems(dataclasses.replace(data, kinds={"rna": "continuous"})) == []


def test_unknown_kind_gives_the_closest():
    with refused("'count'", "did you mean 'counts'?"):
        datasets.load("sim-bulk", n_obs=60, kinds={"rna": "count"})


def test_duplicate_names_are_refused():
    x = matrix()
    with refused("modality 'rna' has 1 duplicate sample names: 's0'"):
        checks.refuse(parts({"rna": modality(x, ["s0", "s0", "s2", "s3", "s4", "s5"])}))
    with refused("modality 'rna' has 2 duplicate feature names: 'a', 'b'"):
        checks.refuse(parts({"rna": modality(x, features=["a", "b", "a", "b"])}))


def test_modalities_without_common_samples_are_refused_unless_allowed():
    data = parts({"rna": modality(matrix()), "protein": modality(matrix(), [f"cell{i}" for i in range(6)])})
    with refused("modality 'protein' has no samples in common with 'rna'", "'s0'", "'cell0'", "allow_unpaired=True"):
        checks.refuse(data)
    assert checks.problems(data, allow_unpaired=True) == []
    assert checks.assemble(data).n_obs == 12


def test_a_chain_of_modalities_hangs_together():
    names = {"rna": range(0, 6), "protein": range(4, 10), "atac": range(8, 14)}
    chain = {m: modality(matrix(), [f"s{i}" for i in n]) for m, n in names.items()}
    assert checks.problems(parts(chain)) == []
    assert (
        "'atac' has no samples in common with 'rna'"
        in checks.problems(parts({m: chain[m] for m in ("rna", "atac")}))[0]
    )


@pytest.mark.parametrize("shape", [(0, 4), (6, 0)])
def test_empty_modality_is_refused(shape):
    with refused(f"modality 'rna' is empty ({shape[0]} samples x {shape[1]} features)"):
        checks.refuse(parts({"rna": modality(np.zeros(shape, np.float32))}))


def test_no_modality_at_all_is_refused():
    assert "no modality" in checks.problems(checks.Parts({}, pd.DataFrame(), "mine"))[0]


def test_text_in_x_is_refused():
    adata = ad.AnnData(matrix())
    adata.X = np.array([["a", "b", "c", "d"]] * 6, dtype=object)
    assert "modality 'rna' is not numeric" in checks.problems(parts({"rna": adata}))[0]


def test_label_column_must_be_there_and_have_two_classes():
    rna = {"rna": modality(matrix())}
    with refused("label column 'cell_typ' is not in obs", "did you mean 'cell_type'?"):
        checks.refuse(parts(rna, {"cell_type": list("aabbcc")}, label_key="cell_typ"))
    with refused("batch column 'lane' is not in obs", "there are no columns at all"):
        checks.refuse(parts(rna, batch_key="lane"))
    with refused("label column 'type' has only one class ('a')"):
        checks.refuse(parts(rna, {"type": ["a", None, "a", "a", "a", "a"]}, label_key="type"))
    with refused("label column 'type' has no values"):
        checks.refuse(parts(rna, {"type": [None] * 6}, label_key="type"))


def test_all_problems_are_counted_and_listed():
    data = parts({"rna": broken(np.nan), "protein": broken(np.inf)}, label_key="type")
    assert len(checks.problems(data)) == 3
    with refused("(and 2 more: `python -m helpers.datasets check` lists all)"):
        checks.refuse(data)


def test_validate_returns_sound_data_and_names_what_is_wrong(two_modalities):
    assert datasets.validate(two_modalities, "mine") is two_modalities
    two_modalities["rna"].X[3, 2] = np.nan
    with refused("mine: modality 'rna' has 1 missing values"):
        datasets.validate(two_modalities, "mine")


def test_constant_features_and_other_harmless_things_are_only_noted():
    x = np.round(np.abs(matrix(40)) * 5)
    x[:, 2] = 3
    for matrices in (x, sp.csr_matrix(x)):
        data = parts({"rna": modality(matrices)}, {"type": ["a", "b", "b", None] * 10}, label_key="type")
        assert checks.problems(data) == []
        assert any("1 of 4 features are constant" in text for text in checks.notes(data))
        assert any("'type' is missing for 10 of 40" in text for text in checks.notes(data))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 3, 7, 0], "counts"),
        ([0, 1, 1, 0], "binary"),
        ([0.2, 0, 1, 0.5], "unit"),
        ([0.2, 0, 7, 0.5], "continuous"),
        ([-1, 0, 2, 3], "continuous"),
        ([0.5, np.nan, 0.2, 0], "unit"),
        ([2, np.nan, 5, 0], "counts"),
    ],
)
def test_kind_is_seen_from_the_values(values, kind, sparse):
    x = np.array([values] * 3, np.float32)
    assert checks.detect_kind(modality(sp.csr_matrix(x) if sparse else x)) == kind


def test_range_of_a_sparse_matrix_counts_what_is_not_stored():
    x = sp.csr_matrix(np.array([[0, 2], [3, 5]], np.float32))
    assert checks.value_range(x) == (0, 5) and checks.value_range(-x) == (-5, 0)
    assert checks.value_range(x[1:]) == (3, 5) and checks.value_range(sp.csr_matrix((2, 2))) == (0, 0)


def test_checks_of_a_sparse_matrix_need_little_memory(monkeypatch):
    monkeypatch.setattr(checks, "BLOCK", 1 << 14)
    x = sp.random(2000, 1000, density=0.3, format="csr", dtype=np.float32, random_state=0)
    x.data = np.ceil(x.data * 9)
    data = parts({"rna": modality(x)})
    tracemalloc.start()
    assert checks.problems(data) == [] and checks.kind_of(data, "rna") == "counts"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * x.data.nbytes


def test_named_indices_do_not_break_a_mosaic_on_its_way_through_h5mu(tmp_path):
    short = matrix(3)
    data = parts({"rna": modality(matrix()), "protein": modality(short)}, {"type": list("aabbcc")})
    for adata in data.modalities.values():
        adata.obs.index.name, adata.var.index.name = "cell", "gene"
    checks.assemble(data).write(tmp_path / "mine.h5mu")
    assert np.array_equal(datasets.load(tmp_path / "mine.h5mu")["protein"].X, short)


# --- the user's own files ---


@pytest.fixture
def frame():
    """60 samples x 5 genes of counts, as a biologist would have them in a table."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(rng.poisson(3, (60, 5)), index=[f"p{i}" for i in range(60)], columns=list("ABCDE"))


def annotation(frame):
    return pd.DataFrame({"type": ["x", "y", "z"] * 20, "lane": ["1", "2"] * 30}, index=frame.index)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zip", ".parquet"])
def test_table_round_trip(frame, tmp_path, ending):
    path, obs = tmp_path / f"mine{ending}", tmp_path / "obs.csv"
    write(frame, path)
    annotation(frame).iloc[::-1].to_csv(obs)  # in another order
    mdata = datasets.load(path, obs=obs, label_key="type", batch_key="lane")
    assert np.array_equal(mdata["rna"].X, frame.to_numpy()) and list(mdata.obs_names) == list(frame.index)
    assert list(mdata["rna"].var_names) == list("ABCDE") and mdata.obs["type"].tolist() == ["x", "y", "z"] * 20
    about = mdata.uns["dataset"]
    assert about["name"] == path.name and about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["modalities"] == {"rna": "counts"} and (about["label_key"], about["batch_key"]) == ("type", "lane")


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if ".tsv" in path.suffixes else ",")


def test_parquet_without_an_index_takes_its_first_column(frame, tmp_path):
    frame.rename_axis("sample").reset_index().to_parquet(tmp_path / "mine.parquet", index=False)
    assert list(datasets.load(tmp_path / "mine.parquet", modality="protein")["protein"].obs_names) == list(frame.index)


def test_several_tables_make_a_mosaic(frame, tmp_path):
    frame.to_csv(tmp_path / "rna.csv")
    (frame.iloc[40:] / 10).to_csv(tmp_path / "protein.csv")
    mdata = datasets.load(
        {"rna": tmp_path / "rna.csv", "protein": tmp_path / "protein.csv"}, kinds={"protein": "continuous"}
    )
    assert mdata.n_obs == 60 and mdata["protein"].n_obs == 20
    assert mdata.uns["dataset"]["modalities"] == {"rna": "counts", "protein": "continuous"}
    with refused("p9.csv does not exist", error=FileNotFoundError):
        datasets.load({"rna": tmp_path / "rna.csv", "protein": tmp_path / "p9.csv"})


def test_label_may_stand_in_the_data_table(frame, tmp_path):
    pd.concat([annotation(frame), frame], axis=1).to_csv(tmp_path / "mine.csv")
    mdata = datasets.load(tmp_path / "mine.csv", label_key="type", batch_key="lane")
    assert mdata["rna"].n_vars == 5 and mdata.obs["type"].nunique() == 3
    with refused("columns are not numeric: 'type'", "(for example 'x')"):
        datasets.load(tmp_path / "mine.csv")


def test_faults_of_tables_are_named(frame, tmp_path):
    frame.rename(columns={"B": "A"}).to_csv(tmp_path / "twice.csv")
    with refused("duplicate feature names: 'A'"):
        datasets.load(tmp_path / "twice.csv")
    pd.concat([frame, frame.iloc[:2]]).to_csv(tmp_path / "rows.csv")
    with refused("duplicate sample names: 'p0', 'p1'"):
        datasets.load(tmp_path / "rows.csv")
    frame.where(frame > 0).to_csv(tmp_path / "gaps.csv")
    with refused("missing values (NaN)"):
        datasets.load(tmp_path / "gaps.csv")
    assert np.isnan(datasets.load(tmp_path / "gaps.csv", allow_nan=True)["rna"].X).any()
    (tmp_path / "empty.csv").write_text("")
    with refused("empty.csv cannot be read as a table"):
        datasets.load(tmp_path / "empty.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with refused("broken.parquet cannot be read as a table"):
        datasets.load(tmp_path / "broken.parquet")


@pytest.mark.parametrize("corner", ["sample", ""])
def test_sample_names_that_look_like_numbers_stay_as_they_are(frame, tmp_path, corner):
    frame.index = [f"{i:03d}" for i in range(60)]
    frame.to_csv(tmp_path / "rna.csv", index_label=corner)
    annotation(frame).to_csv(tmp_path / "obs.csv", index_label=corner)
    mdata = datasets.load(tmp_path / "rna.csv", obs=tmp_path / "obs.csv", label_key="type")
    assert list(mdata.obs_names) == list(frame.index) and mdata.obs["type"].notna().all()
    assert np.array_equal(mdata["rna"].X, frame) and list(mdata["rna"].var_names) == list("ABCDE")


def test_annotation_must_name_the_samples(frame, tmp_path):
    frame.T.to_csv(tmp_path / "turned.csv")
    annotation(frame).to_csv(tmp_path / "obs.csv")
    with refused("obs.csv names no sample of the data", "transpose"):
        datasets.load(tmp_path / "turned.csv", obs=tmp_path / "obs.csv")
    frame.to_csv(tmp_path / "mine.csv")
    pd.concat([annotation(frame)] * 2).to_csv(tmp_path / "twice.csv")
    with refused("twice.csv has 60 duplicate sample names"):
        datasets.load(tmp_path / "mine.csv", obs=tmp_path / "twice.csv")


def test_h5ad_round_trip(frame, tmp_path):
    adata = ad.AnnData(
        sp.csc_matrix(frame.to_numpy(float)), obs=annotation(frame), var=pd.DataFrame(index=frame.columns)
    )
    adata.layers["scaled"] = frame.to_numpy(np.float32) / 100
    adata.obsm["spatial"] = np.arange(120.0).reshape(60, 2)
    adata.write(tmp_path / "mine.h5ad")
    mdata = datasets.load(tmp_path / "mine.h5ad", label_key="type")
    assert isinstance(mdata["rna"].X, sp.csr_matrix) and mdata["rna"].X.dtype == np.float32
    assert np.array_equal(mdata["rna"].X.toarray(), frame) and mdata.uns["dataset"]["modalities"] == {"rna": "counts"}
    assert np.array_equal(mdata.obsm["spatial"], adata.obsm["spatial"])
    scaled = datasets.load(tmp_path / "mine.h5ad", modality="protein", layer="scaled")
    assert scaled.uns["dataset"]["modalities"] == {"protein": "unit"}
    with refused("there is no layer 'scale'", "did you mean 'scaled'?"):
        datasets.load(tmp_path / "mine.h5ad", layer="scale")
    with refused("'modalitty'", "did you mean 'modality'?"):
        datasets.load(tmp_path / "mine.h5ad", modalitty="rna")


def test_h5ad_is_parted_by_feature_types(frame, tmp_path):
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 3 + ["Antibody Capture"] * 2}, index=frame.columns)
    ad.AnnData(frame.to_numpy(np.float32), obs=annotation(frame), var=var).write(tmp_path / "mine.h5ad")
    mdata = datasets.load(tmp_path / "mine.h5ad")
    assert {m: mdata[m].n_vars for m in mdata.mod} == {"rna": 3, "protein": 2}


def test_h5mu_round_trip_with_other_names_and_labels_in_one_modality(frame, tmp_path):
    rna = ad.AnnData(frame.to_numpy(np.float32), obs=annotation(frame), var=pd.DataFrame(index=frame.columns))
    adt = ad.AnnData(matrix(30, 3), obs=pd.DataFrame(index=frame.index[:30]), var=pd.DataFrame(index=list("UVW")))
    adt.obs["gate"] = ["+", "-"] * 15
    md.MuData({"rna": rna, "adt": adt}).write(tmp_path / "mine.h5mu")
    mdata = datasets.load(str(tmp_path / "mine.h5mu"), label_key="type")
    assert {m: mdata[m].shape for m in mdata.mod} == {"rna": (60, 5), "protein": (30, 3)}
    assert mdata.obs["type"].tolist() == ["x", "y", "z"] * 20
    assert mdata.obs["gate"].tolist()[:30] == ["+", "-"] * 15 and mdata.obs["gate"].isna().sum() == 30
    assert np.array_equal(mdata["protein"].X, adt.X) and mdata.uns["dataset"]["modalities"]["protein"] == "continuous"


def test_labels_of_a_mosaic_are_put_together_from_its_modalities(frame, tmp_path):
    halves = {"rna": frame.iloc[:40], "protein": frame.iloc[30:]}
    tables = {
        m: ad.AnnData(
            half.to_numpy(np.float32), obs=annotation(frame).loc[half.index], var=pd.DataFrame(index=half.columns)
        )
        for m, half in halves.items()
    }
    mdata = md.MuData(tables)
    mdata.obs = mdata.obs[[]]
    mdata.write(tmp_path / "mine.h5mu")
    loaded = datasets.load(tmp_path / "mine.h5mu", label_key="type")
    assert loaded.obs["type"].astype(str).to_dict() == annotation(frame)["type"].to_dict()
    loaded.write(tmp_path / "again.h5mu")


@pytest.mark.parametrize("ending", [".h5mu", ".h5ad"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
def test_truncated_files_give_one_sentence(frame, tmp_path, ending, keep):
    rna = ad.AnnData(frame.to_numpy(np.float32), obs=annotation(frame), var=pd.DataFrame(index=frame.columns))
    path = tmp_path / f"mine{ending}"
    (md.MuData({"rna": rna}) if ending == ".h5mu" else rna).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with refused(str(path), "truncated, damaged or no " + ending):
        datasets.load(path)


@pytest.mark.parametrize("name", ["mine.pkl", "mine.pickle", "mine.joblib", "model.pt"])
def test_pickled_files_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch touched'\ntR.")
    with refused(name, "pickled file", "is refused"):
        datasets.load(tmp_path / name)


def test_missing_files_and_unknown_endings_are_named(frame, tmp_path):
    frame.to_csv(tmp_path / "counts.csv")
    with refused("count.csv does not exist; did you mean 'counts.csv'?", error=FileNotFoundError):
        datasets.load(tmp_path / "count.csv")
    with refused("is a folder", error=FileNotFoundError):
        datasets.load(tmp_path)
    (tmp_path / "mine.xlsx").write_bytes(b"")
    with refused("'.xlsx', which is not read", ".parquet"):
        datasets.load(tmp_path / "mine.xlsx")


# --- archives ---


@pytest.mark.parametrize(
    "name", ["../escape.csv", "/tmp/escape.csv", "a/../../escape.csv", "..\\escape.csv", "C:\\escape.csv"]
)
def test_zip_that_climbs_out_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "mine.csv.zip", "w") as archive:
        archive.writestr(name, ",a\ns,1\n")
    with refused("mine.csv.zip is refused", "points out of the folder"):
        datasets.load(tmp_path / "mine.csv.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv.zip"]


def test_zip_with_a_link_two_files_or_damage_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "link.csv.zip", "w") as archive:
        link = zipfile.ZipInfo("inside.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with refused("'inside.csv' is a link"):
        sources.open_zipped(tmp_path / "link.csv.zip")
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    with refused("holds 2 files"):
        sources.open_zipped(tmp_path / "two.csv.zip")
    (tmp_path / "half.csv.zip").write_bytes((tmp_path / "two.csv.zip").read_bytes()[:60])
    with refused("half.csv.zip is not a whole zip archive"):
        sources.open_zipped(tmp_path / "half.csv.zip")


# --- downloads ---

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "WAIT", 0.0)
    with data_server.running() as server:
        server.content["x.bin"] = BODY
        yield server


def remote(server, name="x.bin", body=BODY):
    return sources.Remote(f"set/{name}", f"{server.url}/{name}", hashlib.sha256(body).hexdigest(), len(body))


def left_over(tmp_path):
    return sorted(p.name for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock")


def test_download_lands_under_its_name_and_is_not_repeated(server, tmp_path):
    assert sources.fetch([remote(server)]) == [tmp_path / "data/set/x.bin"]
    assert (tmp_path / "data/set/x.bin").read_bytes() == BODY and left_over(tmp_path) == ["x.bin"]
    sources.fetch([remote(server)])
    assert server.asked == [("x.bin", None)]


def test_a_full_cache_is_not_written_to(server, tmp_path):
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/x.bin").write_bytes(BODY)
    before = {p: p.stat().st_mtime_ns for p in [tmp_path / "data", *(tmp_path / "data").rglob("*")]}
    sources.fetch([remote(server)])
    assert server.asked == [] and before == {
        p: p.stat().st_mtime_ns for p in [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    }


@pytest.mark.parametrize("honours_range", [True, False])
def test_partial_download_is_continued_or_begun_anew(server, tmp_path, honours_range):
    server.honours_range = honours_range
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/x.bin.part").write_bytes(BODY[:100_000])
    sources.fetch([remote(server)])
    assert server.asked == [("x.bin", "bytes=100000-")]
    assert (tmp_path / "data/set/x.bin").read_bytes() == BODY and left_over(tmp_path) == ["x.bin"]


def test_server_that_sends_another_part_than_asked_for_is_not_believed(server, tmp_path):
    server.ignores_start = True
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/x.bin.part").write_bytes(BODY[:100_000])
    sources.fetch([remote(server)])
    assert len(server.asked) == 1 and (tmp_path / "data/set/x.bin").read_bytes() == BODY


def test_server_that_stops_half_way_gives_an_error_and_the_next_call_goes_on(server, tmp_path, monkeypatch):
    server.cut_after, server.cuts_left = 200_000, 1
    monkeypatch.setattr(sources, "ATTEMPTS", 1)
    with refused(f"cannot download {server.url}/x.bin", "half-way", "of 300000 bytes are kept", error=ConnectionError):
        sources.fetch([remote(server)])
    assert left_over(tmp_path) == ["x.bin.part"]
    kept = (tmp_path / "data/set/x.bin.part").stat().st_size
    assert 150_000 < kept <= 200_000
    sources.fetch([remote(server)])
    assert server.asked[-1] == ("x.bin", f"bytes={kept}-") and left_over(tmp_path) == ["x.bin"]
    assert (tmp_path / "data/set/x.bin").read_bytes() == BODY


def test_server_that_stops_again_and_again_is_asked_for_the_rest_within_one_call(server, tmp_path):
    server.cut_after = 120_000
    sources.fetch([remote(server)])
    assert len(server.asked) == 3 and (tmp_path / "data/set/x.bin").read_bytes() == BODY


def test_wrong_content_is_deleted_and_both_hashes_are_told(server, tmp_path):
    server.content["x.bin"] = b"<html>not found</html>"
    got, expected = (hashlib.sha256(body).hexdigest() for body in (server.content["x.bin"], BODY))
    with refused(got, expected, "was deleted", "put it at"):
        sources.fetch([remote(server)])
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("stale", [b"another file's beginning" * 999, BODY + b"too long"])
def test_what_was_kept_of_another_file_does_not_do_harm(server, tmp_path, stale):
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/x.bin.part").write_bytes(stale)
    sources.fetch([remote(server)])
    assert (tmp_path / "data/set/x.bin").read_bytes() == BODY and left_over(tmp_path) == ["x.bin"]


def test_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/x.bin").write_bytes(BODY[:-1])
    sources.fetch([remote(server)])
    assert (tmp_path / "data/set/x.bin").read_bytes() == BODY


def test_many_files_are_fetched_and_one_missing_is_named(server, tmp_path):
    bodies = {f"{i}.bin": bytes([i]) * 500 for i in range(20)}
    server.content |= bodies
    files = [remote(server, name, body) for name, body in bodies.items()]
    assert [p.read_bytes() for p in sources.fetch(files)] == list(bodies.values())
    with refused("gone.bin", "404", "by hand", error=ConnectionError):
        sources.fetch([*files, remote(server, "gone.bin", b"")])


def test_offline_says_url_size_and_where_to_put_the_file(server, tmp_path):
    file = dataclasses.replace(remote(server), url="http://127.0.0.1:9/x.bin")
    where = str(tmp_path / "data/set/x.bin")
    with refused("http://127.0.0.1:9/x.bin", "no connection", "0.3 MB", file.sha256, where, error=ConnectionError):
        sources.fetch([file])


def test_full_disk_and_folders_that_cannot_be_written_to_are_named(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_stream", full)
        with refused("the disk is full", "set WORKBOOK_DATA", str(tmp_path / "data"), error=OSError):
            sources.fetch([remote(server)])
    assert left_over(tmp_path) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "file/data"))
    with refused("cannot download into the data folder", "set WORKBOOK_DATA", error=OSError):
        sources.fetch([remote(server)])


# --- parsers of the published files ---


@pytest.fixture
def cohort(tmp_path):
    """Four patients in the format of the published tables, one of them with two slides."""
    table = pd.DataFrame(
        {
            "case_id": ["TCGA-02-0001", "TCGA-02-0001", "TCGA-E2-0002", "TCGA-14-0003", "TCGA-14-0004"],
            "slide_id": list("abcde"),
            "age": [50.0, 50.0, 61.0, 72.0, 40.0],
            "site": ["2", "2", "E2", "14", "14"],
            "survival_months": [10.0, 10.0, 20.0, 30.0, 40.0],
            "censorship": [1.0, 1.0, 0.0, 1.0, 0.0],
            "is_female": [1.0, 1.0, 0.0, 1.0, 1.0],
            "oncotree_code": ["IDC", "IDC", "ILC", "IDC", "ILC"],
            "train": 1.0,
            "TP53_mut": [1, 1, 0, 0, 1],
            "TP53_cnv": [-2, -2, 0, 1, 2],
            "MYC_cnv": [0, 0, 1, 2, 2],
            "MYC_rnaseq": [9.5, 9.5, -7.0, 0.1, 0.2],
        }
    )
    path = tmp_path / "tcga_x_all_clean.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("./tcga_x_all_clean.csv.zip", table.to_csv())  # the inner name is as published
    return {path.name: path}


def test_cohort_has_one_row_per_patient(cohort):
    mdata = checks.assemble(sources.tcga_cohort(cohort))
    assert {m: mdata[m].shape for m in mdata.mod} == {"rna": (4, 1), "cnv": (4, 2), "mutation": (4, 1)}
    assert mdata["rna"].X[:, 0].tolist() == pytest.approx([5, -5, 0.1, 0.2])
    assert list(mdata["cnv"].var_names) == ["TP53", "MYC"]
    assert mdata.obs["event"].tolist() == [0, 1, 0, 1] and mdata.obs["site"].tolist() == ["02", "E2", "14", "14"]
    assert mdata.obs["sex"].tolist() == ["female", "male", "female", "female"]
    assert sources.tcga_cohort(cohort, clip=100).modalities["rna"].X.max() == np.float32(9.5)


def test_brca_is_joined_with_its_clinical_table(cohort, tmp_path):
    clinical = {
        "Patient ID": ["TCGA-14-0003", "TCGA-02-0001", "TCGA-E2-0002"],
        "Subtype": ["BRCA_LumA", "BRCA_Basal", None],
        "Neoplasm Disease Stage American Joint Committee on Cancer Code": ["STAGE IIIC", "STAGE IV", "STAGE X"],
    }
    for months, status in sources.CLINICAL_SURVIVAL.values():
        clinical |= {months: [1.5, 2.5, None], status: ["1:DEAD", "0:LIVING", None]}
    pd.DataFrame(clinical).to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    obs = sources.tcga_brca({**cohort, "clinical.tsv": tmp_path / "clinical.tsv"}).obs.astype(object)
    assert obs["pam50"].where(obs["pam50"].notna(), "").tolist() == ["Basal", "", "LumA", ""]
    assert obs["stage"].where(obs["stage"].notna(), "").tolist() == ["IV", "", "III", ""]
    assert obs["dss_months"].tolist()[0] == 2.5 and obs["pfs_event"].tolist()[::2] == [0, 1]


def test_celegans_drops_the_imaged_reporter_and_takes_channel_one(tmp_path):
    names, reporter = [f"T_{t}" for t in (1, 2, 3)], "ALY-2_SYS721"
    table = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=names, columns=["AHA-1_S", reporter, "ZIP-1_R"])
    table.to_csv(tmp_path / "AM3_NO2_raw_cell.tsv", sep="\t")
    images = [f"{reporter}_t{t}.tif" for t in (1, 2, 3)]
    frames = {"sample_ids": names, "img_paths": images, "extra_class_labels": [1, 2, 3], "early": ["'1'", "'1'", "'0'"]}
    pd.DataFrame(frames).iloc[::-1].to_csv(tmp_path / "ALY-2_SYS721_mappings.txt", sep="\t", index=False)
    for t, name in enumerate(images):
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = 7, 51 * (t + 1)
        tifffile.imwrite(tmp_path / name, pixels)
    files = {path.name: path for path in tmp_path.iterdir()}
    mdata = checks.assemble(sources.celegans(files))
    assert list(mdata["protein"].var_names) == ["AHA-1_S", "ZIP-1_R"] and list(mdata["image"].uns["image_shape"]) == [
        4,
        6,
        1,
    ]
    assert np.allclose(mdata["image"].X, np.array([0.2, 0.4, 0.6])[:, None] * np.ones(24))
    assert mdata.obs["time"].tolist() == [1, 2, 3] and mdata.obs["early"].tolist() == ["early", "early", "late"]
    assert sources.celegans(files, keep_reporter=True).modalities["protein"].n_vars == 3


def test_tcga_breast_is_a_mosaic(monkeypatch, tmp_path):
    def table(names, n_vars, start):
        x = np.full((len(names), n_vars), start, float)
        return xr.DataArray(
            x, dims=("dim_0", "dim_1"), coords={"dim_0": names, "dim_1": [f"f{j}" for j in range(n_vars)]}
        )

    def block(names, labels, *measured):
        tables = {m: table(names, n, n) for m, n in zip(("mirna", "mrna", "protein"), measured, strict=False)}
        return {**tables, "subtype": pd.Categorical(labels)}

    study = {"data.train": block(["A1", "A2"], ["Basal", "LumA"], 2, 3, 4), "data.test": block(["B1"], ["Her2"], 2, 3)}
    monkeypatch.setattr(rdata, "read_rda", lambda path, default_encoding: {"breast.TCGA": study})
    mdata = checks.assemble(sources.tcga_breast({"breast.TCGA.rda": tmp_path}))
    assert {m: mdata[m].shape for m in mdata.mod} == {"rna": (3, 3), "mirna": (3, 2), "protein": (2, 4)}
    assert mdata.obs["subtype"].tolist() == ["Basal", "LumA", "Her2"]
    assert mdata.obs["published_split"].tolist() == ["train", "train", "test"]


def idx(path, values, magic=None):
    """A gzipped file in MNIST's format."""
    head = bytes([0, 0, 8, values.ndim]) if magic is None else magic
    sizes = np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + sizes + values.astype(np.uint8).tobytes()))


@pytest.fixture
def handwriting(tmp_path):
    """Twelve pictures of 28 x 28 pixels in the format of MNIST; picture i shows digit i, then 0 and 1 again."""
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    paths = {what: tmp_path / f"t10k-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")}
    idx(paths["images-idx3"], images)
    idx(paths["labels-idx1"], np.arange(12) % 10)
    return images, {path.name: path for path in paths.values()}


def test_mnist_is_read_as_it_is_stored(handwriting):
    images, files = handwriting
    mdata = checks.assemble(sources.mnist(files))
    assert np.allclose(mdata["image"].X.reshape(12, 28, 28), images / 255)
    assert list(mdata["image"].uns["image_shape"]) == [28, 28, 1] and mdata["image"].var_names[29] == "pixel_1_1"
    assert mdata.obs["digit"].tolist() == [str(i % 10) for i in range(12)]
    small = sources.mnist(files, size=(10, 14)).modalities["image"]
    assert small.shape == (12, 140) and list(small.uns["image_shape"]) == [10, 14, 1]


def test_damaged_idx_files_are_named(handwriting, tmp_path):
    _, files = handwriting
    path = files["t10k-images-idx3-ubyte.gz"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with refused(str(path), "not a whole gzip file"):
        sources.read_idx(path)
    path.write_bytes(b"<html>not found</html>")
    with refused(str(path), "not a whole gzip file"):
        sources.read_idx(path)
    for raw in (b"", b"\0\0", b"<html>", b"\0\0\x0d\1\0\0\0\1\0", b"\0\0\x08\3\0\0\0\1", b"\0\0\x08\0\0"):
        path.write_bytes(gzip.compress(raw))
        with refused(str(path), "does not begin as an idx file"):
            sources.read_idx(path)
    body = gzip.decompress(whole)
    for wrong, held in ((body[:-1], 9407), (body + b"x", 9409)):
        path.write_bytes(gzip.compress(wrong))
        with refused("says 12 x 28 x 28 values", f"holds {held}"):
            sources.read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + b"\xff" * 12))
    with refused("says 4294967295 x 4294967295 x 4294967295 values but holds 0"):
        sources.read_idx(path)


def test_images_and_labels_of_mnist_must_belong_together(handwriting):
    _, files = handwriting
    idx(files["t10k-labels-idx1-ubyte.gz"], np.arange(11))
    with refused("images (12, 28, 28) and labels (11,)"):
        sources.mnist(files)


def test_digits_stand_for_the_pam50_classes_of_tumours(cohort, handwriting, tmp_path):
    _, files = handwriting
    clinical = {
        "Patient ID": ["TCGA-14-0003", "TCGA-02-0001", "TCGA-E2-0002", "TCGA-14-0004"],
        "Subtype": ["BRCA_Normal", "BRCA_LumA", None, "BRCA_Basal"],
        "Neoplasm Disease Stage American Joint Committee on Cancer Code": ["STAGE IIIC", "STAGE IV", "STAGE X", None],
    }
    for months, status in sources.CLINICAL_SURVIVAL.values():
        clinical |= {months: [1.5, 2.5, None, 3.0], status: ["1:DEAD", "0:LIVING", None, "0:LIVING"]}
    pd.DataFrame(clinical).to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    parts = bundled.brca_mnist({**cohort, **files, "clinical.tsv": tmp_path / "clinical.tsv"}, size=14)
    assert checks.problems(parts) == [] and parts.unpaired
    mdata = checks.assemble(parts)
    assert {m: mdata[m].shape for m in mdata.mod} == {"rna": (3, 1), "cnv": (3, 2), "image": (7, 196)}
    assert mdata.obs["pam50"].tolist()[:3] == ["LumA", "Normal", "Basal"]
    assert mdata.obs["digit"].tolist()[3:] == ["0", "1", "2", "3", "4", "0", "1"]
    assert mdata.obs["pam50"].tolist()[3:] == ["LumA", "LumB", "Basal", "Her2", "Normal", "LumA", "LumB"]
    assert list(mdata.obs["pam50"].cat.categories) == list(bundled.PAM50)


def test_a_file_may_have_a_folder_of_its_own():
    folders = [file.path.split("/")[0] for file in datasets.registry()["brca-mnist"].files]
    assert folders == ["tcga_pancan", "tcga_pancan", "mnist", "mnist"]
    same = {file.path: file for name in ("tcga-brca", "mnist") for file in datasets.registry()[name].files}
    assert {file.path: file for file in datasets.registry()["brca-mnist"].files} == same


# --- the command line ---


def test_list_names_every_data_set(capsys):
    assert datasets.main([]) == datasets.main(["list"]) == 0
    text = capsys.readouterr().out
    names = datasets.registry() | datasets.ontologies()
    assert all(name in text for name in names) and "data folder" in text


def test_fetch_downloads_once_and_loads(server, cohort, tmp_path, monkeypatch, capsys):
    body = cohort["tcga_x_all_clean.csv.zip"].read_bytes()
    server.content["x.csv.zip"] = body
    entry = dataclasses.replace(datasets.registry()["tcga-gbmlgg"], files=(remote(server, "x.csv.zip", body),))
    monkeypatch.setattr(datasets, "registry", lambda: {"tcga-gbmlgg": entry})
    assert datasets.main(["fetch", "tcga-gbmlgg"]) == 0
    assert datasets.load("tcga-gbmlgg").uns["dataset"]["sha256"] == hashlib.sha256(body).hexdigest()
    assert len(server.asked) == 1 and "1 files" in capsys.readouterr().out
    server.content["x.csv.zip"] = b"changed"
    (tmp_path / "data/set/x.csv.zip").unlink()
    assert datasets.main(["fetch", "tcga-gbmlgg"]) == 1
    assert "was deleted" in capsys.readouterr().err


def test_fetch_downloads_the_tables_of_an_ontology(server, monkeypatch, capsys):
    server.content["x.txt"] = BODY
    entry = dataclasses.replace(datasets.ontologies()["reactome"], files=(remote(server, "x.txt"),))
    monkeypatch.setattr(datasets, "ontologies", lambda: {"reactome": entry})
    assert datasets.main(["fetch", "reactome"]) == 0
    assert "reactome: 1 files" in capsys.readouterr().out
    assert [path.read_bytes() for path in datasets.fetch("reactome")] == [BODY] and len(server.asked) == 1


def test_wrong_calls_return_two(capsys, tmp_path):
    assert datasets.main(["fetch", "sim-bluk"]) == 2
    assert "did you mean 'sim-bulk'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        datasets.main(["chek", "x.h5mu"])
    assert caught.value.code == 2
    assert datasets.main(["check", "a.csv", "b.csv"]) == 2


def test_check_says_what_is_in_a_file_and_which_notebooks_can_use_it(frame, tmp_path, capsys):
    frame.to_csv(tmp_path / "mine.csv")
    annotation(frame).to_csv(tmp_path / "obs.csv")
    call = ["check", str(tmp_path / "mine.csv"), "--obs", str(tmp_path / "obs.csv"), "--label-key", "type"]
    assert datasets.main(call) == 0
    text = capsys.readouterr().out
    assert "rna: 60 samples x 5 features, kind counts" in text and "No problems found." in text
    lines = {line.split()[0]: line for line in text.splitlines() if re.match(r"  0[1-8] ", line)}
    assert len(lines) == 8 and lines["01"].endswith("ready") and lines["05"].endswith("ready")
    assert "needs two modalities" in lines["02"] and "batch" in lines["07"] and "'atac'" in lines["06"]


def test_check_lists_all_problems(frame, tmp_path, capsys):
    frame.where(frame > 0).to_csv(tmp_path / "rna.csv")
    frame.rename(index=lambda name: f"other-{name}").to_csv(tmp_path / "protein.csv")
    pair = [f"rna={tmp_path / 'rna.csv'}", f"protein={tmp_path / 'protein.csv'}"]
    assert datasets.main(["check", *pair, "--label-key", "type"]) == 1
    text = capsys.readouterr().out
    assert all(
        part in text for part in ("missing values (NaN)", "no samples in common", "label column 'type' is not in obs")
    )
    assert datasets.main(["check", str(tmp_path / "nothing.h5mu")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_check_reads_simulated_data_as_ready_for_the_first_notebooks():
    needs = checks.needs(checks.parts_of(datasets.load("sim-bulk", n_obs=100)))
    assert [name[:2] for name, missing in needs.items() if not missing] == ["01", "02", "03", "04", "07"]
