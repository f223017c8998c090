"""Real single cells as published (mouse cortex, blood), and 900 pictures of clothes: parsers of notebooks 05 and 06."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from helpers import project, sources, tables
from helpers.checks import Parts, part
from helpers.pictures import Size, open_picture, pixel_names, resized
from helpers.sources import Remote
from helpers.wording import few

CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot".split(", ")
TILE, ACROSS = 28, 30  # pixels of a picture, pictures in a row of the sprite
AGAIN = "delete it and fetch it again"

# Two tables are made from published files in other formats. Where the table itself is in the data folder, these files
# are not asked for; the values are the same.
REFSEQ_TABLE = ("mop_snare/mm10_refSeq.tsv.gz", "208448802a458e75f0b44c9198be5cc44decea9a898db43dc0ac103288ceeb09")
REFSEQ = Remote(
    "mop_snare/mm10_refSeq.RData",
    "https://raw.githubusercontent.com/buenrostrolab/FigR/094f5aa036aa9dc09b85d60c13dd9ead7da416fd/data/mm10_refSeq.RData",
    "e55dc94b3b9afe58c99d338202057651d5838080877255dbc0e39a4429b880ed",
    3798971,
)
LABEL_TABLE = (
    "pbmc_citeseq/pbmc10k_labels_from_ADTnorm.csv",
    "3aa2c21c44a21e04098bf8788ee4afb99ebe00729cea0c50e06964b0543956a1",
)
ADTNORM = "https://raw.githubusercontent.com/yezhengSTAT/ADTnorm/142ac08274083a91bf27a8c437042ad2447a4f5f/data"
GATES = (
    Remote(
        "pbmc_citeseq/cell_x_adt.rda",
        f"{ADTNORM}/cell_x_adt.rda",
        "eaeb008e7262de13c5d5d79e7822b78dd95c9285089bf2705c6db492d797bafc",
        3460640,
    ),
    Remote(
        "pbmc_citeseq/cell_x_feature.rda",
        f"{ADTNORM}/cell_x_feature.rda",
        "8efde28e629acf17a0d5718b01866d4b074264f320d6ac0dd6c1af9868b13b84",
        3019797,
    ),
)


def lacking(name: str) -> tuple[Remote, ...]:
    """Published files that a data set needs besides those of the registry, unless the table made of them is there.

    Introduced in notebook 06.
    """
    table, files = {"mop-snare": (REFSEQ_TABLE, (REFSEQ,)), "pbmc-citeseq": (LABEL_TABLE, GATES)}.get(name, ((), ()))
    return () if table and _ready(*table) else files


def _ready(path: str, sha256: str) -> Path | None:
    """A table in the data folder, where it is there and whole."""
    return project.data_dir() / path if sources.is_cached(Remote(path, "", sha256, 0)) else None


def mop_snare(files: Mapping[str, Path], n_obs: int | None = None, seed: int = 0) -> Parts:
    """Cells of the mouse's cortex, paired `rna` (genes) and `atac` (peaks, mm10), both raw counts (SNARE-seq).

    `obs`: cell_type ("Mis" are cells that the authors could not name), batch (12 libraries), cluster (finer). `rna.var`
    as `mouse_genes`; `atac.var`: chromosome, start, end (base pairs, from the peak's name) and gene (the published
    map: one gene a peak). Peaks are named chromosome:start-end. `n_obs` keeps some cells at random: more cells hold
    the fewer ones. Raises ValueError for damaged files and for files that do not belong together.
    Source: Chen, Lake & Zhang 2019, doi:10.1038/s41587-019-0290-0, as in scMoMaT. Introduced in notebook 06.
    """
    genes, regions = (files[name].read_text(encoding="utf-8").split() for name in ("genes.txt", "regions.txt"))
    meta = pd.read_csv(files["meta_c1.csv"], index_col=0, dtype=str)
    rna, atac = (_stored(files[name]).T.tocsr() for name in ("GxC1.npz", "RxC1.npz"))
    linked = _stored(files["GxR.npz"])
    for name, x, shape in (
        ("GxC1.npz", rna, (len(meta), len(genes))),
        ("RxC1.npz", atac, (len(meta), len(regions))),
        ("GxR.npz", linked, (len(genes), len(regions))),
    ):
        if x.shape != shape:
            raise ValueError(f"{files[name]} holds {_by(x.shape)} values, the names beside it {_by(shape)}; {AGAIN}")
    obs = _annotation(meta, {"cluster (remapped)": "cell_type", "Batch": "batch", "Ident": "cluster"}, "meta_c1.csv")
    var = peak_table(regions).assign(gene=_owners(linked, genes))
    modalities = {"rna": part(rna, meta.index, mouse_genes(genes)), "atac": part(atac, meta.index, var)}
    return some(Parts(modalities, obs, "mop-snare"), n_obs, seed)


def _annotation(table: pd.DataFrame, names: Mapping[str, str], where: str) -> pd.DataFrame:
    """Columns of a published table as categories, under the names used here."""
    if gone := [column for column in names if column not in table]:
        raise ValueError(f"{where} has no column {few(gone)}; {AGAIN}")
    return table[list(names)].rename(columns=names).astype("category")


def _stored(path: Path) -> sp.csr_matrix:
    """A matrix as scipy stores it, float32; anything that would need unpickling is refused by scipy."""
    try:
        x = sp.load_npz(path)
    except (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole sparse matrix of scipy ({error}); {AGAIN}") from error
    return sp.csr_matrix(x, dtype=np.float32)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _owners(linked: sp.csr_matrix, genes: Sequence[str]) -> np.ndarray:
    """The gene of each peak, from the map [genes, peaks]; missing where there is none."""
    gene, peak = linked.nonzero()
    if len(twice := np.flatnonzero(np.bincount(peak, minlength=linked.shape[1]) > 1)):
        raise ValueError(f"GxR.npz gives {len(twice)} peaks to several genes (first peak {twice[0]}); {AGAIN}")
    owner = np.full(linked.shape[1], np.nan, dtype=object)
    owner[peak] = np.asarray(genes, dtype=object)[gene]
    return owner


def peak_table(names: Iterable[str]) -> pd.DataFrame:
    """Peaks [n, 3]: chromosome, start, end (base pairs), named chromosome:start-end, from such names or chr1_10_20.

    Raises ValueError for names without coordinates, and for peaks that end before they start.
    Introduced in notebook 06.
    """
    names = pd.Series(list(names), dtype=str)
    found = names.str.extract(r"^(?P<chromosome>.+)[:_-](?P<start>\d+)[_-](?P<end>\d+)$")
    if (bad := found["start"].isna()).any():
        raise ValueError(f"peaks without coordinates: {few(names[bad])}; name them chromosome:start-end")
    peaks = found.astype({"start": np.int64, "end": np.int64})
    if (bad := peaks["end"] < peaks["start"]).any():
        raise ValueError(f"peaks that end before they start: {few(names[bad])}; correct their names")
    peaks.index = pd.Index(found["chromosome"] + ":" + found["start"] + "-" + found["end"], dtype=str)
    return peaks


def mouse_genes(names: Sequence[str]) -> pd.DataFrame:
    """Where mouse genes start (mm10, RefSeq): chromosome, start, end, tss (base pairs), strand; missing where unknown.

    FigR's table gives one start site a gene, and no gene bodies: start and end are the start site as well. Raises
    OSError where neither the table nor the published file is there and it cannot be downloaded.
    Introduced in notebook 06.
    """
    ready = _ready(*REFSEQ_TABLE)
    table = pd.read_csv(ready, sep="\t") if ready else start_sites(sources.fetch([REFSEQ])[0])
    table = table.drop_duplicates("gene_name").set_index("gene_name").reindex(list(names))
    found = pd.DataFrame({"chromosome": table["chrom"].astype(object)}, index=pd.Index(names, dtype=str))
    return found.assign(**{end: table["tss"].astype(float) for end in ("start", "end", "tss")}, strand=table["strand"])


def start_sites(path: Path) -> pd.DataFrame:
    """Start sites [n_genes, 4] (gene_name, chrom, strand, tss) from R's GRanges of one base pair each.

    Raises ValueError for other or damaged files. Introduced in notebook 06.
    """
    ranges = next(iter(_read_r(path).values()))
    try:
        table = {"gene_name": np.asarray(ranges.elementMetadata.listData["gene_name"]).astype(str)}
        table |= {"chrom": _unrolled(ranges.seqnames), "strand": _unrolled(ranges.strand), "tss": ranges.ranges.start}
        return pd.DataFrame(table)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no start sites with gene_name ({error}); {AGAIN}") from error


def _unrolled(runs: Any) -> np.ndarray:
    """R's run-length encoding, written out."""
    return np.repeat(np.asarray(runs.values).astype(str), runs.lengths)


