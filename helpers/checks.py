"""What a data set must be: its parts put together in one form, and everything wrong with them in plain words."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from helpers.wording import closest, few

mudata.set_options(pull_on_update=False)

KINDS = ("continuous", "unit", "counts", "binary", "image")
LARGEST = float(np.finfo(np.float32).max)
BLOCK = 1 << 22  # values looked at together, so that no check needs a second copy of a matrix


@dataclass
class Parts:
    """A data set before it is one MuData, so that also what MuData would not take can be looked at.

    Introduced in notebook 01.
    """

    modalities: dict[str, AnnData]  # name -> X [n_obs_of_modality, n_vars]
    obs: pd.DataFrame  # [n_obs, columns], all samples
    name: str
    sha256: str = ""
    label_key: str = ""
    batch_key: str = ""
    kinds: dict[str, str] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    unpaired: bool = False  # meant to share no samples between modalities


def part(x: Any, obs_names: Iterable, var: pd.DataFrame | Iterable, **uns: Any) -> AnnData:
    """One modality from X [n_obs, n_vars], sample names and features (names, or a table indexed by name).

    Introduced in notebook 01.
    """
    var = var if isinstance(var, pd.DataFrame) else pd.DataFrame(index=pd.Index(var, dtype=str))
    x = x if sp.issparse(x) else np.ascontiguousarray(x, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")  # `problems` says it better
        return AnnData(x, obs=pd.DataFrame(index=pd.Index(obs_names, dtype=str)), var=var, uns=uns)


def assemble(parts: Parts) -> MuData:
    """The MuData of `parts`: X float32 (dense or CSR), samples in the order of `obs`, `uns["dataset"]` filled.

    Introduced in notebook 01.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")  # modalities may share names
        mdata = MuData({name: _in_form(adata) for name, adata in parts.modalities.items()})
        order = parts.obs.index[parts.obs.index.isin(mdata.obs_names)].rename(None)
        if not mdata.obs_names.equals(order):
            mdata = mdata[order].copy()
    mdata.obs = parts.obs.loc[order].rename_axis(None)
    rows = parts.obs.index.get_indexer(order)
    for key, value in parts.obsm.items():
        mdata.obsm[key] = value[rows]
    mdata.uns.update(parts.uns)
    about = {"name": parts.name, "sha256": parts.sha256 or fingerprint(parts.modalities)}
    keys = {"label_key": parts.label_key, "batch_key": parts.batch_key}
    keys |= {"unpaired": True} if parts.unpaired else {}
    mdata.uns["dataset"] = about | keys | {"modalities": {m: kind_of(parts, m) for m in parts.modalities}}
    return mdata


def parts_of(mdata: MuData, name: str = "") -> Parts:
    """The parts of a MuData, by `uns["dataset"]`; coordinates may be a modality's. Introduced in notebook 01."""
    about = mdata.uns.get("dataset", {})
    text = {key: str(about.get(key, "")) for key in ("sha256", "label_key", "batch_key")}
    kinds = {m: str(kind) for m, kind in dict(about.get("modalities", {})).items() if m in mdata.mod}
    obsm = {key: np.asarray(value) for key, value in mdata.obsm.items() if key not in mdata.mod}
    if "spatial" not in obsm and (own := [m for m in mdata.mod.values() if "spatial" in m.obsm]):
        places = pd.concat([pd.DataFrame(np.asarray(m.obsm["spatial"]), m.obs_names) for m in own])
        obsm["spatial"] = places[~places.index.duplicated()].reindex(mdata.obs_names).to_numpy()
    uns = {key: value for key, value in mdata.uns.items() if key != "dataset"}
    found = {"kinds": kinds, "obsm": obsm, "uns": uns, "unpaired": bool(about.get("unpaired", False))}
    return Parts(dict(mdata.mod), mdata.obs, name or str(about.get("name", "data")), **text, **found)


