"""A user's own files: `.h5mu`, `.h5ad`, `.csv`, `.tsv`, `.parquet` and pictures become the parts of a data set."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
from anndata import AnnData

from helpers import pictures
from helpers.checks import Parts, part, parts_of
from helpers.pictures import Size
from helpers.sources import open_zipped, sha256_of
from helpers.wording import closest, few

FEATURE_TYPES = {  # as 10x Genomics and others name them -> modality
    "gene expression": "rna",
    "gex": "rna",
    "rna": "rna",
    "antibody capture": "protein",
    "adt": "protein",
    "prot": "protein",
    "protein expression": "protein",
    "peaks": "atac",
    "atac": "atac",
    "chromatin accessibility": "atac",
}
PICKLED = (".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".dill", ".cloudpickle")
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zip", ".tsv.zip", ".parquet")


def looks_like_path(text: str | Path) -> bool:
    """Whether a text is meant as a file rather than as a data set's name. Introduced in notebook 01."""
    path = Path(text)
    return not isinstance(text, str) or len(path.parts) > 1 or bool(path.suffix) or path.exists()


def read(source: str | Path | Mapping[str, str | Path], columns: tuple[str, ...], options: Mapping[str, Any]) -> Parts:
    """The parts of a file or a folder of pictures, or of several {modality: path}; `columns` of a table go to obs.

    Raises FileNotFoundError, or ValueError for formats that are not read and for damaged files.
    Introduced in notebook 01.
    """
    paths = [Path(path).expanduser() for path in (source.values() if isinstance(source, Mapping) else [source])]
    for path in paths:
        if not (path.is_dir() and (isinstance(source, Mapping) or any(map(pictures.is_picture, path.iterdir())))):
            _check_file(path)
    if isinstance(source, Mapping):
        reader, argument = from_tables, dict(zip(source, paths, strict=True))
        name = " + ".join(path.name for path in paths)
    else:
        reader, argument, name = _reader(paths[0]), paths[0], paths[0].name
    if reader in (from_tables, from_table):
        options = {"columns": columns, **options}
    parts = _call(reader, argument, options, name)
    if reader in (from_tables, from_table) and any(map(_has_pictures, parts.modalities.values())):
        return replace(parts, name=name)  # its sha256 will be that of the values, which many files make up
    return replace(parts, name=name, sha256=combined(map(sha256_of, paths)))


def combined(hashes: Iterable[str]) -> str:
    """One sha256 for several: itself where it is one, "" where there is none. Introduced in notebook 01."""
    hashes = list(hashes)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def _check_file(path: Path) -> None:
    if path.suffix.lower() in PICKLED:
        raise ValueError(
            f"{path} is a pickled file, which can run any code when it is opened, and is refused; save the data as "
            ".h5mu, .h5ad, .csv or .parquet"
        )
    if not path.is_file():
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"the file {path} {what}{closest(path.name, near)}")
    if _ending(path) not in (*TABLES, ".h5mu", ".h5ad"):
        known = ".h5mu, .h5ad, .csv, .tsv (also .gz, .zip), .parquet, and a folder of pictures"
        raise ValueError(f"{path} has the ending '{path.suffix}', which is not read; readable are {known}")


def _ending(path: Path) -> str:
    endings = [suffix.lower() for suffix in path.suffixes]
    return "".join(endings[-2:]) if endings and endings[-1] in (".gz", ".zip") else endings[-1] if endings else ""


def _reader(path: Path) -> Callable[..., Parts]:
    return {".h5mu": from_h5mu, ".h5ad": from_h5ad}.get(_ending(path), from_table)


def _call(reader: Callable[..., Parts], argument: Any, options: Mapping[str, Any], name: str) -> Parts:
    known = [option for option in list(inspect.signature(reader).parameters)[1:] if option != "columns"]
    if wrong := [option for option in options if option not in (*known, "columns")]:
        hint, there = closest(wrong[0], known), ", ".join(known) or "none"
        raise ValueError(f"{name} cannot be read with the option '{wrong[0]}'{hint}; its options are: {there}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")  # they are refused later, by name
        return reader(argument, **options)


