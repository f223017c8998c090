"""Terms above features: tables child -> parent become the masks that a decoder follows, at any depth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from mudata import MuData

from helpers import identifiers
from helpers.identifiers import (
    CHROMOSOMES,
    Table,
    check_acyclic,
    checked,
    gmt,
    guess_ids,
    hierarchy,
    map_ids,
    read_tables,
)
from helpers.wording import closest, few

__all__ = [
    "Ontology", "Table", "build", "chromosomes", "gmt", "guess_ids", "hierarchy", "map_ids", "planted", "reactome",
    "read_tables",
]  # fmt: skip
OUTSIDE = ("drop", "keep", "bucket")


@dataclass(frozen=True, eq=False)
class Ontology:
    """Terms in levels, and which features of which modality belong to them. Introduced in notebook 03."""

    name: str
    terms: tuple[tuple[str, ...], ...]  # names per level, from the latent level (the most general) downwards
    links: tuple[np.ndarray, ...]  # links[i]: bool [len(terms[i + 1]), len(terms[i])]
    features: dict[str, tuple[str, ...]]  # modality -> var_names in the order of the data
    members: dict[str, np.ndarray]  # modality -> bool [n_vars, len(terms[-1])]
    report: pd.DataFrame  # per modality and in total: what was matched and what was lost, counts and names

    @property
    def latent_names(self) -> tuple[str, ...]:
        """Names of the most general terms, which are the latent dimensions."""
        return self.terms[0]

    def reach(self, modality: str) -> np.ndarray:
        """Which features the most general terms reach through all levels: bool [n_vars, n_latent]."""
        return reduce(_through, reversed(self.links), self.members[modality])

    def sizes(self) -> pd.Series:
        """Number of features that each of the most general terms reaches, summed over modalities."""
        counts = sum(self.reach(modality).sum(0) for modality in self.members)
        return pd.Series(counts, index=pd.Index(self.latent_names), name="features")


def _through(lower: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Reach [n, n_lower], [n_lower, n_upper] -> [n, n_upper]; float32 counts exactly up to 16 million paths."""
    return lower.astype(np.float32) @ link.astype(np.float32) > 0


def build(
    mdata: MuData,
    *tables: Table,
    name: str = "",
    outside: str = "drop",
    bucket: str = "outside",
    ids: str | Mapping[str, str] | None = None,
    min_size: int = 1,
    genes: pd.DataFrame | None = None,
) -> tuple[MuData, Ontology]:
    """The ontology that `tables` describe for the features of `mdata`, and the data that fit it.

    - `tables`: the first maps features to the lowest terms, each further one those terms to the next level; the
      parents of the last are the latent terms. Names are matched in every modality, which may share them. Duplicated
      rows and rows on features that the data do not have are harmless.
    - `outside`: features that no term reaches are left out of a copy of the data ("drop"); or stay without a term,
      so that a decoder has only their bias ("keep"); or belong to one further term called `bucket`, which has a
      chain of its own up to the latent level ("bucket").
    - `ids`: None matches names as they are. Else the kind of identifier that the data have ("symbol", "ensembl",
      "entrez"; or modality -> kind): they are translated to the kind of the first table with `genes` (by default
      `identifiers.gene_table()`); a name with several translations belongs to the terms of all of them.
    - `min_size`: lowest terms with fewer features, summed over modalities, are left out, as are terms above which
      then reach nothing; the report counts and names them. Their features may become features outside.

    Build it from prepared data (after `prepare.fit_transform`), so that the features are those of the model.
    Raises ValueError where no feature is matched, in any modality or (under "drop") in one; for terms without a
    parent in the next table, a table that does not continue the one below, cycles, and empty or damaged tables.
    Introduced in notebook 03.
    """
    _check_choice(mdata, tables, outside, ids, min_size)
    tables = tuple(checked(table, k) for k, table in enumerate(tables))
    features = {m: adata.var_names.astype(str) for m, adata in mdata.mod.items()}
    kinds = {m: ids.get(m) if isinstance(ids, Mapping) else ids for m in features}
    _check_cycles(tables, features)
    levels, links = _levels(tables)
    found, lost = _matches(features, tables[0], kinds, genes)
    if all(rows.empty for rows in found.values()):
        raise ValueError(_nothing_matches(features, tables[0]["child"], kinds))
    members = {m: _mask(found[m]["row"], found[m]["parent"], len(names), levels[0]) for m, names in features.items()}
    levels, links, members, left_out = _pruned(levels, links, members, min_size)
    report = _report(features, members, levels[0], lost, left_out)
    if outside == "drop":
        mdata, members = _without_outside(mdata, members)
        features = {m: adata.var_names for m, adata in mdata.mod.items()}
    if outside == "bucket":
        levels, links, members = _with_bucket(levels, links, members, bucket)
    return mdata, Ontology(
        name,
        tuple(tuple(level) for level in reversed(levels)),
        tuple(reversed(links)),
        {m: tuple(names) for m, names in features.items()},
        members,
        report,
    )