def _read_r(path: Path) -> Mapping[str, Any]:
    import rdata

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # R's classes without a counterpart come as plain namespaces
            return rdata.read_rda(path, default_encoding="utf8")
    except Exception as error:  # rdata raises a dozen kinds on damaged files
        raise ValueError(f"{path} is not a whole file of R ({error or type(error).__name__}); {AGAIN}") from error


def pbmc_citeseq(files: Mapping[str, Path], with_5k: bool = False, n_obs: int | None = None, seed: int = 0) -> Parts:
    """Blood cells: `rna` (4,000 genes) and `protein` (14 antibodies), raw counts; paired, 10x Genomics' 10k batch.

    `with_5k` adds the 5k batch, which has `rna` only: a mosaic of two batches (then give `batch_key="batch"`). `obs`:
    batch ("10k", "5k"), cell_type and cell_type_fine. The labels were gated on the proteins, which makes them circular
    for anything that sees `protein`; they are missing where the gates leave a cell undefined, and for the 5k batch.
    `n_obs` keeps some cells at random. Raises ValueError for damaged files. Source: Gayoso et al. 2021,
    doi:10.1038/s41592-020-01050-x; labels: Zheng et al., ADTnorm. Introduced in notebook 05.
    """
    batches = {"10k": read_counts(files["pbmc10k_harmo_rna.csv.gz"])}
    if with_5k:
        batches["5k"] = read_counts(files["pbmc5k_harmo_rna.csv.gz"])
    x, genes, protein = [], batches["10k"][2], read_counts(files["pbmc10k_harmo_pro.csv.gz"])
    for name, (counts, _, features) in batches.items():
        if features != genes:
            raise ValueError(f"the genes of the batches 10k and {name} differ; fetch both again")
        x.append(counts)
    cells = [f"{name}_{cell}" for name, (_, barcodes, _) in batches.items() for cell in barcodes]
    proteins = [feature.removesuffix("_TotalSeqB") for feature in protein[2]]
    labels = _gated(protein, proteins).rename(index="10k_{}".format).reindex(cells)
    obs = pd.DataFrame({"batch": pd.Categorical([cell.split("_")[0] for cell in cells])}, index=cells)
    for column, published in {"cell_type": "cell_type_l1", "cell_type_fine": "cell_type_l2"}.items():
        obs[column] = pd.Categorical(labels[published].where(labels[published] != "undefined"))
    modalities = {
        "rna": part(sp.vstack(x, format="csr"), cells, genes),
        "protein": part(protein[0], [f"10k_{cell}" for cell in protein[1]], proteins),
    }
    return some(Parts(modalities, obs, "pbmc-citeseq"), n_obs, seed)