def fingerprint(modalities: Mapping[str, AnnData]) -> str:
    """sha256 over the values of all modalities. Introduced in notebook 01."""
    digest = hashlib.sha256()
    for name, adata in modalities.items():
        arrays = (adata.X.data, adata.X.indices, adata.X.indptr) if sp.issparse(adata.X) else (adata.X,)
        digest.update(name.encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def validate(mdata: MuData, name: str = "", *, allow_nan: bool = False, allow_unpaired: bool = False) -> MuData:
    """`mdata` itself where it can be used; ValueError with one sentence on the first thing that is wrong.

    `allow_nan` leaves missing values to `prepare.fit_transform(..., nan=...)`; `allow_unpaired` allows modalities
    that share no sample. Introduced in notebook 01.
    """
    refuse(parts_of(mdata, name), allow_nan, allow_unpaired)
    return mdata


def refuse(parts: Parts, allow_nan: bool = False, allow_unpaired: bool = False) -> None:
    """Raise ValueError on the first of the `problems`. Introduced in notebook 01."""
    found = problems(parts, allow_nan, allow_unpaired)
    if found:
        more = f" (and {len(found) - 1} more: `python -m helpers.datasets check` lists all)"
        raise ValueError(f"{parts.name}: {found[0]}{more if len(found) > 1 else ''}")


def problems(parts: Parts, allow_nan: bool = False, allow_unpaired: bool = False) -> list[str]:
    """Everything that keeps a data set from being used, one sentence each. Introduced in notebook 01."""
    if not parts.modalities:
        return ["there is no modality in it; at least one with samples and features is needed"]
    found = [text for m in parts.modalities for text in _modality_problems(parts, m, allow_nan)]
    found += [] if allow_unpaired or parts.unpaired else _pairing_problems(parts.modalities)
    return [*found, *_column_problems(parts.obs, parts.label_key, parts.batch_key)]


def _modality_problems(parts: Parts, name: str, allow_nan: bool) -> Iterator[str]:
    adata, where = parts.modalities[name], f"modality '{name}'"
    if adata.X is None or 0 in adata.shape:
        yield f"{where} is empty ({adata.n_obs} samples x {adata.n_vars} features); fill it or leave it out"
        return
    for what, names in (("sample", adata.obs_names), ("feature", adata.var_names)):
        twice = names[names.duplicated()].unique()
        if len(twice):
            yield f"{where} has {len(twice)} duplicate {what} names: {few(twice)}; make them unique"
    if adata.X.dtype.kind not in "fiub":
        yield f"{where} is not numeric (its X holds {adata.X.dtype}); keep numbers in X and the rest in obs"
        return
    yield from _value_problems(adata, where, kind_of(parts, name), allow_nan)
    if "image_shape" in adata.uns:
        yield from _picture_problems(adata, where, np.atleast_1d(adata.uns["image_shape"]))


def _picture_problems(adata: AnnData, where: str, shape: np.ndarray) -> Iterator[str]:
    if shape.shape != (3,) or shape.prod() != adata.n_vars:
        said = " x ".join(map(str, shape))
        yield f"{where} has {adata.n_vars} features but pictures of {said}; image_shape is height, width, channels"
    elif constant := constant_channels(adata.X, shape):
        yield f"{where} cannot be used: {constant}"


def constant_channels(x: Any, shape: Sequence[int]) -> str:
    """Which channel of pictures X [n_obs, height * width * channels] has one value only, and what to do; or "".

    Introduced in notebook 04.
    """
    low, high = (values.reshape(-1, int(shape[2])) for values in _extremes(x))
    low, high = np.fmin.reduce(low), np.fmax.reduce(high)
    flat, rest = np.flatnonzero(low >= high), [int(c) for c in np.flatnonzero(low < high)]
    if not flat.size:
        return ""
    advice = f"keep the others with channels={rest}" if rest else "there is nothing to learn from"
    return f"channel {flat[0]} is {low[flat[0]]:g} in every pixel of every picture; {advice}"


def _value_problems(adata: AnnData, where: str, kind: str, allow_nan: bool) -> Iterator[str]:
    low, high = value_range(adata.X)
    n_nan, names = (0, []) if _all_finite(adata.X) else _offenders(adata, np.isnan)
    if n_nan and not allow_nan:
        advice = "load with allow_nan=True and choose a policy in prepare.fit_transform(..., nan=...), or fill them"
        yield f"{where} has {n_nan} missing values (NaN), first in {few(names)}; {advice}"
    if max(-low, high) > LARGEST:
        n_inf, names = _offenders(adata, lambda x: np.abs(x) > LARGEST)
        yield f"{where} has {n_inf} infinite values, first in {few(names)}; replace them"
    if kind not in KINDS:
        yield f"{where} has the unknown kind '{kind}'; kinds are {', '.join(KINDS)}{closest(kind, KINDS)}"
        return
    what, test = BROKEN.get(kind, ("", None))
    if test is not None and (kind == "binary" or low < 0 or high > 1):
        n, names = _offenders(adata, test)
        if n:
            said = f"{where} is said to be of kind '{kind}' but has {n} {what}"
            yield f"{said}, first in {few(names)}; correct it or give another kind"


BROKEN: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "counts": ("negative counts", lambda x: x < 0),
    "unit": ("values outside 0 to 1", lambda x: (x < 0) | (x > 1)),
    "image": ("values outside 0 to 1", lambda x: (x < 0) | (x > 1)),
    "binary": ("values other than 0 and 1", lambda x: (x != 0) & (x != 1) & ~np.isnan(x)),
}