# ---------------------------------------------------------------- checks


def _check_choice(mdata: MuData, tables: Sequence, outside: str, ids, min_size: int) -> None:
    if not tables:
        raise ValueError("no table is given; the first maps features to terms, each further one terms to their parents")
    if outside not in OUTSIDE:
        raise ValueError(f"outside='{outside}' is not one of {', '.join(OUTSIDE)}{closest(outside, OUTSIDE)}")
    if min_size < 1:
        raise ValueError(f"min_size={min_size} must be at least 1; a term without a feature cannot be learned")
    if isinstance(ids, Mapping) and (wrong := [m for m in ids if m not in mdata.mod]):
        raise ValueError(f"ids names {few(wrong)}{closest(wrong[0], mdata.mod)}; the modalities are {few(mdata.mod)}")
    identifiers.check_kinds(*filter(None, ids.values() if isinstance(ids, Mapping) else [ids]))


def _check_cycles(tables: Sequence[Table], features: Mapping[str, pd.Index]) -> None:
    """Raise where a term is its own ancestor. A feature may be named as a term, as a regulator and its targets are."""
    measured = tables[0]["child"].isin(pd.Index([]).append(list(features.values())))
    edges = pd.concat([tables[0][~measured], *tables[1:]])
    check_acyclic(edges[~edges["carried"]])


def _nothing_matches(features: Mapping[str, pd.Index], children: pd.Series, kinds: Mapping[str, str | None]) -> str:
    """The sentence for names that do not meet: what both sides look like, and what would help."""
    names = pd.Index([]).append(list(features.values())).unique()
    if names.empty:
        return "the data have no feature"
    ours, theirs, given = guess_ids(names), guess_ids(children), next(iter(kinds.values()))
    if (given is None and ours != theirs) or (given is not None and given != ours):
        advice = f"the data have {ours} identifiers: give ids='{ours}'"
    elif names.str.upper().isin(children.str.upper()).any():
        advice = "they differ in upper and lower case only: is the ontology one of another species?"
    else:
        advice = "is the ontology one of another species, or are its columns swapped (child first, then parent)?"
    return (
        f"no feature of the data is in the ontology: features are {few(names)} ({ours}), "
        f"the first table names {few(children.unique())} ({theirs}); {advice}"
    )


# ---------------------------------------------------------------- tables to masks


def _levels(tables: Sequence[Table]) -> tuple[list[pd.Index], list[np.ndarray]]:
    """Terms per level, lowest first, in the order in which tables name them, and the links [n_lower, n_upper]."""
    levels = [pd.Index(table["parent"].unique()) for table in tables]
    links = []
    for k, (lower, upper, table) in enumerate(zip(levels, levels[1:], tables[1:], strict=False)):
        inside = table[table["child"].isin(lower)]
        if inside.empty:
            children, parents = few(table["child"].unique()), few(lower)
            raise ValueError(
                f"table {k + 2} does not continue table {k + 1}: its children are {children}, but the terms below are "
                f"{parents}; give the tables from the features upwards"
            )
        link = _mask(lower.get_indexer(inside["child"]), inside["parent"], len(lower), upper)
        if len(orphans := lower[~link.any(1)]):
            raise ValueError(
                f"{len(orphans)} terms of table {k + 1} have no parent in table {k + 2}: {few(orphans)}; "
                "add them as children there, or remove them below"
            )
        links.append(link)
    return levels, links


