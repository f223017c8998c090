"""Every data set under one roof: `load("sim-bulk")`, `load("tcga-brca")`, `load("my_study.h5mu")` give a MuData.

`python -m helpers.datasets` lists them, `... fetch NAME` downloads, `... check PATH` looks at a user's file.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mudata
from mudata import MuData

from helpers import (
    bundled,
    embryo,
    multiome,
    project,
    regulation,
    simulate,
    singlecell,
    sources,
    spatial,
    tables,
    tissue,
)
from helpers.checks import (
    Parts,
    assemble,
    kind_of,
    needs,
    notes,
    parts_of,
    problems,
    refuse,
    validate,
)
from helpers.sources import Remote
from helpers.wording import closest, few

mudata.set_options(pull_on_update=False)

HERE = Path(__file__).parent
__all__ = ["Entry", "fetch", "load", "registry", "validate"]


@dataclass(frozen=True)
class Entry:
    """What the registry knows about a data set. Introduced in notebook 01."""

    name: str
    source: str  # "embedded" (simulated here), "bundled" (with an installed library) or "download"
    about: str
    modalities: Mapping[str, str]  # modality -> kind
    label_key: str
    batch_key: str
    shape: str  # samples x features of each modality
    licence: str
    citation: str
    notebooks: tuple[str, ...]
    build: Callable[..., MuData | Parts]  # takes the files where there are any, and the options
    files: tuple[Remote, ...] = ()
    unpaired: bool = False  # its modalities share no samples, only classes

    @property
    def n_bytes(self) -> int:
        """Size of the download."""
        return sum(file.n_bytes for file in self.files)

    @property
    def options(self) -> list[str]:
        """Names of the options that `load` takes for this data set."""
        return [name for name in inspect.signature(self.build).parameters if name != "files"]


@dataclass(frozen=True)
class Tables:
    """What is known about an ontology's files, which `helpers.ontology` reads. Introduced in notebook 03."""

    name: str
    about: str
    shape: str  # genes, terms
    licence: str
    citation: str
    notebooks: tuple[str, ...]
    files: tuple[Remote, ...]
    source: str = "ontology"
    modalities: tuple[str, ...] = ()
    label_key: str = ""

    @property
    def n_bytes(self) -> int:
        """Size of the download."""
        return sum(file.n_bytes for file in self.files)


def load(
    name_or_path: str | Path | Mapping[str, str | Path],
    *,
    label_key: str = "",
    batch_key: str = "",
    modalities: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    allow_nan: bool = False,
    allow_unpaired: bool = False,
    **options: Any,
) -> MuData:
    """A data set of the registry by its name, or the user's own from a file, as a checked MuData.

    - `name_or_path`: a name that `registry()` knows; a path to `.h5mu`, `.h5ad`, `.csv`, `.tsv` (also `.gz`, `.zip`)
      or `.parquet` (samples x features, the first column names the samples); a folder of pictures, or a table with a
      column `path` that lists them; or {modality: path} for several tables or pictures.
    - `label_key`, `batch_key`: columns of obs; "" takes what the registry or the file says.
    - `modalities`: which to keep, in this order; none means all.
    - `kinds`: modality -> "continuous", "unit", "counts", "binary", "image" where the values do not tell.
    - `allow_nan`, `allow_unpaired`: see `validate`.
    - `options`: of the generator or parser (`n_obs=`, `seed=`, `keep_reporter=`); for files `modality=` (name for the
      one matrix), `layer=` (of AnnData, instead of X), `obs=` (table of annotation), `size=` and `channels=` (of
      pictures).

    X is float32, dense or CSR. `mdata.uns["dataset"]` holds name, sha256, label_key, batch_key and kinds.
    Raises ValueError or FileNotFoundError with one sentence on what is wrong; OSError where a download fails.
    Introduced in notebook 01.
    """
    parts = gather(name_or_path, tuple(filter(None, (label_key, batch_key))), options)
    parts = _choose(parts, label_key, batch_key, modalities, kinds or {})
    refuse(parts, allow_nan, allow_unpaired)
    return assemble(parts)


def gather(
    name_or_path: str | Path | Mapping[str, str | Path], columns: tuple[str, ...], options: Mapping[str, Any]
) -> Parts:
    """The parts of a data set, not yet checked; `columns` of a table are annotation. Introduced in notebook 01."""
    known = registry()
    if isinstance(name_or_path, str) and name_or_path in known:
        return _from_registry(known[name_or_path], options)
    if not isinstance(name_or_path, Mapping) and not tables.looks_like_path(name_or_path):
        raise ValueError(unknown(str(name_or_path)))
    return tables.read(name_or_path, columns, options)


def only(mdata: MuData, modalities: Sequence[str]) -> MuData:
    """The same samples with some of the modalities, whose matrices are shared and not copied.

    Raises ValueError for an unknown modality. Introduced in notebook 02.
    """
    if wrong := [m for m in modalities if m not in mdata.mod]:
        raise ValueError(f"there is no modality '{wrong[0]}'{closest(wrong[0], mdata.mod)}; there are {few(mdata.mod)}")
    part = MuData({m: mdata[m] for m in modalities})
    names = mdata.obs_names[mdata.obs_names.isin(part.obs_names)]
    part = part if part.obs_names.equals(names) else part[names].copy()
    part.obs = mdata.obs.loc[names].copy()
    part.uns.update(mdata.uns)
    rows = mdata.obs_names.get_indexer(names)
    part.obsm.update({key: value[rows] for key, value in mdata.obsm.items() if key not in mdata.mod})
    return part