def _pairing_problems(modalities: Mapping[str, AnnData]) -> list[str]:
    """Modalities must hang together: each shares samples with another, directly or through a third."""
    names = list(modalities)
    reached, waiting = set(names[:1]), set(names[1:])
    while linked := {m for m in waiting if any(_common(modalities, m, r) for r in reached)}:
        reached, waiting = reached | linked, waiting - linked
    if not waiting:
        return []
    apart, rest = sorted(waiting), [m for m in names if m in reached]
    example = modalities[rest[0]].obs_names[0], modalities[apart[0]].obs_names[0]
    return [
        f"modality {few(apart)} has no samples in common with {few(rest)} (names look like '{example[0]}' and "
        f"'{example[1]}'); give a sample the same name everywhere, or load with allow_unpaired=True"
    ]


def _common(modalities: Mapping[str, AnnData], one: str, other: str) -> bool:
    return bool(modalities[one].obs_names.isin(modalities[other].obs_names).any())


def _column_problems(obs: pd.DataFrame, label_key: str, batch_key: str) -> Iterator[str]:
    for what, key in (("label", label_key), ("batch", batch_key)):
        if key and key not in obs:
            there = f"there are {few(obs.columns)}" if len(obs.columns) else "there are no columns at all"
            yield f"{what} column '{key}' is not in obs ({there}){closest(key, obs.columns)}"
    if label_key in obs and (n := obs[label_key].nunique()) < 2:
        only = f"only one class ('{obs[label_key].dropna().iloc[0]}')" if n else "no values"
        yield f"label column '{label_key}' has {only}; classes can be told apart only where there are two"


def notes(parts: Parts) -> list[str]:
    """What does no harm but should be known, one sentence each. Introduced in notebook 01."""
    said = []
    for name, adata in parts.modalities.items():
        if adata.X is None or 0 in adata.shape or adata.X.dtype.kind not in "fiub":
            continue
        low, high = _extremes(adata.X)
        if (n := int((~(low < high)).sum())) and kind_of(parts, name) != "image":  # pictures keep dark corners
            said.append(f"modality '{name}': {n} of {adata.n_vars} features are constant; prepare drops them")
        if kind_of(parts, name) == "counts" and not _all(adata.X, _whole):
            said.append(f"modality '{name}' is called counts but not all values are whole numbers")
        if len(lacking := parts.obs.index[~parts.obs.index.isin(adata.obs_names)]):
            masked = f"lacks {len(lacking)} of {len(parts.obs)} samples (a mosaic: they are masked)"
            said.append(f"modality '{name}' {masked}: {few(lacking)}")
    for key in filter(parts.obs.columns.__contains__, (parts.label_key, parts.batch_key)):
        if n := int(parts.obs[key].isna().sum()):
            said.append(f"column '{key}' is missing for {n} of {len(parts.obs)} samples")
    counts = parts.obs[parts.label_key].value_counts() if parts.label_key in parts.obs else pd.Series(dtype=int)
    if rare := [str(label) for label, n in counts.items() if 0 < n < 3]:
        said.append(f"classes with fewer than 3 samples cannot be in every split: {few(rare)}")
    return said


def kind_of(parts: Parts, name: str) -> str:
    """The kind of a modality as given, else as its values look. Introduced in notebook 01."""
    return parts.kinds.get(name) or detect_kind(parts.modalities[name])


def detect_kind(adata: AnnData) -> str:
    """ "counts" (whole numbers from 0), "binary" (0 and 1), "unit" (0 to 1), "image" (that, with
    `uns["image_shape"]`) or "continuous", by the values of X. Introduced in notebook 01."""
    x = adata.X
    if x is None or 0 in x.shape or x.dtype.kind not in "fiub":
        return "continuous"
    low, high = value_range(x)
    if not low >= 0:
        return "continuous"
    if "image_shape" in adata.uns and high <= 1:
        return "image"
    if _all(x, _whole):
        return "binary" if high <= 1 else "counts"
    return "unit" if high <= 1 else "continuous"


def value_range(x: Any) -> tuple[float, float]:
    """Smallest and largest value of a matrix, NaN left out (NaN where nothing else is there).

    Introduced in notebook 01.
    """
    values = x.data if sp.issparse(x) else x
    if values.size == 0:
        return 0.0, 0.0
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    implicit = sp.issparse(x) and x.nnz < x.shape[0] * x.shape[1]
    return (min(low, 0.0), max(high, 0.0)) if implicit else (low, high)


def _whole(values: np.ndarray) -> np.ndarray:
    return (values == np.floor(values)) | np.isnan(values) if values.dtype.kind == "f" else np.full(values.shape, True)