def _mask(rows: Sequence[int], terms: pd.Series, n: int, level: pd.Index) -> np.ndarray:
    """bool [n, len(level)], true at (row, term)."""
    mask = np.zeros((n, len(level)), dtype=bool)
    mask[np.asarray(rows), level.get_indexer(terms)] = True
    return mask


def _matches(
    features: Mapping[str, pd.Index], table: Table, kinds: Mapping[str, str | None], genes: pd.DataFrame | None
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, tuple]]]:
    """Per modality the pairs row, parent, and the features that translation lost or found ambiguous."""
    target = guess_ids(table["child"])
    if genes is None and any(kind not in (None, target) for kind in kinds.values()):
        genes = identifiers.gene_table()
    found, lost = {}, {}
    for m, names in features.items():
        if kinds[m] is None:
            ids = pd.DataFrame({"row": range(len(names)), "id": names.str.strip()})
        else:
            ids = identifiers.candidates(names, kinds[m], target, genes)
        children = identifiers.normalised(table["child"], target if kinds[m] else "symbol")
        found[m] = ids.merge(table.assign(id=children), on="id")[["row", "parent"]]
        several = ids["row"][ids["row"].duplicated()].unique()
        lost[m] = {"unmapped": tuple(names.delete(ids["row"].unique())), "ambiguous": tuple(names[several])}
    return found, lost


def _pruned(
    levels: list[pd.Index], links: list[np.ndarray], members: dict[str, np.ndarray], min_size: int
) -> tuple[list[pd.Index], list[np.ndarray], dict[str, np.ndarray], dict[str, tuple]]:
    """Without terms that reach nothing or too little, and these: {"without_feature": names, "too_small": names}."""
    reached = np.concatenate(list(members.values()))
    keep, left_out = [reached.sum(0) >= min_size], {"without_feature": [], "too_small": []}
    if not keep[0].any():
        raise ValueError(f"min_size={min_size} leaves no term: the largest has {reached.sum(0).max()} features")
    for k, level in enumerate(levels):
        if k:
            reached = _through(reached, links[k - 1])
            keep.append(links[k - 1][keep[-1]].any(0))
        left_out["without_feature"] += level[~keep[k] & ~reached.any(0)].tolist()
        left_out["too_small"] += level[~keep[k] & reached.any(0)].tolist()
    links = [link[np.ix_(lower, upper)] for link, lower, upper in zip(links, keep, keep[1:], strict=False)]
    members = {m: mask[:, keep[0]] for m, mask in members.items()}
    levels = [level[kept] for level, kept in zip(levels, keep, strict=True)]
    return levels, links, members, {why: tuple(dict.fromkeys(names)) for why, names in left_out.items()}


def _report(
    features: Mapping[str, pd.Index],
    members: Mapping[str, np.ndarray],
    lowest: pd.Index,
    lost: Mapping[str, Mapping[str, tuple]],
    left_out: Mapping[str, tuple],
) -> pd.DataFrame:
    """Counts and names per modality, and in total; the terms of the row "total" are not in the ontology."""
    rows = {}
    for m, mask in members.items():
        names = {"outside": tuple(features[m][~mask.any(1)]), **lost[m]}
        names |= {"terms_without_feature": tuple(lowest[~mask.any(0)]), "terms_too_small": ()}
        rows[m] = {"n_features": len(mask), "n_matched": int(mask.any(1).sum())}
        rows[m] |= {f"n_{what}": len(group) for what, group in names.items()} | names
    counts = [column for column in rows[m] if column.startswith("n_")]
    total = {column: sum(row[column] for row in rows.values()) for column in counts}
    total |= {what: sum((row[what] for row in rows.values()), ()) for what in names}
    for why, group in left_out.items():
        total |= {f"n_terms_{why}": len(group), f"terms_{why}": group}
    return pd.DataFrame.from_dict(rows | {"total": total}, orient="index")


