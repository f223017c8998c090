"""Real single cells: parsers on small files in the published formats, and what they say of damaged ones."""

import gzip
import hashlib
import re
from types import SimpleNamespace

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import rdata
import scipy.sparse as sp
from PIL import Image

from helpers import checks, datasets, project, singlecell

GENES = ["Actb", "Gm1", "Xist"]
REGIONS = ["chr1_100_200", "chr1_300_450", "chrX_5_9", "chrX_20_90"]
CELLS = ["09A_AAA", "09A_CCC", "09B_AAA", "09B_GGG", "09B_TTT"]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """A data folder of the test's own: nothing is read from, or written to, the user's."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def place(folder, monkeypatch, name, path, text):
    """Put a ready table into the data folder, under a hash that fits."""
    body = gzip.compress(text.encode()) if path.endswith(".gz") else text.encode()
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(body)
    monkeypatch.setattr(singlecell, name, (path, hashlib.sha256(body).hexdigest()))


# --- paired expression and chromatin ---


@pytest.fixture
def cortex(tmp_path, data_folder, monkeypatch):
    """Five cells in the published format: features x cells, names in text files; and where two of the genes start."""
    rng = np.random.default_rng(0)
    rna, atac = rng.poisson(1.0, (3, 5)), rng.poisson(0.5, (4, 5))
    linked = np.zeros((3, 4), int)
    linked[[0, 0, 2], [0, 1, 3]] = 1
    for name, x in (("GxC1", rna), ("RxC1", atac), ("GxR", linked)):
        sp.save_npz(tmp_path / f"{name}.npz", sp.csr_matrix(x))
    (tmp_path / "genes.txt").write_text("\n".join(GENES) + "\n")
    (tmp_path / "regions.txt").write_text("\n".join(REGIONS) + "\n")
    meta = {"Batch": [c[:3] for c in CELLS], "Barcode": [c[4:] for c in CELLS], "Ident": list("abcab")}
    meta["cluster (remapped)"] = ["L2/3", "L2/3", "Mis", "Astro", "Astro"]
    pd.DataFrame(meta, index=CELLS).to_csv(tmp_path / "meta_c1.csv")
    table = {"chrom": ["chrX", "chr5"], "strand": ["-", "+"], "gene_name": ["Xist", "Actb"], "tss": [77, 1234567]}
    path = singlecell.REFSEQ_TABLE[0]
    place(data_folder, monkeypatch, "REFSEQ_TABLE", path, pd.DataFrame(table).to_csv(sep="\t", index=False))
    return {path.name: path for path in tmp_path.iterdir() if path.is_file()}, rna, atac


def test_cortex_is_paired_counts_with_coordinates_and_the_published_map(cortex, tmp_path):
    files, rna, atac = cortex
    parts = singlecell.mop_snare(files)
    assert checks.problems(parts) == []
    mdata = checks.assemble(parts)
    assert isinstance(mdata["rna"].X, sp.csr_matrix) and mdata["rna"].X.dtype == np.float32
    assert np.array_equal(mdata["rna"].X.toarray(), rna.T) and np.array_equal(mdata["atac"].X.toarray(), atac.T)
    assert list(mdata["atac"].var_names) == ["chr1:100-200", "chr1:300-450", "chrX:5-9", "chrX:20-90"]
    assert mdata["atac"].var["start"].tolist() == [100, 300, 5, 20]
    assert mdata["atac"].var["end"].tolist() == [200, 450, 9, 90]
    assert mdata["atac"].var["gene"].astype(object).fillna("").tolist() == ["Actb", "Actb", "", "Xist"]
    genes = mdata["rna"].var
    assert list(genes.index) == GENES and genes["tss"].fillna(-1).tolist() == [1234567, -1, 77]
    assert genes["chromosome"].fillna("").tolist() == ["chr5", "", "chrX"]
    assert genes["strand"].fillna("").tolist() == ["+", "", "-"]
    assert mdata.obs["cell_type"].tolist() == ["L2/3", "L2/3", "Mis", "Astro", "Astro"]
    assert mdata.obs["batch"].tolist() == ["09A", "09A", "09B", "09B", "09B"] and list(mdata.obs_names) == CELLS
    mdata.write(tmp_path / "copy.h5mu")
    again = datasets.load(tmp_path / "copy.h5mu")
    assert again["rna"].var["tss"].isna().sum() == 1 and again["atac"].var["gene"].isna().sum() == 1


def test_fewer_cells_are_among_the_more_and_keep_their_order(cortex):
    files, rna, _ = cortex
    few, more = (singlecell.mop_snare(files, n_obs=n, seed=3) for n in (2, 4))
    assert list(few.obs.index) == [c for c in more.obs.index if c in set(few.obs.index)] and len(few.obs) == 2
    assert list(more.obs.index) == sorted(more.obs.index, key=CELLS.index)
    rows = [CELLS.index(c) for c in more.obs.index]
    assert np.array_equal(more.modalities["rna"].X.toarray(), rna.T[rows])
    assert more.modalities["atac"].obs_names.equals(more.obs.index)
    assert any(list(singlecell.mop_snare(files, n_obs=2, seed=s).obs.index) != list(few.obs.index) for s in range(4, 8))
    for n in (0, 6):
        with pytest.raises(ValueError, match=f"n_obs={n} cannot be had of mop-snare, which has 5 samples"):
            singlecell.mop_snare(files, n_obs=n)


@pytest.mark.parametrize("keep", [0, 30, 0.7])
def test_a_matrix_cut_short_is_named(cortex, keep):
    path = cortex[0]["RxC1.npz"]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a whole sparse matrix")) as caught:
        singlecell.mop_snare(cortex[0])
    assert "fetch it again" in str(caught.value)


def test_a_matrix_that_would_need_unpickling_is_refused(cortex):
    path = cortex[0]["GxC1.npz"]
    np.savez(path, data=np.array([{"a": 1}], dtype=object), indices=[0], indptr=[0, 1], format="csr", shape=(1, 1))
    with pytest.raises(ValueError, match=r"GxC1.npz is not a whole sparse matrix.*allow_pickle"):
        singlecell.mop_snare(cortex[0])


def test_files_that_do_not_belong_together_are_named(cortex):
    files = cortex[0]
    genes = files["genes.txt"].read_text()
    files["genes.txt"].write_text("Actb\nXist\n")
    with pytest.raises(ValueError, match=r"GxC1.npz holds 5 x 3 values, the names beside it 5 x 2"):
        singlecell.mop_snare(files)
    files["genes.txt"].write_text(genes)
    sp.save_npz(files["GxR.npz"], sp.csr_matrix(np.ones((3, 3))))
    with pytest.raises(ValueError, match=r"GxR.npz holds 3 x 3 values, the names beside it 3 x 4"):
        singlecell.mop_snare(files)
    sp.save_npz(files["GxR.npz"], sp.csr_matrix(np.ones((3, 4))))
    with pytest.raises(ValueError, match=r"gives 4 peaks to several genes"):
        singlecell.mop_snare(files)
    pd.read_csv(files["meta_c1.csv"], index_col=0).drop(columns="Batch").to_csv(files["meta_c1.csv"])
    with pytest.raises(ValueError, match=r"meta_c1.csv has no column 'Batch'"):
        singlecell.mop_snare(files)


def test_missing_counts_are_refused_by_feature(cortex):
    files, rna, _ = cortex
    x = rna.astype(float)
    x[2, 1] = np.nan
    sp.save_npz(files["GxC1.npz"], sp.csr_matrix(x))
    assert (
        "modality 'rna' has 1 missing values (NaN), first in 'Xist'" in checks.problems(singlecell.mop_snare(files))[0]
    )


def test_peaks_are_read_in_the_three_usual_forms():
    table = singlecell.peak_table(["chr1:10-20", "chr2-30-45", "chrUn_GL45_7_9"])
    assert list(table.index) == ["chr1:10-20", "chr2:30-45", "chrUn_GL45:7-9"]
    assert table["chromosome"].tolist() == ["chr1", "chr2", "chrUn_GL45"]
    assert table["start"].tolist() == [10, 30, 7] and table["end"].tolist() == [20, 45, 9]
    with pytest.raises(ValueError, match=r"peaks without coordinates: 'peak7', 'chr1:10'; name them"):
        singlecell.peak_table(["chr1:10-20", "peak7", "chr1:10"])
    with pytest.raises(ValueError, match=r"end before they start: 'chr1:20-10'"):
        singlecell.peak_table(["chr1:20-10"])


def test_start_sites_are_the_same_from_the_published_file(cortex, monkeypatch, tmp_path):
    ready = singlecell.mouse_genes(GENES)
    runs = lambda values, lengths: SimpleNamespace(values=np.array(values), lengths=np.array(lengths))  # noqa: E731
    ranges = SimpleNamespace(
        seqnames=runs(["chr5", "chrX"], [1, 2]),
        strand=runs(["+", "-"], [1, 2]),
        ranges=SimpleNamespace(start=np.array([1234567, 77, 5], np.int32)),
        elementMetadata=SimpleNamespace(listData={"gene_name": np.array(["Actb", "Xist", "Other"])}),
    )
    monkeypatch.setattr(rdata, "read_rda", lambda path, default_encoding: {"mm10TSSRanges": ranges})
    monkeypatch.setattr(singlecell, "REFSEQ_TABLE", ("mop_snare/elsewhere.tsv", "0" * 64))
    monkeypatch.setattr(singlecell.sources, "fetch", lambda files: [tmp_path / file.path for file in files])
    pd.testing.assert_frame_equal(singlecell.mouse_genes(GENES), ready)
    monkeypatch.setattr(rdata, "read_rda", lambda path, default_encoding: {"x": np.arange(3)})
    with pytest.raises(ValueError, match=r"mm10_refSeq.RData holds no start sites"):
        singlecell.mouse_genes(GENES)


def test_a_damaged_file_of_r_is_named(tmp_path):
    (tmp_path / "x.RData").write_bytes(b"RDX3\nno more")
    with pytest.raises(ValueError, match=r"x\.RData is not a whole file of R .*fetch it again"):
        singlecell.start_sites(tmp_path / "x.RData")


def test_the_files_besides_those_of_the_registry_are_asked_for_only_without_the_table(cortex, data_folder):
    assert singlecell.lacking("mop-snare") == () and singlecell.lacking("mnist") == ()
    assert singlecell.lacking("pbmc-citeseq") == singlecell.GATES
    (data_folder / singlecell.REFSEQ_TABLE[0]).write_bytes(b"damaged")
    assert singlecell.lacking("mop-snare") == (singlecell.REFSEQ,)


def test_the_page_on_data_names_the_files_besides_those_of_the_registry():
    page = (project.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for file in (singlecell.REFSEQ, *singlecell.GATES):
        repository, commit = re.match(
            r"https://raw\.githubusercontent\.com/[^/]+/([^/]+)/([0-9a-f]{40})/", file.url
        ).groups()
        assert repository in page and commit[:7] in page and file.path in page and file.sha256 in page
        assert file.n_bytes > 1e6
    for path, sha256 in (singlecell.REFSEQ_TABLE, singlecell.LABEL_TABLE):
        assert path in page and sha256 in page


# --- blood cells with proteins ---

BARCODES = ["AAA-1", "CCC-1", "GGG-1", "TTT-1"]
PROTEINS = ["CD3_TotalSeqB", "CD8a_TotalSeqB", "PD-1_TotalSeqB"]


def write_counts(path, x, features, cells):
    pd.DataFrame(x.astype(float), features, cells).to_csv(path)


@pytest.fixture
def blood(tmp_path, data_folder, monkeypatch):
    """Four cells with two genes and three proteins, two cells of another batch; labels of three cells are known."""
    rng = np.random.default_rng(1)
    rna, other, protein = rng.poisson(2.0, (2, 4)), rng.poisson(2.0, (2, 2)), np.arange(12).reshape(3, 4) + 1
    write_counts(tmp_path / "pbmc10k_harmo_rna.csv.gz", rna, ["HES4", "CD8A"], BARCODES)
    write_counts(tmp_path / "pbmc5k_harmo_rna.csv.gz", other, ["HES4", "CD8A"], ["AAA-1", "ACG-1"])
    write_counts(tmp_path / "pbmc10k_harmo_pro.csv.gz", protein, PROTEINS, BARCODES)
    labels = {"cell_type_l1": ["NK", "undefined", "B"], "cell_type_l2": ["CD16+ NK", "undefined", "undefined"]}
    text = pd.DataFrame(labels, index=pd.Index(["CCC-1", "AAA-1", "GGG-1"], name="barcode")).to_csv()
    place(data_folder, monkeypatch, "LABEL_TABLE", singlecell.LABEL_TABLE[0], text)
    return {path.name: path for path in tmp_path.iterdir() if path.is_file()}, rna, other, protein


def known(column):
    return column.astype(object).where(column.notna(), "").tolist()


def test_blood_is_paired_and_its_labels_are_matched_by_barcode(blood, tmp_path):
    files, rna, _, protein = blood
    parts = singlecell.pbmc_citeseq(files)
    assert checks.problems(parts) == []
    mdata = checks.assemble(parts)
    assert np.array_equal(mdata["rna"].X.toarray(), rna.T) and mdata["rna"].X.dtype == np.float32
    assert np.array_equal(mdata["protein"].X.toarray(), protein.T)
    assert list(mdata["protein"].var_names) == ["CD3", "CD8a", "PD-1"]
    assert list(mdata.obs_names) == [f"10k_{barcode}" for barcode in BARCODES]
    assert known(mdata.obs["cell_type"]) == ["", "NK", "B", ""]
    assert known(mdata.obs["cell_type_fine"]) == ["", "CD16+ NK", "", ""]
    assert mdata.obs["batch"].unique().tolist() == ["10k"]
    mdata.write(tmp_path / "copy.h5mu")
    assert datasets.load(tmp_path / "copy.h5mu", label_key="cell_type").obs["cell_type"].isna().sum() == 2


def test_the_second_batch_lacks_proteins_and_shares_no_names(blood):
    files, rna, other, _ = blood
    mdata = checks.assemble(singlecell.pbmc_citeseq(files, with_5k=True))
    assert mdata["rna"].shape == (6, 2) and mdata["protein"].n_obs == 4
    assert np.array_equal(mdata["rna"].X.toarray(), np.hstack([rna, other]).T)
    assert mdata.obs_names[[0, 4]].tolist() == ["10k_AAA-1", "5k_AAA-1"]
    assert mdata.obs["batch"].tolist() == ["10k"] * 4 + ["5k"] * 2 and known(mdata.obs["cell_type"])[4:] == ["", ""]
    some = singlecell.pbmc_citeseq(files, with_5k=True, n_obs=5)
    assert len(some.obs) == 5 and some.modalities["rna"].n_obs == 5
    assert some.modalities["protein"].obs_names.isin(some.obs.index).all()
    write_counts(files["pbmc5k_harmo_rna.csv.gz"], other, ["CD8A", "HES4"], ["AAA-1", "ACG-1"])
    with pytest.raises(ValueError, match=r"the genes of the batches 10k and 5k differ"):
        singlecell.pbmc_citeseq(files, with_5k=True)
    assert singlecell.pbmc_citeseq(files).modalities["rna"].n_obs == 4


def test_damaged_tables_of_counts_are_named(blood):
    path = blood[0]["pbmc10k_harmo_rna.csv.gz"]
    whole = path.read_bytes()
    text = gzip.decompress(whole).decode()
    for body in (whole[:-12], b"<html>not found</html>", gzip.compress(b""), gzip.compress(b",A,B\nG,1,x\n")):
        path.write_bytes(body)
        with pytest.raises(ValueError, match=re.escape(f"{path} is not a whole table of counts")) as caught:
            singlecell.pbmc_citeseq(blood[0])
        assert "fetch it again" in str(caught.value)
    first = text.splitlines()[1]
    path.write_bytes(gzip.compress(text.replace(first, re.sub(r",[\d.]+$", ",", first)).encode()))
    assert "1 missing values (NaN), first in 'HES4'" in checks.problems(singlecell.pbmc_citeseq(blood[0]))[0]


def test_proteins_of_other_cells_are_noticed(blood):
    files, _, _, protein = blood
    write_counts(files["pbmc10k_harmo_pro.csv.gz"], protein, PROTEINS, [f"{barcode}x" for barcode in BARCODES])
    problems = checks.problems(singlecell.pbmc_citeseq(files))
    assert any("modality 'protein' has no samples in common with 'rna'" in text for text in problems)


def published_gates(protein):
    """Tables as ADTnorm publishes them: no barcodes, other cells, cells of other studies, proteins in another order."""
    adt = pd.DataFrame(protein[[1, 0]].T.astype(float), columns=["CD8", "CD3"])
    adt = pd.concat([adt.iloc[[2, 0, 1]], adt.iloc[[3, 3]], adt.iloc[[0]], pd.DataFrame({"CD8": [99.0], "CD3": [1.0]})])
    about = {"study_name": ["10X_pbmc_10k"] * 5 + ["other", "10X_pbmc_10k"]}
    about |= {"cell_type_l1": ["B", "undefined", "NK", "B", "NK", "B", "B"]}
    about |= {"cell_type_l2": ["undefined", "undefined", "CD16+ NK", "memory B", "CD16+ NK", "x", "x"]}
    return adt, pd.DataFrame(about).astype("category")


def test_labels_are_found_by_the_counts_of_the_proteins(blood):
    _, _, _, protein = blood
    counts = pd.DataFrame(protein.T, BARCODES, ["CD3", "CD8", "PD-1"])
    labels = singlecell.matched(counts, *published_gates(protein))
    assert known(labels["cell_type_l1"]) == ["undefined", "NK", "B", ""]  # two kinds of cell look like the last
    assert known(labels["cell_type_l2"]) == ["undefined", "CD16+ NK", "undefined", ""]
    assert list(labels.index) == BARCODES


def test_labels_made_of_the_published_files_are_kept_only_if_they_came_out_right(blood, data_folder, monkeypatch):
    files, _, _, protein = blood
    ready = known(singlecell.pbmc_citeseq(files).obs["cell_type"])
    path = data_folder / singlecell.LABEL_TABLE[0]
    path.unlink()
    tables = dict(zip(("cell_x_adt.rda", "cell_x_feature.rda"), published_gates(protein), strict=True))
    monkeypatch.setattr(singlecell.sources, "fetch", lambda wanted: [data_folder / file.path for file in wanted])
    monkeypatch.setattr(rdata, "read_rda", lambda path, default_encoding: {"table": tables[path.name]})
    assert known(singlecell.pbmc_citeseq(files).obs["cell_type"]) == ready and not path.exists()
    text = "barcode,cell_type_l1,cell_type_l2,n_candidates\nAAA-1,undefined,undefined,1\nCCC-1,NK,CD16+ NK,1\n"
    text += "GGG-1,B,undefined,1\nTTT-1,undefined,undefined,0\n"
    expected = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(singlecell, "LABEL_TABLE", (singlecell.LABEL_TABLE[0], expected))
    assert known(singlecell.pbmc_citeseq(files).obs["cell_type"]) == ready and path.read_text() == text
    monkeypatch.setattr(rdata, "read_rda", None)  # not asked again
    assert known(singlecell.pbmc_citeseq(files).obs["cell_type"]) == ready


# --- a mosaic, pictures, and a user's own file ---


def test_the_mosaic_takes_its_labels_from_all_cells(tmp_path):
    cells = [f"p{b}_0_{i}" for b in (1, 2, 3) for i in range(2)]
    rng = np.random.default_rng(2)
    both = {"rna": [0, 1, 4, 5], "adt": [2, 3, 4, 5]}
    obs = pd.DataFrame({"batch": [c[:4] for c in cells], "celltype": list("xyxyxy")}, index=cells)
    mods = {
        m: ad.AnnData(
            sp.csr_matrix(rng.poisson(3.0, (4, 3)).astype(np.float32)),
            obs=obs.iloc[rows],
            var=pd.DataFrame(index=[f"{m}{j}" for j in range(3)]),
        )
        for m, rows in both.items()
    }
    mdata = md.MuData(mods)
    mdata.obs = obs.loc[mdata.obs_names]
    path = tmp_path / "quickstart_pbmc_mosaic.h5mu"
    mdata.write(path)
    loaded = checks.assemble(singlecell.pbmc_mosaic({path.name: path}))
    assert {m: loaded[m].shape for m in loaded.mod} == {"rna": (4, 3), "protein": (4, 3)} and loaded.n_obs == 6
    assert loaded.obs.loc[cells, "cell_type"].tolist() == list("xyxyxy")
    assert loaded.obs.loc[cells, "batch"].tolist() == [c[:4] for c in cells]
    assert np.array_equal(loaded["protein"].X.toarray(), mods["adt"].X.toarray())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"quickstart_pbmc_mosaic.h5mu cannot be read: the file is truncated"):
        singlecell.pbmc_mosaic({path.name: path})


def test_clothes_are_cut_from_the_sprite_in_rows(tmp_path):
    tiles = np.random.default_rng(3).integers(0, 256, (900, 28, 28)).astype(np.uint8)
    sprite = np.zeros((840, 840, 4), np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, 30)
        sprite[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = tile[..., None]
    path = tmp_path / "fashion-mnist-sprite.png"
    Image.fromarray(sprite, "RGBA").save(path)
    mdata = checks.assemble(singlecell.fashion_mnist({path.name: path}))
    assert np.allclose(mdata["image"].X.reshape(900, 28, 28), tiles / 255)
    assert list(mdata["image"].uns["image_shape"]) == [28, 28, 1]
    assert mdata.obs["class"].tolist()[::90] == singlecell.CLOTHES and mdata.obs["class"].value_counts().eq(90).all()
    assert singlecell.CLOTHES[0] == "T-shirt/top" and singlecell.CLOTHES[9] == "Ankle boot"
    small = singlecell.fashion_mnist({path.name: path}, size=14).modalities["image"]
    assert small.shape == (900, 196) and list(small.uns["image_shape"]) == [14, 14, 1]
    Image.fromarray(sprite[:, :800]).save(path)
    with pytest.raises(ValueError, match=r"fashion-mnist-sprite.png has 840 x 800 pixels and not 840 x 840"):
        singlecell.fashion_mnist({path.name: path})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"fashion-mnist-sprite.png cannot be read: damaged"):
        singlecell.fashion_mnist({path.name: path})


@pytest.mark.parametrize("types", [("GEX", "ATAC"), ("Gene Expression", "Peaks")])
def test_a_multiome_in_one_matrix_is_parted_and_its_counts_are_taken(tmp_path, types):
    """The form of GSE194122: normalised values in X, counts in a layer, peaks named chr1-10-20."""
    counts = np.random.default_rng(4).poisson(2.0, (8, 5)).astype(np.float32)
    var = pd.DataFrame({"feature_types": [types[0]] * 2 + [types[1]] * 3}, index=["A", "B", *"123"])
    var.index = ["A", "B", "chr1-10-20", "chr1-30-40", "chrX-5-9"]
    obs = pd.DataFrame({"cell_type": list("xyxyxyxy"), "Site": list("aabbaabb")}, index=[f"c{i}" for i in range(8)])
    adata = ad.AnnData(sp.csr_matrix(np.log1p(counts)), obs=obs, var=var, layers={"counts": sp.csr_matrix(counts)})
    adata.write(tmp_path / "marrow.h5ad")
    mdata = datasets.load(tmp_path / "marrow.h5ad", layer="counts", label_key="cell_type", batch_key="Site")
    assert {m: mdata[m].n_vars for m in mdata.mod} == {"rna": 2, "atac": 3}
    assert np.array_equal(mdata["atac"].X.toarray(), counts[:, 2:])
    assert mdata.uns["dataset"]["modalities"] == {"rna": "counts", "atac": "counts"}
    mdata.write(tmp_path / "marrow.h5mu")
    again = datasets.load(tmp_path / "marrow.h5mu")
    assert again.uns["dataset"]["label_key"] == "cell_type" and again.uns["dataset"]["batch_key"] == "Site"
    assert checks.needs(checks.parts_of(again))["06 multiDGD perturbation"] == []