def fetch(name: str) -> list[Path]:
    """Download what is missing of the files of a data set or ontology; their paths. Introduced in notebook 01."""
    if name not in _all():
        raise ValueError(unknown(name))
    return sources.fetch((*_all()[name].files, *singlecell.lacking(name)))


def unknown(name: str) -> str:
    """The sentence for a name that no data set has. Introduced in notebook 01."""
    known = registry()
    if name in ontologies():
        return f"'{name}' is an ontology and no data set; helpers.ontology builds it for the features of your data"
    paths = "or give a path to a .h5mu, .h5ad, .csv, .tsv or .parquet file"
    return f"there is no data set '{name}'{closest(name, known)}; known are {', '.join(known)}; {paths}"


def _from_registry(entry: Entry, options: Mapping[str, Any]) -> Parts:
    if wrong := [name for name in options if name not in entry.options]:
        known = ", ".join(entry.options) or "none"
        hint = closest(wrong[0], entry.options)
        raise ValueError(f"data set '{entry.name}' has no option '{wrong[0]}'{hint}; its options are: {known}")
    if entry.files:
        paths = {path.name: path for path in sources.fetch(entry.files)}
        parts = entry.build(paths, **options)
    else:
        built = entry.build(**options)
        parts = parts_of(built) if isinstance(built, MuData) else built
    keys = {"label_key": entry.label_key, "batch_key": entry.batch_key}
    sha256 = tables.combined(file.sha256 for file in entry.files)
    return replace(parts, name=entry.name, kinds=dict(entry.modalities), sha256=sha256, unpaired=entry.unpaired, **keys)


def _choose(parts: Parts, label_key: str, batch_key: str, modalities: Sequence[str], kinds: Mapping[str, str]) -> Parts:
    """The wanted modalities and their samples; what is given by the caller stands before what the source says."""
    modalities = [modalities] if isinstance(modalities, str) else list(modalities) or list(parts.modalities)
    for what, names in (("modalities", modalities), ("kinds", kinds)):
        if wrong := [name for name in names if name not in parts.modalities]:
            hint = closest(wrong[0], parts.modalities)
            raise ValueError(f"{parts.name}: {what} names {few(wrong)}{hint}; there are {few(parts.modalities)}")
    chosen = {name: parts.modalities[name] for name in modalities}
    keys = {"label_key": label_key or parts.label_key, "batch_key": batch_key or parts.batch_key}
    return replace(parts, modalities=chosen, kinds={**parts.kinds, **kinds}, **keys)


BUILDERS: dict[str, Callable[..., MuData | Parts]] = {
    "sim-bulk": simulate.bulk,
    "sim-embryo": embryo.embryo,
    "sim-regulation": regulation.network,
    "sim-multiome": multiome.multiome,
    "sim-spatial": tissue.tissue,
    "digits": bundled.digits,
    "bulk-digits": bundled.bulk_digits,
    "pbmc68k-reduced": bundled.pbmc68k_reduced,
    "celegans": sources.celegans,
    "tcga-brca": sources.tcga_brca,
    "tcga-gbmlgg": sources.tcga_cohort,
    "tcga-coadread": sources.tcga_cohort,
    "tcga-breast": sources.tcga_breast,
    "mnist": sources.mnist,
    "brca-mnist": bundled.brca_mnist,
    "mop-snare": singlecell.mop_snare,
    "pbmc-citeseq": singlecell.pbmc_citeseq,
    "pbmc-mosaic": singlecell.pbmc_mosaic,
    "fashion-mnist": singlecell.fashion_mnist,
    "lymphnode-spatial": spatial.lymph_node,
}


