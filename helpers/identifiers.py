"""What an ontology is made of: gene identifiers, tables child -> parent from files, and cut from a graph of terms."""

from __future__ import annotations

import csv
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import pandas as pd

from helpers import datasets, sources
from helpers.wording import closest, few

Table = pd.DataFrame  # columns child, parent (strings); a further column carried (bool) as `hierarchy` writes it
HEADERS = (
    "child",
    "parent",
    "feature",
    "gene",
    "symbol",
    "term",
    "pathway",
    "set",
    "geneset",
    "gene_set",
    "collection",
)
KINDS = ("symbol", "ensembl", "entrez")
CHROMOSOMES = (*map(str, range(1, 23)), "X", "Y", "MT")  # in the order in which they are drawn
COLUMNS = {
    "Gene stable ID": "ensembl",
    "HGNC symbol": "symbol",
    "NCBI gene (formerly Entrezgene) ID": "entrez",
    "Chromosome/scaffold name": "chromosome",
    "Karyotype band": "band",
    "Gene start (bp)": "start",
}
PATHWAY_NAMES = ("Reactome_TopLvl_hsa.txt", "reactome_pathways_names_2025_01_21.txt")
ENSEMBL = r"ENS[A-Z]*[GTP]\d{11}(?:\.\d+)?"


def gene_table(path: str | Path | None = None) -> pd.DataFrame:
    """Human genes [rows, 6]: ensembl, symbol, entrez, chromosome, band (such as "17q21.2"), start (base pairs).

    `path` is a BioMart export with the columns of `COLUMNS` (order free, further ones ignored); None takes Ensembl's
    GRCh38 table of the registry, downloaded on first use. A gene has one row for each combination of its identifiers,
    "" where it lacks one. Patches and alternative haplotypes are left out: chromosomes 1-22, X, Y, MT remain, in
    genomic order. Raises ValueError for a table without these columns. Introduced in notebook 03.
    """
    path = ontology_files("reactome")["genes_chromosomes.txt"] if path is None else Path(path)
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{path.name}: there is no column {few(missing)}; export these attributes from BioMart")
    table = table[list(COLUMNS)].rename(columns=COLUMNS)
    table = table[table["chromosome"].isin(CHROMOSOMES)].astype({"start": int})
    table["band"] = table["chromosome"] + table["band"]
    order = table["chromosome"].map(CHROMOSOMES.index)
    return table.assign(order=order).sort_values(["order", "start"], kind="stable", ignore_index=True)[[*table]]


def ontology_files(name: str) -> dict[str, Path]:
    """Paths of the files of an ontology of the registry by their names, downloaded where they are missing.

    Introduced in notebook 03.
    """
    return {path.name: path for path in sources.fetch(datasets.ontologies()[name].files)}


def normalised(names: Iterable, kind: str) -> pd.Index:
    """Names without blanks around them and, for Ensembl, without the version: "ENSG00000141510.18" -> without ".18".

    Introduced in notebook 03.
    """
    index = pd.Index(names).astype(str).str.strip()
    return index.str.replace(r"\.\d+$", "", regex=True) if kind == "ensembl" else index


def guess_ids(names: Iterable) -> str:
    """Which kind of identifier most of the names are: "ensembl", "entrez" (whole numbers), else "symbol".

    Raises ValueError where there are no names. Introduced in notebook 03.
    """
    text = pd.Series(list(names), dtype=str).str.strip()
    if text.empty:
        raise ValueError("no names are given, so that the kind of identifier cannot be guessed")
    if text.str.fullmatch(ENSEMBL).mean() > 0.5:
        return "ensembl"
    return "entrez" if text.str.fullmatch(r"\d+").mean() > 0.5 else "symbol"