def read_counts(path: Path) -> tuple[sp.csr_matrix, list[str], list[str]]:
    """Counts [n_cells, n_features] with the names of cells and features, from a table of features x cells.

    Raises ValueError for damaged files and for values that are no numbers. Introduced in notebook 05.
    """
    blocks, features, cells = [], [], []
    try:
        for chunk in pd.read_csv(path, index_col=0, chunksize=500, low_memory=False):  # never dense as a whole
            blocks.append(sp.csr_matrix(chunk.to_numpy(np.float32)))
            features += chunk.index.astype(str).tolist()
            cells = chunk.columns.tolist()
        return sp.vstack(blocks).T.tocsr(), cells, features
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole table of counts ({error}); {AGAIN}") from error


def _gated(protein: tuple[sp.csr_matrix, list[str], list[str]], names: list[str]) -> pd.DataFrame:
    """Published labels (cell_type_l1, cell_type_l2) by barcode: the ready table, or made from the published files."""
    if ready := _ready(*LABEL_TABLE):
        return pd.read_csv(ready, index_col=0)
    counts = pd.DataFrame(protein[0].toarray(), protein[1], names).rename(columns={"CD8a": "CD8"})
    adt, about = (next(iter(_read_r(path).values())) for path in sources.fetch(GATES))
    labels = matched(counts, adt, about).rename_axis("barcode")
    candidates = labels["cell_type_l1"].notna().astype(int)
    _keep(labels.fillna("undefined").assign(n_candidates=candidates).to_csv(), *LABEL_TABLE)
    return labels