def _without_outside(mdata: MuData, members: dict[str, np.ndarray]) -> tuple[MuData, dict[str, np.ndarray]]:
    """A copy of the data with the features that have a term; what `prepare` keeps of them goes along."""
    inside = {m: mask.any(1) for m, mask in members.items()}
    if empty := [m for m, kept in inside.items() if not kept.any()]:
        raise ValueError(
            f"no feature of {few(empty)} is in the ontology: leave {'it' if len(empty) == 1 else 'them'} out "
            "(the modalities of datasets.load), or choose outside='keep' or 'bucket'"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")  # modalities may share names
        mdata = mdata[:, np.concatenate(list(inside.values()))].copy()
    for m, adata in mdata.mod.items():
        if stored := adata.uns.get("prepare"):
            per_feature = {"features", "shift", "scale", "fill"} & set(stored)
            adata.uns["prepare"] = {**stored, **{key: stored[key][inside[m]] for key in per_feature}}
    return mdata, {m: mask[inside[m]] for m, mask in members.items()}


def _with_bucket(
    levels: list[pd.Index], links: list[np.ndarray], members: dict[str, np.ndarray], bucket: str
) -> tuple[list[pd.Index], list[np.ndarray], dict[str, np.ndarray]]:
    """One further term at every level, with a chain of its own, for the features outside, where there are any."""
    if any(bucket in level for level in levels):
        raise ValueError(f"the ontology has a term '{bucket}' already; choose another name with bucket=")
    outside = {m: ~mask.any(1) for m, mask in members.items()}
    if not any(mask.any() for mask in outside.values()):
        return levels, links, members
    levels = [level.append(pd.Index([bucket])) for level in levels]
    links = [np.pad(link, ((0, 1), (0, 1))) for link in links]
    for link in links:
        link[-1, -1] = True
    return levels, links, {m: np.column_stack([mask, outside[m]]) for m, mask in members.items()}


# ---------------------------------------------------------------- ontologies


def reactome(
    mdata: MuData,
    levels: int | Sequence[int] = 1,
    outside: str = "drop",
    ids: str | Mapping[str, str] | None = "symbol",
    min_size: int = 1,
    genes: pd.DataFrame | None = None,
) -> tuple[MuData, Ontology]:
    """Human Reactome pathways: 29 latent terms such as "Cell Cycle", for genes named as `ids` says (see `build`).

    `levels`: 1, genes -> top terms; 2, genes -> 638 pathways -> top terms, as AUTOENCODIX ships them (one and two
    steps below the top, beside each other); 3, genes -> pathways two steps below -> one step below -> top terms. Or
    the depths of the lower levels as for `hierarchy`: (1,), (2,) or (1, 2), the last the same as 3. The tables know
    genes down to two steps. Names that several pathways share have their identifier added.
    The tables come from the registry, downloaded on first use. Raises ValueError as `build` does and for unknown
    levels. Introduced in notebook 03.
    """
    files = identifiers.ontology_files("reactome")
    leaves, to_top = read_tables(files["full_ont_lvl1_reactome.txt"], files["full_ont_lvl2_reactome.txt"], header=False)
    if levels == 1:
        tables = hierarchy(to_top, leaves, depths=())
    elif levels == 2:
        tables = leaves, to_top
    else:
        depths = {3: (1, 2)}.get(levels, levels) if isinstance(levels, int) else tuple(levels)
        if depths not in ((1,), (2,), (1, 2)):
            raise ValueError(f"levels={levels} is not 1, 2 or 3, nor the depths (1,), (2,) or (1, 2)")
        relation = identifiers.reactome_relation(files)
        retired = to_top[~to_top["child"].isin(relation["child"])]  # pathways that the newer hierarchy has no longer
        tables = hierarchy(pd.concat([relation, retired]), leaves, depths=depths)
    named = _named(tables, identifiers.reactome_names(files))
    named[-1] = named[-1].sort_values("parent", kind="stable")
    return build(mdata, *named, name="reactome", outside=outside, ids=ids, min_size=min_size, genes=genes)


def _named(tables: Sequence[Table], names: Mapping[str, str]) -> list[Table]:
    """The tables with readable names for terms that have one."""
    named = [table.assign(parent=table["parent"].map(lambda term: names.get(term, term))) for table in tables]
    upper = [table.assign(child=table["child"].map(lambda term: names.get(term, term))) for table in named[1:]]
    return [named[0], *upper]


def chromosomes(
    mdata: MuData,
    bands: bool = False,
    outside: str = "drop",
    ids: str | Mapping[str, str] | None = None,
    min_size: int = 1,
    genes: pd.DataFrame | None = None,
) -> tuple[MuData, Ontology]:
    """Human chromosomes as latent terms, "chr1" ... "chrX", "chrY", "chrMT", with cytobands below them if `bands`.

    Places come from `var["chromosome"]` and `var["cytoband"]` where a modality has them, else from the gene table
    (`genes`, by default `identifiers.gene_table()`); `ids` says how genes are named there, None guesses it for each
    modality. Genes of the pseudoautosomal regions lie on X and on Y and belong to both. Small terms stay, Y too,
    unless `min_size` says otherwise. Raises ValueError as `build` does. Introduced in notebook 03.
    """
    wanted = ["chromosome", "cytoband"] if bands else ["chromosome"]
    placed = {m: adata.var for m, adata in mdata.mod.items() if set(wanted) <= set(adata.var)}
    kinds = {m: ids.get(m) if isinstance(ids, Mapping) else ids for m in mdata.mod}
    if len(placed) < len(mdata.mod) and genes is None:
        genes = identifiers.gene_table()
    for m in mdata.mod.keys() - placed.keys():
        placed[m] = identifiers.places(mdata[m].var_names, kinds[m] or guess_ids(mdata[m].var_names), genes)
    tables = _bands_and_chromosomes(pd.concat([placed[m][wanted] for m in mdata.mod]))
    if tables[0].empty and genes is None:
        raise ValueError("var['chromosome'] is empty in every modality; fill it, or remove it to use the gene table")
    if tables[0].empty:
        raise ValueError(_nothing_matches({m: a.var_names for m, a in mdata.mod.items()}, genes["symbol"], kinds))
    return build(mdata, *tables, name="chromosomes", outside=outside, min_size=min_size)


def _bands_and_chromosomes(places: pd.DataFrame) -> list[Table]:
    """Feature -> (band ->) chromosome from columns chromosome (and cytoband), in genomic order."""
    text = places.astype("string").apply(lambda column: column.str.strip().str.replace(r"(?i)^chr", "", regex=True))
    text = text.rename_axis("child").reset_index().replace({"chromosome": {"M": "MT"}})
    text = text[text["chromosome"].fillna("") != ""]
    rank = text["chromosome"].map({name: i for i, name in enumerate(CHROMOSOMES)}).fillna(len(CHROMOSOMES))
    text["parent"] = "chr" + text["chromosome"]
    if "cytoband" not in text:
        return [text.assign(rank=rank).sort_values("rank", kind="stable")[["child", "parent"]]]
    band = text["cytoband"].fillna("").str.extract(r"([pq][\d.]*)$")[0].fillna("")
    text["band"] = text["chromosome"] + band
    along = pd.to_numeric(band.str[1:], errors="coerce").fillna(0) * band.str[:1].map({"p": -1, "q": 1}).fillna(0)
    text = text.assign(rank=rank, along=along).sort_values(["rank", "along"], kind="stable")
    lower, upper = ["child", "band"], ["band", "parent"]
    return [text[columns].set_axis(["child", "parent"], axis=1).drop_duplicates() for columns in (lower, upper)]


def planted(mdata: MuData, outside: str = "drop", key: str = "pathways", min_size: int = 1) -> tuple[MuData, Ontology]:
    """The ontology that the data bring along: terms in `var[key]`, joined by ";", as `sim-bulk` has them.

    Modalities without the column have no term. The latent terms are in the order of `uns["truth"]["pathways"]` where
    there is one. Raises ValueError where no modality has the column, or as `build` does. Introduced in notebook 03.
    """
    listed = [adata.var[key] for adata in mdata.mod.values() if key in adata.var]
    if not listed:
        raise ValueError(f"no modality has a column '{key}' in var with the terms of its features, joined by ';'")
    terms = pd.concat(listed).astype("string").str.split(";").explode().str.strip().rename("parent")
    table = terms[terms.fillna("") != ""].rename_axis("child").reset_index()
    order = {term: i for i, term in enumerate(mdata.uns.get("truth", {}).get(key, ()))}
    table = table.sort_values("parent", key=lambda term: term.map(order), kind="stable")
    return build(mdata, table, name="planted", outside=outside, min_size=min_size)