def candidates(names: Iterable, source: str, target: str, genes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every identifier of kind `target` that belongs to a name: columns row (position in `names`), name, id.

    A name may have several or none. `genes` is as from `gene_table`. Raises ValueError for an unknown kind.
    Introduced in notebook 03.
    """
    check_kinds(source, target)
    index = normalised(names, source)
    given = pd.DataFrame({"row": range(len(index)), "name": index})
    if source == target:
        return given.assign(id=given["name"])
    genes = gene_table() if genes is None else genes
    pairs = pd.DataFrame({"name": normalised(genes[source], source), "id": normalised(genes[target], target)})
    pairs = pairs[(pairs["name"] != "") & (pairs["id"] != "")].drop_duplicates()
    return given.merge(pairs, on="name")


def map_ids(
    names: Iterable, source: str, target: str, genes: pd.DataFrame | None = None
) -> tuple[pd.Series, pd.DataFrame]:
    """From one kind of identifier (`KINDS`) to another: for each name one identifier, None where there is none.

    Versions of Ensembl identifiers are ignored. A name with several identifiers gets the lowest, which is the oldest
    entry: mostly the gene itself, where the others are read-through transcripts or copies. The report, a table with
    the columns n and names, has the rows "matched", "ambiguous" (matched, with several identifiers to choose from),
    "unmatched", and "shared" (matched, with an identifier that another name has got too). `genes` is as from
    `gene_table`, which is the default. Raises ValueError for an unknown kind. Introduced in notebook 03.
    """
    names = pd.Index(names).astype(str)
    found = candidates(names, source, target, genes)
    found = found.assign(length=found["id"].str.len()).sort_values(["row", "length", "id"])
    mapped = pd.Series(found.drop_duplicates("row").set_index("row")["id"].reindex(range(len(names))), dtype=object)
    mapped = mapped.where(mapped.notna(), None).set_axis(names).rename(target)
    several = names[sorted(found["row"][found["row"].duplicated()].unique())]
    groups = {
        "matched": names[mapped.notna()],
        "ambiguous": several,
        "unmatched": names[mapped.isna()],
        "shared": names[(mapped.notna() & mapped.duplicated(keep=False)).to_numpy()],
    }
    rows = {what: {"n": len(group), "names": tuple(group)} for what, group in groups.items()}
    return mapped, pd.DataFrame.from_dict(rows, orient="index")


def check_kinds(*kinds: str) -> None:
    """Raise ValueError for a kind of identifier that is not in `KINDS`. Introduced in notebook 03."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"'{kind}' is no kind of identifier{closest(kind, KINDS)}; known are {', '.join(KINDS)}")


def places(names: pd.Index, kind: str, genes: pd.DataFrame) -> pd.DataFrame:
    """Columns chromosome and cytoband of genes, indexed by their names as given; those not in `genes` are left out.

    Introduced in notebook 03.
    """
    check_kinds(kind)
    given = pd.DataFrame({"name": names, "id": normalised(names, kind)})
    table = genes.assign(id=normalised(genes[kind], kind))[["id", "chromosome", "band"]].drop_duplicates()
    return (
        given.merge(table, on="id").set_index("name").rename(columns={"band": "cytoband"})[["chromosome", "cytoband"]]
    )


def reactome_relation(files: Mapping[str, Path]) -> Table:
    """The human part of Reactome's hierarchy of pathways, by stable identifier. Introduced in notebook 03."""
    path, names = files["reactome_pathways_relation_2025_01_14.txt"], ["parent", "child"]
    graph = pd.read_csv(path, sep="\t", names=names, dtype=str)
    return graph[graph["child"].str.startswith("R-HSA-")][["child", "parent"]]


def reactome_names(files: Mapping[str, Path]) -> dict[str, str]:
    """Identifier -> readable name of human pathways, made unique by the identifier. Introduced in notebook 03."""
    table = {"sep": "\t", "dtype": str, "usecols": [0, 1], "names": ["id", "name"], "quoting": csv.QUOTE_NONE}
    parts = [pd.read_csv(files[file], **table) for file in PATHWAY_NAMES]
    known = pd.concat(parts).apply(lambda column: column.str.strip()).drop_duplicates("id")
    known = known[known["id"].str.startswith("R-HSA-")]
    several = known["name"].duplicated(keep=False)
    known["name"] = known["name"].where(~several, known["name"] + " (" + known["id"] + ")")
    return dict(zip(known["id"], known["name"], strict=True))


# ---------------------------------------------------------------- tables child -> parent


def read_tables(*paths: str | Path, header: bool | None = None) -> tuple[Table, ...]:
    """Tables for `build` from files of two columns, child and parent: .csv (comma), .tsv or .txt (tab).

    `header`: whether the first line names the columns; None: it does where both names are in `HEADERS` (child,
    parent, gene, term, ...). Columns named child and parent may stand in any order. Raises ValueError with the
    number of a damaged line, FileNotFoundError where a file is missing. Introduced in notebook 03.
    """
    return tuple(_read_table(Path(path), header) for path in paths)


def _read_table(path: Path, header: bool | None) -> Table:
    rows = []
    for number, cells in _lines(path, "," if path.suffix == ".csv" else "\t"):
        if len(cells) != 2 or not all(cells):
            raise ValueError(
                f"{path.name}, line {number}: {cells} is not a child and a parent; two columns are needed, "
                "parted by a comma in .csv, by a tab in .tsv and .txt"
            )
        rows.append(cells)
    columns = [cell.lower() for cell in rows[0]]
    if header or (header is None and all(column in HEADERS for column in columns)):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path.name} has no row below its header")
    swapped = columns == ["parent", "child"] and header is not False
    return pd.DataFrame(rows, columns=["parent", "child"] if swapped else ["child", "parent"])[["child", "parent"]]