def from_h5mu(path: Path, layer: str = "") -> Parts:
    """All modalities of a `.h5mu`, under the names used here (`adt` becomes `protein`, `gex` `rna`, `peaks` `atac`);
    columns that only a modality's obs has are lifted to the samples.

    Introduced in notebook 01.
    """
    mdata = _open(path, mudata.read_h5mu)
    parts = parts_of(mdata)
    modalities = {name: _clean(adata, layer) for name, adata in parts.modalities.items()}
    own = [column for column in parts.obs.columns if column.partition(":")[0] not in modalities]
    obs = _lifted(parts.obs[own], [adata.obs for adata in parts.modalities.values()])
    called: dict[str, str] = {}
    for name in modalities:
        known = FEATURE_TYPES.get(name.lower(), name)
        called[name] = name if known in modalities or known in called.values() else known
    kinds = {called[name]: kind for name, kind in parts.kinds.items()}
    return replace(parts, modalities={called[name]: x for name, x in modalities.items()}, obs=obs, kinds=kinds)


def _lifted(obs: pd.DataFrame, others: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """`obs` with the columns that only the modalities have; where one lacks a sample, the next may know it."""
    found: dict[str, pd.Series] = {}
    for other in others:
        for column in other.columns.difference(obs.columns) if other.index.is_unique else ():
            values = other[column].astype(object).reindex(obs.index)
            known = found.get(column, values)
            found[column] = known.where(known.notna(), values)
    typed = {name: values.infer_objects() for name, values in found.items()}
    return obs.assign(**{n: v.astype("category") if v.dtype == object else v for n, v in typed.items()})


def from_h5ad(path: Path, modality: str = "", layer: str = "") -> Parts:
    """A `.h5ad`: one modality called `modality`, else those that `var["feature_types"]` tells apart, else `rna`.

    Introduced in notebook 01.
    """
    adata = _open(path, anndata.read_h5ad)
    obsm = {key: np.asarray(value) for key, value in adata.obsm.items()}
    types = adata.var.get("feature_types", pd.Series(dtype=str)).astype(str).str.lower().map(FEATURE_TYPES)
    if modality or types.isna().any() or types.empty:
        modalities = {modality or "rna": _clean(adata, layer)}
    else:
        modalities = {name: _clean(adata[:, (types == name).to_numpy()], layer) for name in types.unique()}
    return Parts(modalities, adata.obs.copy(), path.name, obsm=obsm)


def from_table(
    path: Path,
    modality: str = "",
    obs: str | Path | None = None,
    columns: tuple[str, ...] = (),
    size: Size | None = None,
    channels: Sequence[int] | None = None,
) -> Parts:
    """One table, samples x features, as the modality `modality` (unless given "rna", or "image" for pictures).

    Introduced in notebook 01.
    """
    parts = from_tables({modality or "rna": path}, obs, columns, size, channels)
    if modality or not _has_pictures(parts.modalities["rna"]):
        return parts
    return replace(parts, modalities={"image": parts.modalities["rna"]})


def from_tables(
    paths: Mapping[str, Path],
    obs: str | Path | None = None,
    columns: tuple[str, ...] = (),
    size: Size | None = None,
    channels: Sequence[int] | None = None,
) -> Parts:
    """Tables {modality: path}, samples x features, matched by the sample names in their first columns.

    A folder of pictures may stand for a table (its file names are the samples'), and so may a list of pictures: a
    table with a column `path` of text, whose other columns are annotation. `size` and `channels` are for pictures,
    see `pictures.from_files`. `obs` is a table of annotation; `columns` in a data table are moved to the annotation.
    Introduced in notebook 01.
    """
    frames = {name: _frame(path) for name, path in paths.items()}
    names = pd.Index([]).append([frame.index for frame in frames.values()]).drop_duplicates()
    annotation = pd.DataFrame(index=names) if obs is None else _annotation(Path(obs).expanduser(), names, frames)
    modalities = {}
    for name, frame in frames.items():
        lists = _lists_pictures(frame, columns)
        moved = [c for c in frame.columns if c != "path"] if lists else columns
        for column in [c for c in moved if c in frame.columns and c not in annotation.columns]:
            annotation[column] = frame.pop(column)[lambda s: ~s.index.duplicated()].reindex(annotation.index)
        if lists:
            modalities[name] = pictures.from_files(pictures.listed(frame["path"], paths[name]), size, channels)
        else:
            modalities[name] = part(_numbers(frame, paths[name]), frame.index, frame.columns)
    if (size is not None or channels is not None) and not any(map(_has_pictures, modalities.values())):
        raise ValueError(f"size= and channels= are for pictures, and there are none in {few(paths.values())}")
    return Parts(modalities, annotation, "tables")


def _lists_pictures(frame: pd.DataFrame, columns: tuple[str, ...]) -> bool:
    """Whether a table has one column `path`, of text, that is not asked for as annotation."""
    there = "path" not in columns and list(frame.columns).count("path") == 1
    return there and not pd.api.types.is_numeric_dtype(frame["path"])


def _has_pictures(adata: AnnData) -> bool:
    return "image_shape" in adata.uns


def _annotation(path: Path, names: pd.Index, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    _check_file(path)
    obs = _frame(path)
    if not obs.index.is_unique:
        twice = obs.index[obs.index.duplicated()].unique()
        raise ValueError(f"{path} has {len(twice)} duplicate sample names: {few(twice)}; keep one row for each")
    if not obs.index.isin(names).any():
        turned = [name for name, frame in frames.items() if obs.index.isin(frame.columns).any()]
        hint = f"the columns of {few(turned)} have them: transpose the table" if turned else "use the same names"
        raise ValueError(
            f"{path} names no sample of the data (there '{obs.index[0]}', in the data '{names[0]}'); {hint}"
        )
    return obs.reindex(names)


def _frame(path: Path) -> pd.DataFrame:
    """A table with sample names as index; repeated column names stay as they are, to be reported.

    Of a folder of pictures, the table that would list them.
    """
    if path.is_dir():
        return pictures.in_folder(path.absolute()).to_frame("path")
    try:
        if _ending(path) == ".parquet":
            frame = pd.read_parquet(path)
            if (
                isinstance(frame.index, pd.RangeIndex)
                and len(frame.columns)
                and frame.dtypes.iloc[0].kind not in "fiub"
            ):
                frame = frame.set_index(frame.columns[0])
        else:
            frame = _delimited(path)
    except (ValueError, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {_short(error)}") from error
    frame.index, frame.columns = frame.index.astype(str), frame.columns.astype(str)
    return frame


def _delimited(path: Path) -> pd.DataFrame:
    separator = "\t" if ".tsv" in _ending(path) else ","

    def table(**how: Any) -> pd.DataFrame:
        if _ending(path).endswith(".zip"):
            with open_zipped(path) as file:
                return pd.read_csv(file, sep=separator, low_memory=False, **how)
        return pd.read_csv(path, sep=separator, low_memory=False, **how)

    frame, head = table(dtype={0: str}), table(header=None, nrows=1, dtype=str, index_col=0)
    if isinstance(frame.index, pd.RangeIndex):  # not the index itself, which pandas would turn 001 into 1 for
        frame = frame.set_index(frame.columns[0])
    frame.columns = head.iloc[0].to_numpy() if head.shape[1] == frame.shape[1] else frame.columns
    return frame


def _numbers(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """Values of a table [n_obs, n_vars] as float32; ValueError names what is not a number."""
    other = [i for i, kind in enumerate(frame.dtypes) if getattr(kind, "kind", "O") not in "fiub"]
    if other:
        values = frame.iloc[:, other[0]].dropna()
        bad = values[pd.to_numeric(values, errors="coerce").isna()]
        example = f" (for example '{bad.iloc[0]}')" if len(bad) else ""
        raise ValueError(
            f"{path}: {len(other)} columns are not numeric: {few(frame.columns[other])}{example}; keep annotation in a "
            "table of its own (obs=) or name it as label_key or batch_key"
        )
    return frame.to_numpy(np.float32)


def _clean(adata: AnnData, layer: str) -> AnnData:
    """A modality with X, var and its own uns; from `layer` instead of X where one is named."""
    if layer and layer not in adata.layers:
        hint = closest(layer, adata.layers)
        raise ValueError(f"there is no layer '{layer}'{hint}; there are {few(adata.layers) or 'no layers'}")
    x = adata.layers[layer] if layer else adata.X
    uns = {key: adata.uns[key] for key in ("image_shape", "prepare") if key in adata.uns}
    return AnnData(x, obs=pd.DataFrame(index=adata.obs_names), var=adata.var.copy(), uns=uns)


def _open(path: Path, reader: Callable[[Path], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old formats are read all the same, and repeated names are refused later
        try:
            return reader(path)
        except Exception as error:  # h5py, anndata and mudata raise a dozen kinds on damaged files
            raise ValueError(
                f"{path} cannot be read: the file is truncated, damaged or no {path.suffix} ({_short(error)}); copy it "
                "or download it again"
            ) from error


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
