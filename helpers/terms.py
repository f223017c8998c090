"""An ontology by its name: what a notebook's parameter says becomes terms for the data at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mudata import MuData

from helpers import ontology, project
from helpers.identifiers import guess_ids
from helpers.ontology import Ontology
from helpers.wording import closest, few

NAMED: dict[str, Callable[..., tuple[MuData, Ontology]]] = {
    "planted": ontology.planted,
    "chromosomes": ontology.chromosomes,
    "reactome": ontology.reactome,
}


def by_name(mdata: MuData, name: str = "auto", outside: str = "drop", min_size: int = 1) -> tuple[MuData, Ontology]:
    """The ontology called `name`, built for the features of `mdata`; see `ontology.build` for the rest.

    - "planted": the terms that `var["pathways"]` names; "chromosomes"; "reactome", the 29 top pathways of human genes.
    - a path: a `.gmt` file, or a table child -> parent (`.tsv`, `.csv`, `.txt`); further levels after a ";":
      "genes_to_pathways.tsv;pathways_to_groups.tsv". Paths count from the project's root.
    - "auto": planted where the data bring pathways along, else reactome.

    Raises ValueError for an unknown name, and as `ontology.build` does. Introduced in notebook 02.
    """
    if name == "auto":
        name = "planted" if any("pathways" in adata.var for adata in mdata.mod.values()) else "reactome"
    if name in NAMED:
        return _named(mdata, name)(mdata, outside=outside, min_size=min_size)
    paths = [project.ROOT / part.strip() for part in name.split(";")]
    if missing := [path for path in paths if not path.is_file()]:
        known = ["auto", *NAMED]
        raise ValueError(
            f"no ontology '{name}'{closest(name, known)}; known are {few(known)}, and no file {missing[0]}"
        )
    return ontology.build(mdata, *_tables(paths), name=paths[0].stem, outside=outside, min_size=min_size)


def _named(mdata: MuData, name: str) -> Callable[..., tuple[MuData, Ontology]]:
    if name != "reactome":
        return NAMED[name]
    return partial(NAMED[name], ids={m: guess_ids(adata.var_names) for m, adata in mdata.mod.items()})


def _tables(paths: list[Path]) -> tuple[ontology.Table, ...]:
    first = ontology.gmt(paths[0]) if paths[0].suffix == ".gmt" else ontology.read_tables(paths[0])[0]
    return (first, *ontology.read_tables(*paths[1:])) if paths[1:] else (first,)