@functools.cache
def registry() -> dict[str, Entry]:
    """All data sets by name, as written in `registry.toml`. Introduced in notebook 01."""
    described = tomllib.loads(HERE.joinpath("registry.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, fields) for name, fields in described.items()}


@functools.cache
def ontologies() -> dict[str, Tables]:
    """All ontologies by name, as written in `ontologies.toml`. Introduced in notebook 03."""
    described = tomllib.loads(HERE.joinpath("ontologies.toml").read_text(encoding="utf-8"))
    return {name: Tables(name=name, files=_remotes(fields), **fields) for name, fields in described.items()}


def _all() -> dict[str, Entry | Tables]:
    return registry() | ontologies()


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    files = _remotes(fields)
    fields["notebooks"] = tuple(fields["notebooks"])
    return Entry(name=name, build=BUILDERS[name], files=files, **{"label_key": "", "batch_key": ""} | fields)


def _remotes(fields: dict[str, Any]) -> tuple[Remote, ...]:
    """The files of an entry, taken out of its `fields`."""
    folder, upstream = fields.pop("folder", ""), fields.pop("hashes_upstream", "")
    listed = [({"folder": folder} | file).values() for file in fields.pop("files", [])]
    if hashes := fields.pop("hashes", ""):  # many files, in the format of sha256sum
        lines = HERE.joinpath(hashes).read_text(encoding="utf-8").splitlines()
        size = fields.pop("hashes_bytes")
        listed += [(folder, upstream, file, sha256, size) for sha256, file in map(str.split, lines)]
    return tuple(
        Remote(f"{folder}/{file}", f"https://raw.githubusercontent.com/{upstream}/{file}", sha256, n_bytes)
        for folder, upstream, file, sha256, n_bytes in listed
    )


def listing() -> str:
    """The registry as a table in plain text. Introduced in notebook 01."""
    head = ("name", "source", "samples x features", "modalities", "label", "notebooks", "licence", "download")
    rows = [head, *(_row(entry) for entry in _all().values())]
    width = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", f"data folder: {project.data_dir()}"])


def _row(entry: Entry | Tables) -> tuple[str, ...]:
    here = all((project.data_dir() / file.path).is_file() for file in entry.files)
    state = f"{entry.n_bytes / 1e6:.1f} MB, {'here' if here else 'not here'}" if entry.files else "-"
    books, modalities = " ".join(entry.notebooks), " ".join(entry.modalities)
    return (entry.name, entry.source, entry.shape, modalities, entry.label_key, books, entry.licence, state)


def report(parts: Parts) -> tuple[str, bool]:
    """What is in a data set, what is wrong with it, and what each notebook needs; and whether it is sound.

    Introduced in notebook 01.
    """
    wrong, known = problems(parts), notes(parts)
    lines = [f"{parts.name}: {len(parts.obs)} samples, {len(parts.modalities)} modalities", ""]
    for name, adata in parts.modalities.items():
        lines.append(f"  {name}: {adata.n_obs} samples x {adata.n_vars} features, kind {kind_of(parts, name)}")
    lines.append(f"  columns of obs: {few(parts.obs.columns) or 'none'}")
    for what, key in (("label", parts.label_key), ("batch", parts.batch_key)):
        if key in parts.obs:
            lines.append(f"  {what} column '{key}': {few(parts.obs[key].dropna().unique())}")
    lines += ["", "Problems" if wrong else "No problems found.", *(f"  - {text}" for text in wrong)]
    lines += ["", "Worth knowing", *(f"  - {text}" for text in known)] if known else []
    lines += ["", "Notebooks"]
    for notebook, missing in needs(parts).items():
        lines.append(f"  {notebook:<28} {'ready' if not missing else 'needs ' + '; '.join(missing)}")
    lines += ["", "Correct the problems first; no notebook will load the data before."] if wrong else []
    return "\n".join(lines), not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where all is well, 1 where data are wrong or do not arrive, 2 for a wrong call.

    Introduced in notebook 01.
    """
    args = _parser().parse_args(arguments)
    try:
        if args.command == "fetch":
            return _fetch_all(args.names)
        if args.command == "check":
            return _check(args)
        print(listing())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers.datasets", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="all data sets and ontologies (the default)")
    get = commands.add_parser("fetch", help="download data sets or ontologies into the data folder")
    get.add_argument("names", nargs="+", metavar="NAME")
    check = commands.add_parser("check", help="what is in a file, what is wrong with it, which notebooks can use it")
    check.add_argument("path", nargs="+", help="a file or folder of pictures, or several as modality=path")
    check.add_argument("--label-key", default="", help="column of obs with the classes")
    check.add_argument("--batch-key", default="", help="column of obs with the batches")
    check.add_argument("--modality", default="", help="name of the one matrix of an .h5ad file or a table")
    check.add_argument("--obs", default="", help="table of annotation for .csv, .tsv and .parquet")
    check.add_argument("--layer", default="", help="layer of AnnData to take instead of X")
    check.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="resize pictures to this")
    check.add_argument("--channels", type=int, action="append", help="a channel of pictures to keep (may be repeated)")
    return parser


FILE_OPTIONS = ("modality", "obs", "layer", "size", "channels")


def _fetch_all(names: Iterable[str]) -> int:
    for name in names:
        if name not in _all():
            print(f"error: {unknown(name)}", file=sys.stderr)
            return 2
    for name in names:
        files = fetch(name)
        print(f"{name}: {len(files)} files in {project.data_dir()}" if files else f"{name}: needs no download")
    return 0


def _check(args: argparse.Namespace) -> int:
    pairs = [text.partition("=") for text in args.path]
    source = {name: path for name, _, path in pairs} if all(path for _, _, path in pairs) else args.path[0]
    if len(args.path) > 1 and not isinstance(source, dict):
        print("error: give several tables as modality=path modality=path", file=sys.stderr)
        return 2
    options = {name: getattr(args, name) for name in FILE_OPTIONS if getattr(args, name)}
    parts = gather(source, tuple(filter(None, (args.label_key, args.batch_key))), options)
    text, sound = report(_choose(parts, args.label_key, args.batch_key, (), {}))
    print(text)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