def gmt(path: str | Path) -> Table:
    """Feature -> set from a GMT file (a set a line: name, description, features, parted by tabs), as of MSigDB.

    For a level above, give `build` a second table, set -> collection. Raises ValueError with the number of a line
    without a name or features, FileNotFoundError where the file is missing. Introduced in notebook 03.
    """
    path, rows = Path(path), []
    for number, (term, *rest) in _lines(path, "\t"):
        if not term or not any(rest[1:]):
            raise ValueError(
                f"{path.name}, line {number}: a set needs a name, a description and at least one feature, parted by "
                f"tabs; there is {few([term, *rest])}"
            )
        rows += [(feature, term) for feature in rest[1:] if feature]
    return pd.DataFrame(rows, columns=["child", "parent"])


def _lines(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Numbers and cells of the lines that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read as text in columns: {error}") from None
    if not (filled := [(number, cells) for number, cells in lines if any(cells)]):
        raise ValueError(f"{path.name} is empty")
    return filled


def checked(table: Table, k: int) -> Table:
    """Table number k + 1 with text in its cells, without blanks around them and without repeated rows.

    Raises ValueError where it is no table of children and parents, or has gaps. Introduced in notebook 03.
    """
    where = f"table {k + 1}"
    if not isinstance(table, pd.DataFrame) or not {"child", "parent"} <= set(table.columns):
        have = few(table.columns) if isinstance(table, pd.DataFrame) else type(table).__name__
        raise ValueError(f"{where} must be a table with the columns 'child' and 'parent', not {have}")
    if table.empty:
        raise ValueError(f"{where} has no row")
    text = table[["child", "parent"]].astype("string").apply(lambda column: column.str.strip()).fillna("")
    if (empty := (text == "").any(axis=1).to_numpy()).any():
        rows = few(table.index[empty])
        raise ValueError(f"{where} has {empty.sum()} rows without a child or a parent, at {rows}; remove them")
    text = text.astype(object).assign(carried=table["carried"].astype(bool) if "carried" in table else False)
    return text.drop_duplicates(["child", "parent"], ignore_index=True)


def check_acyclic(table: Table) -> None:
    """Raise ValueError that names a cycle, where following parents leads back to a term. Introduced in notebook 03."""
    inner = table[table["child"].isin(table["parent"])]
    try:
        graphlib.TopologicalSorter(inner.groupby("child")["parent"].agg(list).to_dict()).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(f"'{term}'" for term in reversed(error.args[1]))
        raise ValueError(f"the ontology has a cycle: {cycle}; a term cannot be its own ancestor") from None


# ---------------------------------------------------------------- from a whole graph of terms


def hierarchy(
    relation: Table, leaves: Table, top: Sequence[str] = (), depths: Sequence[int] = (1,)
) -> tuple[Table, ...]:
    """Tables for `build`, cut from a whole graph of terms (each may have several parents) at chosen depths.

    - `relation`: term -> parent, the graph; `leaves`: feature -> term, anywhere in it.
    - `top`: the latent terms, by default all without a parent, in the order of the table.
    - `depths`: of the lower levels, counted downwards from `top`: () for none, (1,) for the terms directly below,
      (2,) for those two steps below, (1, 2) for both. Everything below the last belongs to its ancestors there.

    A term is at every depth at which a path from `top` comes to it. Branches end at unequal depths: a term with
    features that are in none of its subterms is carried down as itself, so that they keep their way up; such rows,
    from a term to itself, are marked in the column `carried`. (A feature of both a term and one of its subterms is
    taken to be of the subterm.) What does not lie below `top` is left out, hence outside for `build`.

    Raises ValueError for cycles, terms of `leaves` or `top` that are not in `relation`, and depths at which no term
    with features lies. Introduced in notebook 03.
    """
    relation, leaves = checked(relation, 0), checked(leaves, 1)
    check_acyclic(relation)
    top = pd.Index(list(top) or relation["parent"][~relation["parent"].isin(relation["child"])]).unique()
    _check_graph(relation, leaves, top, depths)
    ancestors = _ancestors(leaves["parent"].unique(), relation)
    leaves = _most_specific(leaves, ancestors)
    here, carried, steps = top, pd.Index([], dtype=object), []
    for _ in range(max(depths, default=0)):
        carried = carried.union(here[here.isin(leaves["parent"])], sort=False)
        below = relation[relation["parent"].isin(here)][["child", "parent"]]
        steps.append(pd.concat([below, _itself(carried)]).drop_duplicates())
        here = pd.Index(below["child"].unique())
    placed = leaves.merge(ancestors[ancestors["parent"].isin(here)], left_on="parent", right_on="child")
    if placed.empty:
        raise ValueError(f"depths={tuple(depths)}: no term with features lies so deep below the top; choose less")
    lowest = placed[["child_x", "parent_y"]].set_axis(["child", "parent"], axis=1)
    lowest = pd.concat([lowest, leaves[leaves["parent"].isin(carried)][["child", "parent"]]])
    spans = [slice(above, below) for above, below in zip((0, *depths), depths, strict=False)]
    links = [reduce(_composed, reversed(steps[span])) for span in spans]
    return lowest, *(link.assign(carried=link["child"] == link["parent"]) for link in reversed(links))


def _check_graph(relation: Table, leaves: Table, top: pd.Index, depths: Sequence[int]) -> None:
    if list(depths) != sorted({int(depth) for depth in depths if depth >= 1}):
        raise ValueError(f"depths={tuple(depths)} must be whole numbers from 1 upwards, in rising order")
    known = pd.Index(relation["child"]).append(pd.Index(relation["parent"])).unique()
    if len(wrong := top.difference(known)):
        raise ValueError(f"top names {few(wrong)}, which the relation does not have{closest(wrong[0], known)}")
    if len(wrong := pd.Index(leaves["parent"].unique()).difference(known)):
        raise ValueError(f"features belong to {few(wrong)}, which the relation does not have; add or remove them")


def _itself(terms: Sequence[str]) -> Table:
    return pd.DataFrame({"child": terms, "parent": terms})


def _composed(lower: Table, upper: Table) -> Table:
    """child -> middle and middle -> parent to child -> parent."""
    both = lower.merge(upper, left_on="parent", right_on="child", suffixes=("", "_upper"))
    return both[["child", "parent_upper"]].set_axis(["child", "parent"], axis=1).drop_duplicates()


def _ancestors(terms: Sequence[str], relation: Table) -> Table:
    """Every term with itself and all its ancestors."""
    found = [_itself(terms)]
    while len(found[-1]):
        found.append(_composed(found[-1], relation))
    return pd.concat(found).drop_duplicates()


def _most_specific(leaves: Table, ancestors: Table) -> Table:
    """Without the rows that other rows of the same feature imply."""
    implied = _composed(leaves[["child", "parent"]], ancestors[ancestors["child"] != ancestors["parent"]])
    pairs = pd.MultiIndex.from_frame(leaves[["child", "parent"]])
    return leaves[~pairs.isin(pd.MultiIndex.from_frame(implied))]