def _keep(text: str, path: str, sha256: str) -> None:
    """Write a table made from published files beside them, if it came out right: making it takes half a minute."""
    if hashlib.sha256(text.encode()).hexdigest() == sha256:
        with contextlib.suppress(OSError):  # a folder that is only read
            project.write_atomic(project.data_dir() / path, text)


def matched(counts: pd.DataFrame, adt: pd.DataFrame, about: pd.DataFrame, study: str = "10X_pbmc_10k") -> pd.DataFrame:
    """Labels of cells whose counts of all proteins of `adt` equal those of just one kind of labelled cell of a study.

    `counts` [n_cells, proteins], `adt` [n_labelled, proteins], `about` [n_labelled, study_name, cell_type_l1,
    cell_type_l2], in the same order; the published table has no barcodes. Others stay missing.
    Introduced in notebook 05.
    """
    of_study = (about["study_name"] == study).to_numpy()
    labelled = adt[of_study].set_axis(adt.columns.astype(str), axis=1)
    proteins = list(labelled.columns)
    for level in ("cell_type_l1", "cell_type_l2"):
        labelled[level] = about.loc[of_study, level].astype(str).to_numpy()
    labelled = labelled.drop_duplicates().drop_duplicates(proteins, keep=False)
    joined = counts[proteins].astype(float).merge(labelled.astype(dict.fromkeys(proteins, float)), "left", on=proteins)
    return joined.set_axis(counts.index)[["cell_type_l1", "cell_type_l2"]]


def pbmc_mosaic(files: Mapping[str, Path]) -> Parts:
    """1,600 blood cells of four batches, a mosaic of `rna` and `protein` raw counts: of 400 cells each, batch p1_0 has
    rna only, p2_0 protein only, p3_0 and p4_0 both.

    `obs`: batch, cell_type. Source: He et al. 2024 (MIDAS), doi:10.1038/s41587-023-02040-y.
    Introduced in notebook 06.
    """
    parts = tables.from_h5mu(files["quickstart_pbmc_mosaic.h5mu"])
    obs = _annotation(parts.obs, {"batch": "batch", "celltype": "cell_type"}, "quickstart_pbmc_mosaic.h5mu")
    return Parts({name: parts.modalities[name] for name in ("rna", "protein")}, obs, "pbmc-mosaic")


def fashion_mnist(files: Mapping[str, Path], size: Size | None = None) -> Parts:
    """900 pictures of clothes out of Fashion-MNIST: `image`, 28 x 28 or resized to `size`; obs: class, 90 of each.

    They are cut from the sprite that the authors show, three rows a class. Raises ValueError for a damaged file.
    Source: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747. Introduced in notebook 05.
    """
    path, side = files["fashion-mnist-sprite.png"], TILE * ACROSS
    sprite = open_picture(path)
    if sprite.shape[:2] != (side, side):
        raise ValueError(f"{path} has {_by(sprite.shape[:2])} pixels and not {_by((side, side))}; {AGAIN}")
    tiles = sprite[..., 0].reshape(ACROSS, TILE, ACROSS, TILE).swapaxes(1, 2).reshape(-1, TILE**2)  # grey: all channels
    names, shape = [f"fashion{i:03d}" for i in range(len(tiles))], np.array([TILE, TILE, 1])
    image = part(tiles / np.float32(255), names, pixel_names(shape), image_shape=shape)
    classes = pd.Categorical(np.repeat(CLOTHES, len(tiles) // len(CLOTHES)), categories=CLOTHES)
    return Parts({"image": resized(image, size)}, pd.DataFrame({"class": classes}, index=names), "fashion-mnist")


def some(parts: Parts, n_obs: int | None, seed: int = 0) -> Parts:
    """`n_obs` samples at random, in their order; with one seed, more samples hold the fewer ones. None keeps all.

    Raises ValueError for a number below 1 or above that of the samples. Introduced in notebook 06.
    """
    if n_obs is None:
        return parts
    n = len(parts.obs)
    if not 1 <= n_obs <= n:
        raise ValueError(f"n_obs={n_obs} cannot be had of {parts.name}, which has {n} samples; ask for 1 to {n}")
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:n_obs])
    obs = parts.obs.iloc[rows].copy()
    kept = {name: adata[adata.obs_names.isin(obs.index)].copy() for name, adata in parts.modalities.items()}
    return replace(parts, modalities={name: adata for name, adata in kept.items() if adata.n_obs}, obs=obs)
