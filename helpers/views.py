"""What methods of integration are given: each modality's values or counts, sample by sample, mosaics with gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from helpers.checks import detect_kind
from helpers.features import library_size, log1p_cp10k
from helpers.splits import column_of
from helpers.wording import closest, few

# names that modalities of counts go by; every method also takes another name as an option
GENES = ("rna", "gex", "gene", "genes", "expression", "transcripts")
PROTEINS = ("protein", "proteins", "prot", "adt", "antibodies")
PEAKS = ("atac", "peaks", "accessibility", "chromatin")


class Unsuited(ValueError):
    """The data lack what a method needs, in one sentence. Introduced in notebook 07."""


def inputs(mdata: MuData, modalities: Sequence[str] | None = None, standardise: bool = True) -> dict[str, np.ndarray]:
    """Modality -> values [n_obs, n_vars that vary] for linear methods, float32; rows of samples without it are NaN.

    Counts become log(1 + counts per ten thousand), those of proteins (a modality called as in `PROTEINS`) the centred
    log ratio: log(1 + count) less its mean over the sample's proteins. Other kinds, and what `prepare` has made, stay.
    Then every feature gets mean 0 and variance 1 over the samples that have it, and constant ones are left out;
    `standardise=False` leaves this step out for counts, and for counts only.
    Raises `ValueError` for unknown modalities, values that are NaN, infinite or negative counts, and `Unsuited` where
    no feature varies. Source of the ratio: Stoeckius et al. 2017. Introduced in notebook 07.
    """
    found = {}
    for name in mdata.mod if modalities is None else modalities:
        adata, counted = modality_of(mdata, name), kind_of(mdata, name) == "counts"
        x = (clr if name.lower() in PROTEINS else _log_counts)(counts_of(adata, name)) if counted else _dense(adata.X)
        if not np.isfinite(x).all():
            raise ValueError(f"modality '{name}' has NaN or infinite values; prepare.fit_transform(nan=...) treats NaN")
        x = _standardised(x) if standardise or not counted else x
        if not x.shape[1]:
            raise Unsuited(f"modality '{name}' has no feature that varies")
        found[name] = placed(x, mdata.obs_names.get_indexer(adata.obs_names), mdata.n_obs)
    return found


def clr(counts: sp.csr_matrix) -> np.ndarray:
    """Centred log ratio of counts [n_obs, n_vars] with a pseudocount of one: every row has mean 0. Introduced in
    notebook 07."""
    x = np.log1p(_dense(counts))
    return x - x.mean(axis=1, keepdims=True)


def kind_of(mdata: MuData, name: str) -> str:
    """What the values of a modality are now: "counts", "continuous", "binary" ... Introduced in notebook 07."""
    adata = modality_of(mdata, name)
    if "prepare" in adata.uns:
        return str(adata.uns["prepare"]["kind"])
    return mdata.uns.get("dataset", {}).get("modalities", {}).get(name) or detect_kind(adata)


def _log_counts(counts: sp.csr_matrix) -> np.ndarray:
    return _dense(log1p_cp10k(counts, library_size(counts)))


def counts_of(adata: AnnData, name: str) -> sp.csr_matrix:
    """A float32 copy of counts as CSR, or `ValueError` where they cannot be any. Introduced in notebook 07."""
    x = sp.csr_matrix(adata.X, dtype=np.float32, copy=True)
    if not np.isfinite(x.data).all() or (x.data < 0).any():
        raise ValueError(f"modality '{name}' is called counts, but has values that are NaN, infinite or below 0")
    return x


def _dense(x: np.ndarray | sp.spmatrix) -> np.ndarray:
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float32)


def _standardised(x: np.ndarray) -> np.ndarray:
    if not len(x):
        return x
    x = x[:, np.ptp(x, axis=0) > 0]
    x -= x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x /= x.std(axis=0, dtype=np.float64).astype(np.float32)
    return x


def placed(x: np.ndarray, rows: np.ndarray, n_obs: int) -> np.ndarray:
    """`x` [n_rows, n] at its `rows` of [n_obs, n] float32, NaN elsewhere. Introduced in notebook 07."""
    out = np.full((n_obs, x.shape[1]), np.nan, dtype=np.float32)
    out[rows] = x
    return out


def modality_of(mdata: MuData, name: str) -> AnnData:
    """A modality, or `ValueError` with the names there are. Introduced in notebook 07."""
    if name not in mdata.mod:
        raise ValueError(f"there is no modality '{name}'{closest(name, mdata.mod)}; there are {few(mdata.mod)}")
    return mdata[name]


def chosen(mdata: MuData, modality: str | None) -> str:
    """The modality named, else the one called as genes are, else the first. Introduced in notebook 07."""
    return modality or called(mdata, GENES) or next(iter(mdata.mod))


def called(mdata: MuData, names: Iterable[str]) -> str | None:
    """The first modality that goes by one of `names`, if any. Introduced in notebook 07."""
    return next((name for name in mdata.mod if name.lower() in names), None)


def measured(mdata: MuData, name: str) -> np.ndarray:
    """Which samples have a modality: bool [n_obs]. Introduced in notebook 07."""
    return mdata.obs_names.isin(modality_of(mdata, name).obs_names)


def batch_of(mdata: MuData, batch_key: str) -> np.ndarray:
    """The batch of every sample, as text [n_obs]; `ValueError` where some have none. Introduced in notebook 07."""
    labels = column_of(mdata.obs, batch_key)
    if labels.isna().any():
        lost = mdata.obs_names[labels.isna()]
        raise ValueError(f"{len(lost)} samples have no '{batch_key}': {few(lost)}; label them or leave them out")
    return labels.astype(str).to_numpy(dtype=str)


def two_batches(batch: np.ndarray, batch_key: str, method: str) -> None:
    """Raise `Unsuited` where all of `batch` [n_samples] are one. Introduced in notebook 07."""
    if len(np.unique(batch)) < 2:
        where = few(np.unique(batch))
        raise Unsuited(f"{method} aligns batches, and the samples it can take are all of one '{batch_key}': {where}")
