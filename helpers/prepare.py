"""Prepare a MuData for training: split, select features, scale, encode categories.

Everything that is estimated is estimated on the train split and stored in `mdata[modality].uns["prepare"]`
as plain arrays and strings, so that it survives `.h5mu` and `transform` can repeat it on new data.
The order is: missing values -> (counts per ten thousand, log1p) -> feature filter -> column scaler.
Introduced in notebook 01.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import ArrayLike
from scipy import sparse

from helpers import splits
from helpers.features import (
    KEEPS_ZEROS,
    SCALERS,
    SELECTORS,
    column_means,
    columnwise,
    count,
    fill_gaps,
    library_size,
    log1p_cp10k,
    rescale,
)
from helpers.splits import check_unique, column_of
from helpers.wording import few

mudata.set_options(pull_on_update=False)
warnings.filterwarnings("ignore", "var_names are not unique", module="mudata")  # modalities may share feature names

NAN_POLICIES = ("error", "drop_features", "mean", "zero")
MAX_DENSE_GB = 8.0  # a sparse matrix that would become larger than this is refused, not densified


def split(
    mdata: MuData,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    stratify: str | None = None,
    group: str | None = None,
    column: str | None = None,
    ids: Mapping[str, Iterable[str]] | None = None,
    seed: int = 0,
) -> MuData:
    """Add the categorical `mdata.obs["split"]` (train, valid, test) in place and return `mdata`.

    - `stratify`, a column of obs: every class keeps its proportions; missing labels are a class of their own.
      A class with fewer than three samples cannot appear in every split and goes to train whole, with a
      warning, so that no score is taken on a class never trained on.
    - `group`, a column of obs: samples of one group share a split. Groups are dealt from large to small, each
      to the split that lacks most (with `stratify`: of its classes); a sample without a label is a group.
    - `column`, a column of obs that already says train, valid or test.
    - `ids`: split -> obs names.

    The splitters of scikit-learn refuse classes with one member and take fractions of groups, not of
    samples, hence our own. Raises ValueError for fractions that are not three positive numbers summing to 1,
    fewer than three samples, an empty split, an unknown column, and unknown, repeated or unassigned names.
    Introduced in notebook 01.
    """
    if sum([column is not None, ids is not None, stratify is not None or group is not None]) > 1:
        raise ValueError("split: give only one of column, ids, or stratify/group")
    check_unique(mdata.obs_names, "the data", "sample")
    if column is not None:
        labels = splits.from_column(mdata.obs, column)
    elif ids is not None:
        labels = splits.from_ids(mdata.obs_names, ids)
    else:
        labels = splits.draw(mdata.obs, fractions, stratify, group, seed)
    empty = [name for name in splits.SPLITS if name not in set(labels)]
    if empty:
        raise ValueError(f"split: {' and '.join(empty)} would be empty; train, valid and test need samples")
    mdata = mdata.copy() if mdata.is_view else mdata
    mdata.obs["split"] = pd.Categorical(labels, categories=splits.SPLITS)
    return mdata


def complete(mdata: MuData, n_samples: int = 0, seed: int = 0) -> MuData:
    """The samples that every modality has measured, or a random subset of `n_samples` of them (0: all).

    Warns of samples left out; raises ValueError where none is left. Introduced in notebook 01.
    """
    measured = np.all([mdata.obs_names.isin(adata.obs_names) for adata in mdata.mod.values()], axis=0)
    rows = np.flatnonzero(measured)
    if not len(rows):
        raise ValueError(f"no sample has all of {few(mdata.mod)}; name fewer modalities")
    if len(rows) < mdata.n_obs:
        lacking = f"{mdata.n_obs - len(rows)} of {mdata.n_obs} samples lack a modality and are left out"
        warnings.warn(lacking, stacklevel=2)
    if 0 < n_samples < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, n_samples, replace=False))
    return mdata if len(rows) == mdata.n_obs else mdata[rows].copy()


def fit_transform(
    mdata: MuData,
    select: str | Mapping[str, str] = "variance",
    n_features: int | Mapping[str, int | None] | None = 2000,
    scale: str | Mapping[str, str] = "standard",
    nan: str | Mapping[str, str] = "error",
) -> MuData:
    """A prepared copy of `mdata`, fitted on the samples with `mdata.obs["split"] == "train"`.

    Each argument is one value, or a dict with a value for every modality.

    - `select`: "variance", "nonzero_variance", "mad", "correlation" (medoids of correlated clusters, distance
      1 - |r|), "variance_correlation" (to 10 n by variance, then to n by correlation), "none". Features that
      are constant on train are dropped with a warning, except under "none".
    - `n_features`: how many to keep; None, "nonzero_variance" and "none" keep all, as where there are fewer.
    - `scale`: "standard", "minmax" (clipped to [0, 1]), "robust", "maxabs", "none", or "log1p_cp10k": log(1 +
      counts per ten thousand of the sample's sum over all features), done before the filter. "maxabs", "none"
      and "log1p_cp10k" keep CSR; under the others X becomes dense.
    - `nan`: "error", "mean" (of train; 0 where train has no value), "zero", or "drop_features": those with a
      NaN on train go, and what is missing elsewhere gets the train mean.

    X is float32 [n_obs, n_features]. `mdata[modality].uns["prepare"]` holds features, select, scaler, shift,
    scale, clip, nan, fill, library (features summed to the library size), n_train and kind (what the values
    are now: "continuous", "unit", ...). Modalities made by `encode_categories` pass through unchanged. The
    input is not touched.

    Raises ValueError without a split, for a modality without train samples or varying features, NaN under
    "error", infinite values, counts below 0 under "log1p_cp10k", prepared data and unknown names; MemoryError
    where a CSR matrix would take more than `MAX_DENSE_GB` when dense. Introduced in notebook 01.
    """
    options = {"select": select, "n_features": n_features, "scale": scale, "nan": nan}
    raw = [name for name, adata in mdata.mod.items() if not _is_encoded(adata)]
    chosen = {name: _options_of(name, raw, options) for name in raw}
    prepared = {}
    for name, adata in mdata.mod.items():
        stored = _fit(mdata, name, **chosen[name]) if name in chosen else None
        prepared[name] = _apply(adata, stored, name) if stored else adata.copy()
    return _assemble(mdata, prepared)


def transform(new: MuData, fitted: MuData) -> MuData:
    """A copy of `new` prepared exactly as `fitted` (the result of `fit_transform`) was.

    Features are matched by name, in any order; further features are ignored. `new` may lack whole modalities.
    Encoded modalities are made from `new.obs` with the categories of `fitted`.
    Raises ValueError for features or columns that are missing, modalities that were not fitted, and values
    that the stored policy refuses. Introduced in notebook 01.
    """
    encoded = [name for name, adata in fitted.mod.items() if _is_encoded(adata)]
    unknown = [name for name in new.mod if name not in fitted.mod]
    if unknown:
        raise ValueError(f"transform: no preparation was fitted for {few(unknown)}; leave them out")
    prepared = {}
    for name, adata in new.mod.items():
        if name not in encoded:
            prepared[name] = _apply(adata, _stored(fitted[name], name), name)
    for name in encoded:
        prepared[name] = _one_hot(new.obs, fitted[name].uns["prepare"], fitted[name].var, name)
    return _assemble(new, prepared)


def inverse(x: ArrayLike, fitted: AnnData) -> np.ndarray:
    """Values `x` [n_obs, n_vars] on the scale of the prepared modality `fitted`, back in raw units (float64).

    Under "log1p_cp10k" the unit is counts per ten thousand. What "minmax" clipped stays clipped.
    Raises ValueError where the modality is not prepared or the number of features differs.
    Introduced in notebook 01.
    """
    stored = _stored(fitted, "the modality")
    x = x.detach().cpu() if hasattr(x, "detach") else x
    x = np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)
    if x.shape[-1] != len(stored["features"]):
        raise ValueError(f"inverse: x has {x.shape[-1]} features, the modality has {len(stored['features'])}")
    values = x * stored["scale"] + stored["shift"]
    return np.expm1(values) if stored["scaler"] == "log1p_cp10k" else values


def encode_categories(mdata: MuData, columns: Sequence[str], modality: str = "annotation") -> MuData:
    """Add a binary modality made from columns of obs: a feature "column=category" per category seen on train.

    X is float32 [n_obs, n_categories]; a missing value is all zeros, an unseen category too, with a warning.
    The other modalities are shared with the input, not copied.
    Raises ValueError without a split, for unknown or empty columns, or where the modality exists.
    Introduced in notebook 01.
    """
    if modality in mdata.mod:
        raise ValueError(f"encode_categories: there is a modality '{modality}' already; choose another name")
    train = _is_train(mdata)
    pairs = []
    for column in [columns] if isinstance(columns, str) else dict.fromkeys(columns):
        found = sorted(set(_labels(column_of(mdata.obs, column))[train].dropna()))
        if not found:
            raise ValueError(f"encode_categories: column '{column}' has no value on the train split")
        pairs += [(column, category) for category in found]
    var = pd.DataFrame(pairs, columns=["column", "category"])
    var.index = var["column"] + "=" + var["category"]
    stored = {"scaler": "one_hot", "kind": "binary", "features": var.index.to_numpy(dtype=object)}
    stored |= {"shift": np.zeros(len(var)), "scale": np.ones(len(var)), "n_train": int(train.sum())}
    result = _assemble(mdata, {**mdata.mod, modality: _one_hot(mdata.obs, stored, var, modality)})
    if "modalities" in result.uns.get("dataset", {}):
        result.uns["dataset"]["modalities"][modality] = "binary"
    return result


def _one_hot(obs: pd.DataFrame, stored: Mapping, var: pd.DataFrame, modality: str) -> AnnData:
    x = np.zeros((len(obs), len(var)), dtype=np.float32)
    for column in var["column"].unique():
        labels, here = _labels(column_of(obs, column)), np.flatnonzero(var["column"] == column)
        code = pd.Index(var["category"].iloc[here].astype(str)).get_indexer(labels)
        unseen = sorted(set(labels[(code < 0) & labels.notna()]))
        if unseen:
            text = f"{len(unseen)} categories of '{column}' were not seen in the train split: {few(unseen)}"
            warnings.warn(f"{modality}: {text}", stacklevel=3)
        x[np.flatnonzero(code >= 0), here[code[code >= 0]]] = 1
    index = pd.DataFrame(index=obs.index.copy())
    return AnnData(x, obs=index, var=var.copy(), uns={"prepare": copy.deepcopy(dict(stored))})


def _labels(values: pd.Series) -> pd.Series:
    return values.astype(object).map(_as_text, na_action="ignore")


def _as_text(value) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if whole else value)  # a missing value had turned whole numbers into floats


def _is_encoded(adata: AnnData) -> bool:
    return adata.uns.get("prepare", {}).get("scaler") == "one_hot"


def _stored(adata: AnnData, name: str) -> Mapping:
    if "prepare" not in adata.uns:
        raise ValueError(f"{name} is not prepared; call prepare.fit_transform first")
    return adata.uns["prepare"]


def _kind(mdata: MuData, name: str) -> str:
    return mdata.uns.get("dataset", {}).get("modalities", {}).get(name, "continuous")


def _options_of(name: str, modalities: Sequence[str], options: Mapping) -> dict:
    """The options of one modality, checked."""
    known = {"select": list(SELECTORS), "scale": list(SCALERS), "nan": list(NAN_POLICIES)}
    chosen = {}
    for option, value in options.items():
        if isinstance(value, Mapping):
            if set(value) != set(modalities):
                raise ValueError(f"{option} is given for {few(value)}; the modalities are {few(modalities)}")
            value = value[name]
        if option in known and value not in known[option]:
            raise ValueError(f"{option}={value!r} for {name} is not one of {', '.join(known[option])}")
        chosen[option] = value
    n = chosen["n_features"]
    if n is not None and (not isinstance(n, int | np.integer) or n < 1):
        raise ValueError(f"n_features={n!r} for {name} must be a whole number above 0, or None for all")
    return chosen


def _is_train(mdata: MuData) -> np.ndarray:
    if "split" not in mdata.obs:
        raise ValueError("the data have no split; call prepare.split(mdata) first")
    return mdata.obs["split"].isin(["train"]).to_numpy()


def _train_rows(mdata: MuData, name: str) -> np.ndarray:
    rows = np.flatnonzero(mdata[name].obs_names.isin(mdata.obs_names[_is_train(mdata)]))
    if rows.size == 0:
        raise ValueError(f"{name}: none of its {mdata[name].n_obs} samples is in the train split")
    return rows


def _fit(mdata: MuData, name: str, select: str, n_features: int | None, scale: str, nan: str) -> dict:
    adata, rows = mdata[name], _train_rows(mdata, name)
    check_unique(adata.var_names, name, "feature")
    x = _matrix(adata, name)
    _check_values(x, adata.var_names, name, nan)
    x = x[rows]
    missing = count(x, np.isnan)
    keep = np.flatnonzero(missing == 0) if nan == "drop_features" else np.arange(adata.n_vars)
    fill = column_means(x, missing) if nan in ("mean", "drop_features") else np.zeros(adata.n_vars)
    total = library_size(x) if scale == "log1p_cp10k" else None
    x = _normalise(fill_gaps(x[:, keep], fill[keep]), total, name)
    if select != "none":
        varies = columnwise(x, lambda block: block.max(axis=0) != block.min(axis=0))
        _report_constant(varies, name)
        x, keep = x[:, varies], keep[varies]
    if keep.size == 0:
        raise ValueError(f"{name}: no feature is left that varies in its {rows.size} train samples")
    chosen = SELECTORS[select](x, n_features or keep.size)
    x, keep = x[:, chosen], keep[chosen]
    shift, width = columnwise(x, SCALERS[scale])
    return {
        "features": adata.var_names[keep].to_numpy(dtype=object),
        "select": select,
        "scaler": scale,
        "shift": shift,
        "scale": width,
        "clip": np.array([0.0, 1.0] if scale == "minmax" else [-np.inf, np.inf]),
        "nan": nan,
        "fill": fill[keep],
        "library": np.array(adata.var_names if total is not None else [], dtype=str),
        "n_train": int(rows.size),
        "kind": {"minmax": "unit", "none": _kind(mdata, name)}.get(scale, "continuous"),
    }


def _apply(adata: AnnData, stored: Mapping, name: str) -> AnnData:
    """A copy of `adata` with the features of `stored`, in that order, filled, normalised and scaled."""
    check_unique(adata.var_names, name, "feature")
    columns = adata.var_names.get_indexer(stored["features"])
    if (columns < 0).any():
        lost = [feature for feature, at in zip(stored["features"], columns, strict=True) if at < 0]
        raise ValueError(f"{name}: {len(lost)} of {len(columns)} fitted features are missing: {few(lost)}")
    total = _library(adata, stored, name) if len(stored["library"]) else None
    out = adata[:, columns].copy()
    x = _matrix(out, name)
    _check_values(x, out.var_names, name, stored["nan"])
    out.X = _scale(_normalise(fill_gaps(x, stored["fill"]), total, name), stored, name)
    out.uns["prepare"] = copy.deepcopy(dict(stored))
    return out


def _library(adata: AnnData, stored: Mapping, name: str) -> np.ndarray:
    """The library sizes [n_obs] over the features which the fitted data had."""
    x, columns = _matrix(adata, name), adata.var_names.get_indexer(stored["library"])
    lost = (columns < 0).sum()
    if lost:
        text = f"{name}: {lost} of {len(columns)} features of the library size are missing and count as 0"
        warnings.warn(text, stacklevel=4)
    columns = np.sort(columns[columns >= 0])
    return library_size(x if columns.size == adata.n_vars else x[:, columns])


def _matrix(adata: AnnData, name: str):
    if adata.X is None:
        raise ValueError(f"{name} has no X; put the values there")
    if "prepare" in adata.uns:
        raise ValueError(f"{name} is prepared already; start from the raw data")
    x = adata.X
    return x.tocsr().astype(np.float32, copy=False) if sparse.issparse(x) else np.asarray(x, dtype=np.float32)


def _check_values(x, features: pd.Index, name: str, nan: str) -> None:
    for what, test in (("infinite", np.isinf), ("missing (NaN)", np.isnan)):
        counts = count(x, test)
        if counts.any() and (what == "infinite" or nan == "error"):
            advice = "correct them" if what == "infinite" else "choose nan='drop_features', 'mean' or 'zero'"
            where = few(features[counts > 0])
            raise ValueError(f"{name}: {counts.sum()} values are {what}, in the features {where}; {advice}")


def _normalise(x, total: np.ndarray | None, name: str):
    if total is None:
        return x
    negative = int(count(x, lambda values: values < 0).sum())
    if negative:
        raise ValueError(f"{name}: {negative} values are below 0; scale='log1p_cp10k' needs counts")
    return log1p_cp10k(x, total)


def _scale(x, stored: Mapping, name: str):
    if sparse.issparse(x) and stored["scaler"] not in KEEPS_ZEROS:
        _check_dense_size(x.shape, name, stored["scaler"])
        x = x.toarray()
    return rescale(x, stored["shift"], stored["scale"], stored["clip"])


def _check_dense_size(shape: tuple[int, int], name: str, scaler: str) -> None:
    size = 4e-9 * shape[0] * shape[1]
    if size > MAX_DENSE_GB:
        what = f"scale='{scaler}' makes a dense matrix of {shape[0]} x {shape[1]}, {size:.1f} GB"
        advice = "choose fewer n_features, or 'maxabs' or 'log1p_cp10k', which stay sparse"
        raise MemoryError(f"{name}: {what}, more than prepare.MAX_DENSE_GB = {MAX_DENSE_GB:g}; {advice}")


def _report_constant(varies: np.ndarray, name: str) -> None:
    if not varies.all():
        text = f"{(~varies).sum()} of {varies.size} features are constant in the train split and are dropped"
        warnings.warn(f"{name}: {text}", stacklevel=4)


def _assemble(source: MuData, modalities: Mapping[str, AnnData]) -> MuData:
    """A MuData of `modalities` with the samples, in their order, and the annotation of `source`."""
    result = MuData(dict(modalities))
    if not result.obs_names.equals(source.obs_names):
        result = result[source.obs_names].copy()
    result.obs = source.obs.copy()
    for key, value in source.obsm.items():
        if key not in source.mod:  # those are masks which MuData makes itself
            result.obsm[key] = value.copy()
    for key, value in source.obsp.items():
        result.obsp[key] = value.copy()
    for key, value in source.uns.items():
        result.uns[key] = copy.deepcopy(value)
    return result