def _all_finite(x: Any) -> bool:
    values = x.data if sp.issparse(x) else x
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.float64)))


def _blocks(x: Any) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Stored values piece by piece: dense rows, or a run of CSR values with their columns."""
    if sp.issparse(x):
        for start in range(0, x.nnz, BLOCK):
            yield x.data[start : start + BLOCK], x.indices[start : start + BLOCK]
    else:
        step = max(1, BLOCK // max(1, x.shape[1]))
        for start in range(0, x.shape[0], step):
            yield x[start : start + step], None


def _all(x: Any, test: Callable[[np.ndarray], np.ndarray]) -> bool:
    return all(test(values).all() for values, _ in _blocks(x))


def _offenders(adata: AnnData, test: Callable[[np.ndarray], np.ndarray]) -> tuple[int, list[str]]:
    """How many stored values pass a test, and the features they are in."""
    x = adata.X.tocsr() if sp.issparse(adata.X) else adata.X
    n, hit = 0, np.zeros(adata.n_vars, bool)
    for values, columns in _blocks(x):
        where = test(values)
        n += int(where.sum())
        if columns is None:
            hit |= where.any(0)
        else:
            hit[columns[where]] = True
    return n, list(adata.var_names[hit])


def _extremes(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each feature [n_vars]; sparse matrices a few thousand rows at a time."""
    step = max(1, BLOCK // max(1, x.shape[1]))
    low, high = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    for start in range(0, x.shape[0], step):
        rows = x[start : start + step]
        rows = rows.toarray() if sp.issparse(rows) else rows
        low, high = np.fmin(low, np.fmin.reduce(rows, axis=0)), np.fmax(high, np.fmax.reduce(rows, axis=0))
    return low, high


def _in_form(adata: AnnData) -> AnnData:
    """The modality with X as float32, dense or CSR, and unnamed indices: MuData cannot read back named ones."""
    x = adata.X
    right = x.dtype == np.float32 and (isinstance(x, np.ndarray) or (sp.issparse(x) and x.format == "csr"))
    if not right or adata.is_view:
        adata = adata.copy()
        adata.X = sp.csr_matrix(x, dtype=np.float32) if sp.issparse(x) else np.asarray(x, dtype=np.float32)
    adata.obs.index.name = adata.var.index.name = None
    return adata


def needs(parts: Parts) -> dict[str, list[str]]:
    """What each of the eight notebooks still lacks in a data set; an empty list means ready.

    Introduced in notebook 01.
    """
    return {notebook: [text for test, text in asked if not test(parts)] for notebook, asked in NEEDS.items()}


def _has_kind(*kinds: str) -> Callable[[Parts], bool]:
    return lambda parts: any(kind_of(parts, m) in kinds for m in parts.modalities)


def _has_classes(parts: Parts) -> bool:
    return parts.label_key in parts.obs and parts.obs[parts.label_key].nunique() > 1


def _has_batches(parts: Parts) -> bool:
    return parts.batch_key in parts.obs and parts.obs[parts.batch_key].nunique() > 1


def _has_ontology(parts: Parts) -> bool:
    return any({"pathways", "chromosome"} & set(adata.var.columns) for adata in parts.modalities.values())


def _is_single_cell(parts: Parts) -> bool:
    return "rna" in parts.modalities and kind_of(parts, "rna") == "counts"


TWO = (lambda parts: len(parts.modalities) > 1, "two modalities")
CLASSES = (_has_classes, "a label column with two classes or more (label_key)")
NEEDS: dict[str, tuple[tuple[Callable[[Parts], bool], str], ...]] = {
    "01 beta trade-off": ((lambda parts: len(parts.obs) >= 50, "50 samples"),),
    "02 architecture benchmark": (TWO, CLASSES),
    "03 Ontix robustness": (
        CLASSES,
        (_has_ontology, "features with 'pathways' or 'chromosome' in var, or gene symbols for a downloaded ontology"),
    ),
    "04 translation": (TWO,),
    "05 DGD clustering": (CLASSES, (_has_kind("counts", "image"), "a modality of counts or images")),
    "06 multiDGD perturbation": (
        (_is_single_cell, "a modality 'rna' of counts"),
        (TWO[0], "a second modality, for links 'atac' with peaks named chromosome:start-end"),
    ),
    "07 MIMA integration": (CLASSES, (_has_batches, "a batch column with two batches or more (batch_key)")),
    "08 sample size": (
        (_is_single_cell, "a modality 'rna' of counts"),
        (lambda parts: bool({"protein", "atac"} & set(parts.modalities)), "a modality 'protein' or 'atac'"),
        CLASSES,
        (lambda parts: len(parts.obs) >= 500, "500 cells"),
    ),
}
