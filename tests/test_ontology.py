"""Ontologies: masks against a search through the graph, what is outside, and every kind of bad input."""

import contextlib
import re
import time

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from helpers import datasets, identifiers, ontology, prepare
from helpers.ontology import build, hierarchy

GENES = """\
Gene stable ID\tGene stable ID version\tKaryotype band\tChromosome/scaffold name\tGene start (bp)\tGene end (bp)\tHGNC symbol\tNCBI gene (formerly Entrezgene) ID
ENSG00000000017\tENSG00000000017.1\tq21\t17\t500\t600\tBETA\t22
ENSG00000000018\tENSG00000000018.4\tp13.1\t17\t100\t200\tALPHA\t11
ENSG00000000018\tENSG00000000018.4\tp13.1\t17\t100\t200\tALPHA\t111
ENSG00000000099\tENSG00000000099.4\t\tHSCHR17_PATCH\t100\t200\tALPHA\t9
ENSG00000000002\tENSG00000000002.4\tp22.33\tX\t10\t20\tPAR1\t33
ENSG00000000003\tENSG00000000003.4\tp11.2\tY\t10\t20\tPAR1\t33
ENSG00000000004\tENSG00000000004.4\tq11\tY\t90\t99\tSRYLIKE\t44
ENSG00000000005\tENSG00000000005.4\t\tMT\t1\t9\tMT-X\t55
ENSG00000000006\tENSG00000000006.4\tq24\t2\t1\t9\tTWIN\t22
ENSG00000000007\tENSG00000000007.4\tq25\t2\t10\t19\t\t77
"""  # noqa: E501


def table(*pairs):
    return pd.DataFrame([pair.split(">") for pair in pairs], columns=["child", "parent"])


def data(**features):
    """A MuData with zeros: modality -> names of its features."""
    mods = {}
    for m, names in features.items():
        names = names.split() if isinstance(names, str) else list(names)
        var, obs = pd.DataFrame(index=names), pd.DataFrame(index=["s0", "s1", "s2"])
        mods[m] = ad.AnnData(np.zeros((3, len(names)), np.float32), obs=obs, var=var)
    return md.MuData(mods)


@pytest.fixture
def genes(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text(GENES)
    return identifiers.gene_table(path)


@contextlib.contextmanager
def refused(*fragments, error=ValueError):
    """The error is one line and holds every fragment."""
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- masks ---


def random_tables(rng, depth, features):
    """Tables of `depth` levels in which features and terms have one to three parents, and rows repeat."""
    below, tables = [*features, "not measured"], []
    for k in range(depth):
        terms = [f"L{k}.{i}" for i in range(12 // (k + 1))]
        rows = [(child, term) for child in below for term in rng.choice(terms, rng.integers(1, 4))]
        tables.append(
            pd.DataFrame(rows, columns=["child", "parent"]).sample(frac=1, random_state=int(rng.integers(99)))
        )
        below = sorted({parent for _, parent in rows})
    return tables


def parents_of(*tables):
    """child -> its parents, over all tables."""
    return {child: set(rows["parent"]) for child, rows in pd.concat(tables).groupby("child")}


def depths_above(parents, name):
    """Every ancestor of `name`, with the number of steps of all paths to it."""
    found, here, steps = {}, {name}, 0
    while here:
        here, steps = set().union(*(parents.get(one, set()) for one in here)), steps + 1
        for term in here:
            found.setdefault(term, set()).add(steps)
    return found


def searched(parents, feature, terms):
    return [term in depths_above(parents, feature) for term in terms]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_reach_is_what_a_search_through_the_graph_finds(depth, seed):
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(40)]
    mdata = data(rna=names[:30], protein=rng.permutation(names[10:]))
    tables = random_tables(rng, depth, rng.choice(names, 25, replace=False))
    parents = parents_of(*tables)
    kept, ont = build(mdata, *tables, outside="keep")
    assert kept is mdata and len(ont.terms) == depth and len(ont.links) == depth - 1
    for m, adata in mdata.mod.items():
        assert ont.features[m] == tuple(adata.var_names)
        expected = [searched(parents, name, ont.latent_names) for name in adata.var_names]
        np.testing.assert_array_equal(ont.reach(m), expected)
        lowest = [searched(parents, name, ont.terms[-1]) for name in adata.var_names]
        np.testing.assert_array_equal(ont.members[m], lowest)
    for link, upper, lower in zip(ont.links, ont.terms[:-1], ont.terms[1:], strict=True):
        assert link.dtype == bool and link.shape == (len(lower), len(upper))
        np.testing.assert_array_equal(link, [[b in parents[a] for b in upper] for a in lower])
    reached = {name for m in mdata.mod for name in np.array(ont.features[m])[ont.reach(m).any(1)]}
    assert reached == {name for name in names if name in parents}


def test_the_example_of_the_page_by_hand():
    mdata = data(rna="a b c x", protein="c a")
    tables = table("a>low1", "b>low1", "b>low2", "c>low2", "a>low1"), table("low1>TOP", "low2>TOP", "low2>OTHER")
    small, ont = build(mdata, *tables, name="mine")
    assert ont.name == "mine" and ont.terms == (("TOP", "OTHER"), ("low1", "low2"))
    assert ont.features == {"rna": ("a", "b", "c"), "protein": ("c", "a")}
    np.testing.assert_array_equal(ont.reach("rna"), [[1, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(ont.reach("protein"), [[1, 1], [1, 0]])
    np.testing.assert_array_equal(ont.links[0], [[1, 0], [1, 1]])
    assert ont.sizes().to_dict() == {"TOP": 5, "OTHER": 3}
    assert list(small["rna"].var_names) == ["a", "b", "c"] and mdata["rna"].n_vars == 4
    with pytest.raises(AttributeError):
        ont.name = "other"


def test_rows_in_another_order_give_the_same_reach():
    rng, names = np.random.default_rng(3), [f"g{i}" for i in range(30)]
    mdata, tables = data(rna=names), random_tables(np.random.default_rng(1), 3, names)
    _, one = build(mdata, *tables)
    _, two = build(mdata, *(t.sample(frac=1, random_state=int(rng.integers(99))) for t in tables))
    order = [two.latent_names.index(term) for term in one.latent_names]
    np.testing.assert_array_equal(one.reach("rna"), two.reach("rna")[:, order])


def test_thousands_of_features_take_well_under_a_second():
    rng, names = np.random.default_rng(0), [f"g{i}" for i in range(11000)]
    mdata = data(**{m: names[k : k + 2000] for k, m in enumerate(("rna", "cnv", "methylation"))})
    low = pd.DataFrame({"child": rng.choice(names, 60000), "parent": rng.integers(0, 600, 60000).astype(str)})
    top = pd.DataFrame({"child": map(str, range(600)), "parent": [f"T{i % 29}" for i in range(600)]})
    began = time.perf_counter()
    _, ont = build(mdata, low, top)
    assert time.perf_counter() - began < 2 and len(ont.latent_names) == 29  # measured: 0.2 s


# --- features outside ---


def test_outside_is_dropped_kept_or_put_into_a_bucket():
    mdata = data(rna="a x b", protein="y a")
    tables = table("a>low", "b>low"), table("low>mid"), table("mid>TOP")
    dropped, ont = build(mdata, *tables)
    assert [list(adata.var_names) for adata in dropped.mod.values()] == [["a", "b"], ["a"]]
    assert ont.reach("rna").all() and ont.reach("protein").all()

    kept, ont = build(mdata, *tables, outside="keep")
    assert kept is mdata and ont.terms == (("TOP",), ("mid",), ("low",))
    assert ont.reach("rna")[:, 0].tolist() == [True, False, True] and ont.reach("protein")[:, 0].tolist() == [
        False,
        True,
    ]

    same, ont = build(mdata, *tables, outside="bucket", bucket="rest")
    assert same is mdata and ont.terms == (("TOP", "rest"), ("mid", "rest"), ("low", "rest"))
    assert [link.tolist() for link in ont.links] == [[[True, False], [False, True]]] * 2
    np.testing.assert_array_equal(ont.reach("rna"), [[1, 0], [0, 1], [1, 0]])
    assert ont.sizes().to_dict() == {"TOP": 3, "rest": 2}


def test_a_bucket_is_made_only_where_something_is_outside():
    assert build(data(rna="a b"), table("a>A", "b>A"), outside="bucket")[1].terms == (("A",),)


def test_a_bucket_needs_a_name_of_its_own():
    with refused("'A' already", "bucket="):
        build(data(rna="a b"), table("a>A"), outside="bucket", bucket="A")


def test_dropping_leaves_samples_annotation_and_mosaic_as_they_were():
    mdata = datasets.load("sim-bulk", n_obs=90, missing=0.4)
    small, ont = ontology.planted(mdata)
    pd.testing.assert_frame_equal(small.obs, mdata.obs)
    assert small.uns["dataset"]["modalities"] == mdata.uns["dataset"]["modalities"] and not small.is_view
    np.testing.assert_array_equal(small.obsm["truth_pathways"], mdata.obsm["truth_pathways"])
    for m, adata in small.mod.items():
        assert ont.features[m] == tuple(adata.var_names) and adata.n_vars < mdata[m].n_vars
        np.testing.assert_array_equal(adata.X, mdata[m][:, list(adata.var_names)].X)
        assert adata.obs_names.equals(mdata[m].obs_names)


def test_prepared_data_stay_prepared_when_features_are_dropped():
    raw = prepare.split(datasets.load("sim-bulk", n_obs=90), seed=0)
    fitted = prepare.fit_transform(raw, n_features=60)
    small, _ = ontology.planted(fitted)
    again = prepare.transform(raw, small)
    for m, adata in small.mod.items():
        np.testing.assert_array_equal(again[m].X, adata.X)
        np.testing.assert_allclose(prepare.inverse(adata.X, adata), raw[m][:, adata.var_names].X, atol=1e-4)


def test_terms_without_or_with_few_features_are_left_out_and_named():
    mdata = data(rna="a b c d", protein="a")
    tables = table("a>two", "b>two", "c>one", "z>none"), table("two>T", "one>O", "none>N")
    _, ont = build(mdata, *tables, outside="keep")
    assert ont.terms == (("T", "O"), ("two", "one"))
    assert ont.report.loc["total", "terms_without_feature"] == ("none", "N")
    _, ont = build(mdata, *tables, outside="keep", min_size=2)
    assert ont.terms == (("T",), ("two",)) and ont.report.loc["rna", "outside"] == ("c", "d")
    assert ont.report.loc["total", "terms_too_small"] == ("one", "O")
    with refused("min_size=9", "largest has 3 features"):
        build(mdata, *tables, min_size=9)


def test_report_counts_what_was_matched_and_lost():
    _, ont = build(data(rna="a b x", protein="y a"), table("a>A", "b>B", "c>C"))
    rows = ont.report[["n_features", "n_matched", "n_outside", "n_terms_without_feature"]]
    assert rows.to_numpy().tolist() == [[3, 2, 1, 0], [2, 1, 1, 1], [5, 3, 2, 1]]
    assert list(rows.index) == ["rna", "protein", "total"]
    assert ont.report.loc["protein", "outside"] == ("y",) and ont.report.loc["protein", "terms_without_feature"] == (
        "B",
    )
    assert ont.report.loc["total", "outside"] == ("x", "y") and ont.report.loc["total", "terms_without_feature"] == (
        "C",
    )


# --- bad input ---


def test_no_feature_matched_shows_both_sides_and_the_right_ids():
    with refused("'TP53'", "(symbol)", "'7157'", "(entrez)", "give ids='symbol'"):
        build(data(rna="TP53 MYC"), table("7157>A", "4609>A"))
    with refused("'ENSG00000141510'", "(ensembl)", "give ids='ensembl'"):
        build(data(rna=["ENSG00000141510"]), table("TP53>A"))
    with refused("upper and lower case", "another species"):
        build(data(rna="Myc"), table("MYC>A"))
    with refused("columns swapped"):
        build(data(rna="MYC"), table("A>MYC"))


def test_ids_that_do_not_fit_the_data_are_corrected(genes):
    with refused("(ensembl)", "give ids='ensembl'"):
        build(data(rna=["ENSG00000000018"]), table("11>A"), ids="symbol", genes=genes)
    with refused("'symbl'", "did you mean 'symbol'?"):
        build(data(rna="ALPHA"), table("11>A"), ids="symbl", genes=genes)
    with refused("'rma'", "did you mean 'rna'?"):
        build(data(rna="ALPHA"), table("11>A"), ids={"rma": "symbol"}, genes=genes)


def test_a_modality_without_a_match_is_to_be_left_out():
    mdata = data(rna="a b", image="p1 p2")
    with refused("'image'", "leave it out", "outside='keep'"):
        build(mdata, table("a>A"))
    _, ont = build(mdata, table("a>A"), outside="keep")
    assert not ont.reach("image").any()


@pytest.mark.parametrize(
    ("tables", "cycle"),
    [
        ([table("a>A"), table("A>B"), table("B>A")], "'A' -> 'B' -> 'A'"),
        ([table("a>A"), table("A>A")], "'A' -> 'A'"),
        ([table("a>A", "A>B", "B>A")], "'A' -> 'B' -> 'A'"),
        ([table("a>A", "a>C"), table("A>B", "B>C", "C>A")], "'A' -> 'B' -> 'C' -> 'A'"),
    ],
)
def test_cycles_are_named(tables, cycle):
    with pytest.raises(ValueError, match="cycle") as caught:
        build(data(rna="a"), *tables)
    named = re.findall("'[^']+'(?: -> '[^']+')+", str(caught.value))[0].split(" -> ")
    assert named[0] == named[-1] and set(named) == set(cycle.split(" -> "))
    steps = {(f"'{child}'", f"'{parent}'") for t in tables for child, parent in t.itertuples(index=False, name=None)}
    assert set(zip(named, named[1:], strict=False)) <= steps  # from child to parent


def test_regulators_may_be_targets_of_each_other():
    _, ont = build(data(rna="MYC TP53 a"), table("MYC>TP53", "TP53>MYC", "MYC>MYC", "a>MYC"))
    assert ont.sizes().to_dict() == {"TP53": 1, "MYC": 3}


def test_unknown_parents_and_tables_that_do_not_continue_are_named():
    with refused("1 terms of table 1 have no parent in table 2", "'B'"):
        build(data(rna="a b"), table("a>A", "b>B"), table("A>T"))
    with refused("table 2 does not continue table 1", "'X'", "'A'", "from the features upwards"):
        build(data(rna="a"), table("a>A"), table("X>T"))
    with refused("table 3 does not continue table 2"):
        build(data(rna="a"), table("a>A"), table("A>T"), table("A>T"))


def test_tables_must_be_tables():
    mdata = data(rna="a")
    with refused("no table is given"):
        build(mdata)
    with refused("table 1", "'child' and 'parent'", "'gene'"):
        build(mdata, pd.DataFrame({"gene": ["a"], "set": ["A"]}))
    with refused("table 2", "'child' and 'parent'", "str"):
        build(mdata, table("a>A"), "A")
    with refused("table 1 has no row"):
        build(mdata, table())
    with refused("table 1 has 2 rows without a child or a parent", "'1', '2'"):
        build(mdata, pd.DataFrame({"child": ["a", None, " "], "parent": ["A", "A", "B"]}))
    with refused("outside='dropp'", "did you mean 'drop'?"):
        build(mdata, table("a>A"), outside="dropp")
    with refused("min_size=0"):
        build(mdata, table("a>A"), min_size=0)


# --- a whole graph of terms ---


def random_graph(rng, n):
    """A relation in which terms have one or two parents among earlier ones, with two roots."""
    edges = {(f"t{i}", f"t{j}") for i in range(2, n) for j in rng.integers(0, i, rng.integers(1, 3))}
    return pd.DataFrame(sorted(edges), columns=["child", "parent"])


@pytest.mark.parametrize("depths", [(), (1,), (2,), (1, 2), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_cutting_a_graph_changes_nothing_at_the_top(depths, seed):
    rng = np.random.default_rng(seed)
    relation, names = random_graph(rng, 40), [f"g{i}" for i in range(60)]
    rows = [(g, f"t{t}") for g in names[:-5] for t in rng.integers(0, 40, rng.integers(1, 4))]
    leaves = pd.DataFrame(rows, columns=["child", "parent"])
    parents = parents_of(relation, leaves)
    _, ont = build(data(rna=names), *hierarchy(relation, leaves, depths=depths), outside="keep")
    assert len(ont.terms) == len(depths) + 1 and set(ont.latent_names) <= {"t0", "t1"}
    np.testing.assert_array_equal(ont.reach("rna"), [searched(parents, name, ont.latent_names) for name in names])
    for level, depth in zip(ont.terms[1:], depths, strict=True):
        for term in level:  # it lies there, or nearer to the top and is carried down
            at = {n for top in ("t0", "t1") for n in depths_above(parents, term).get(top, ())} or {0}
            assert depth in at or min(at) < depth


def test_levels_of_a_small_graph_by_hand():
    relation = table("A>TOP", "B>TOP", "a1>A", "a2>A", "deep>a1", "O1>OTHER")
    leaves = table("x>a1", "x>A", "y>A", "z>deep", "b>B", "o>OTHER", "t>TOP")
    mdata = data(rna="x y z b o t")
    low, top = hierarchy(relation, leaves, depths=(1,))
    assert set(low.itertuples(index=False, name=None)) == {
        ("x", "A"), ("y", "A"), ("z", "A"), ("b", "B"), ("o", "OTHER"), ("t", "TOP"),
    }  # fmt: skip
    assert set(top["child"][top["carried"]]) == {"OTHER", "TOP"}
    _, ont = build(mdata, *hierarchy(relation, leaves, depths=(1, 2)))
    members = {name: set(np.array(ont.terms[-1])[row]) for name, row in zip("xyzbot", ont.members["rna"], strict=True)}
    assert members == {"x": {"a1"}, "y": {"A"}, "z": {"a1"}, "b": {"B"}, "o": {"OTHER"}, "t": {"TOP"}}
    np.testing.assert_array_equal(ont.reach("rna"), [[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    _, ont = build(mdata, *hierarchy(relation, leaves, top=["A", "B"], depths=(1,)))
    assert ont.latent_names == ("A", "B") and ont.features["rna"] == ("x", "y", "z", "b")


def test_faults_of_a_graph_are_named():
    relation, leaves = table("A>TOP", "a>A"), table("x>a")
    with refused("cycle"):
        hierarchy(table("A>B", "B>A"), leaves)
    with refused("'Q'", "relation does not have"):
        hierarchy(relation, table("x>a", "y>Q"))
    with refused("top names 'TPO'", "did you mean 'TOP'?"):
        hierarchy(relation, leaves, top=["TPO"])
    with refused("depths=(3,)", "so deep"):
        hierarchy(relation, leaves, depths=(3,))
    for depths in [(0,), (2, 1), (1, 1)]:
        with refused("rising order"):
            hierarchy(relation, leaves, depths=depths)


# --- files ---


def test_tables_are_read_with_and_without_header_in_either_order(tmp_path):
    expected = table("a>A", "b>B")
    texts = {
        "one.tsv": "a\tA\nb \tB\r\n\n",
        "two.txt": "\ufeffgene\tpathway\na\tA\nb\tB",
        "three.csv": 'child,parent\na,"A"\nb,B\n',
        "four.csv": "Parent,Child\nA,a\nB,b\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    for read in ontology.read_tables(*(tmp_path / name for name in texts)):
        pd.testing.assert_frame_equal(read, expected)
    (unnamed,) = ontology.read_tables(tmp_path / "two.txt", header=False)
    assert len(unnamed) == 3 and unnamed["child"][0] == "gene"


def test_damaged_tables_are_named_by_line(tmp_path):
    path = tmp_path / "x.tsv"
    for text, line in [("a\tA\nb\tB\tC\n", 2), ("a\tA\n\nb\t\n", 3), ("a,A\n", 1)]:
        path.write_text(text)
        with refused(f"x.tsv, line {line}", "two columns"):
            ontology.read_tables(path)
    path.write_text(" \n")
    with refused("x.tsv is empty"):
        ontology.read_tables(path)
    path.write_bytes(b"a\t\xff\xfe\n")
    with refused("x.tsv cannot be read"):
        ontology.read_tables(path)
    path.write_text("child\tparent\n")
    with refused("x.tsv", "no row below its header"):
        ontology.read_tables(path)
    with refused("no file", error=FileNotFoundError):
        ontology.read_tables(tmp_path / "none.tsv")


def test_gmt_is_read_and_may_have_collections_above(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("HALLMARK_A\thttp://x\ta\tb\t\nHALLMARK_B\t\tb\tc\n\n")
    sets = ontology.gmt(path)
    pd.testing.assert_frame_equal(sets, table("a>HALLMARK_A", "b>HALLMARK_A", "b>HALLMARK_B", "c>HALLMARK_B"))
    _, ont = build(data(rna="a c"), sets, table("HALLMARK_A>H", "HALLMARK_B>H"))
    assert ont.terms == (("H",), ("HALLMARK_A", "HALLMARK_B"))
    for text in ("A\tx\ta\nB\tonly a description\n", "A\tx\ta\n\tx\ta\n"):
        path.write_text(text)
        with refused("sets.gmt, line 2", "at least one feature"):
            ontology.gmt(path)


# --- identifiers ---


def test_genes_lie_on_main_chromosomes_in_genomic_order(genes, tmp_path):
    assert list(genes["chromosome"].unique()) == ["2", "17", "X", "Y", "MT"]
    assert list(genes["band"].unique()) == ["2q24", "2q25", "17p13.1", "17q21", "Xp22.33", "Yp11.2", "Yq11", "MT"]
    assert "ENSG00000000099" not in set(genes["ensembl"])
    (tmp_path / "wrong.txt").write_text("gene\tchromosome\n")
    with refused("wrong.txt", "'Gene stable ID'", "BioMart"):
        identifiers.gene_table(tmp_path / "wrong.txt")


def test_identifiers_are_mapped_with_a_report_of_what_was_lost(genes):
    mapped, report = ontology.map_ids(["ALPHA", "nothing", "BETA", "TWIN", "PAR1"], "symbol", "entrez", genes)
    assert mapped.to_dict() == {"ALPHA": "11", "nothing": None, "BETA": "22", "TWIN": "22", "PAR1": "33"}
    assert report["n"].to_dict() == {"matched": 4, "ambiguous": 1, "unmatched": 1, "shared": 2}
    assert report.loc["ambiguous", "names"] == ("ALPHA",) and report.loc["unmatched", "names"] == ("nothing",)
    assert report.loc["shared", "names"] == ("BETA", "TWIN")


def test_versions_do_not_matter_and_gaps_are_no_identifiers(genes):
    mapped, report = ontology.map_ids(["ENSG00000000018.99", "ENSG00000000007", ""], "ensembl", "symbol", genes)
    assert mapped.tolist() == ["ALPHA", None, None] and report.loc["unmatched", "n"] == 2
    assert ontology.map_ids(["33"], "entrez", "ensembl", genes)[0].tolist() == ["ENSG00000000002"]
    assert ontology.map_ids(["ENSG00000000007.1"], "ensembl", "ensembl", genes)[0].tolist() == ["ENSG00000000007"]
    with refused("'ensemble'", "did you mean 'ensembl'?"):
        ontology.map_ids(["a"], "symbol", "ensemble", genes)


def test_the_kind_of_identifier_is_guessed_from_most_names():
    assert ontology.guess_ids(["TP53", "MYC", "7157"]) == "symbol"
    assert ontology.guess_ids(["ENSG00000141510.18", "ENSMUSG00000059552", "x"]) == "ensembl"
    assert ontology.guess_ids([7157, 4609, "NM_000077.4"]) == "entrez"
    with refused("no names"):
        ontology.guess_ids([])


def test_build_translates_each_modality_and_uses_all_translations(genes):
    mdata = data(rna="ALPHA BETA none", protein=["ENSG00000000018.7", "ENSG00000000004"], cnv=["111", "44"])
    sets, ids = table("111>A", "22>B", "44>B", "NM_1>B"), {"rna": "symbol", "protein": "ensembl", "cnv": "entrez"}
    _, ont = build(mdata, sets, ids=ids, genes=genes, outside="keep")
    assert ont.latent_names == ("A", "B")
    np.testing.assert_array_equal(ont.reach("rna"), [[1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(ont.reach("protein"), np.eye(2))
    np.testing.assert_array_equal(ont.reach("cnv"), np.eye(2))
    assert ont.report["n_unmapped"].tolist() == [1, 0, 0, 1] and ont.report.loc["rna", "unmapped"] == ("none",)
    assert ont.report["n_ambiguous"].tolist() == [1, 1, 0, 2] and ont.report.loc["rna", "ambiguous"] == ("ALPHA",)


# --- the ontologies that come along ---


def test_chromosomes_from_the_gene_table(genes):
    mdata = data(rna="SRYLIKE ALPHA PAR1 BETA MT-X TWIN none", protein=["ENSG00000000017.3"])
    _, ont = ontology.chromosomes(mdata, genes=genes)
    assert ont.latent_names == ("chr2", "chr17", "chrX", "chrY", "chrMT")
    assert ont.sizes().to_dict() == {"chr2": 1, "chr17": 3, "chrX": 1, "chrY": 2, "chrMT": 1}
    assert ont.report.loc["rna", "outside"] == ("none",)
    _, ont = ontology.chromosomes(mdata, bands=True, genes=genes)
    assert ont.terms[1] == ("2q24", "17p13.1", "17q21", "Xp22.33", "Yp11.2", "Yq11", "MT")
    assert ont.sizes().to_dict() == {"chr2": 1, "chr17": 3, "chrX": 1, "chrY": 2, "chrMT": 1}
    with refused("no feature of the data is in the ontology", "'f1'"):
        ontology.chromosomes(data(rna="f1 f2"), genes=genes)


def test_chromosomes_of_the_simulation_are_those_of_var():
    mdata = datasets.load("sim-bulk", n_obs=60)
    same, ont = ontology.chromosomes(mdata, bands=True)
    plain = ontology.chromosomes(mdata)[1]
    assert plain.latent_names == ont.latent_names == tuple(f"chr{c}" for c in [*range(1, 23), "X", "Y"])
    assert ont.report.loc["total", "n_outside"] == 0 and same["rna"].n_vars == mdata["rna"].n_vars
    for m, adata in mdata.mod.items():
        for reach in (ont.reach(m), plain.reach(m)):
            assert (reach.sum(1) == 1).all()
            assert [ont.latent_names[i] for i in reach.argmax(1)] == [f"chr{c}" for c in adata.var["chromosome"]]
        assert [ont.terms[1][i] for i in ont.members[m].argmax(1)] == list(adata.var["cytoband"])
    arm = [band for band in ont.terms[1] if band.startswith("1p") or band.startswith("1q")]
    assert arm == sorted(arm, key=lambda band: (band[1], int(band[2:]) * (-1 if "p" in band else 1)))


def test_places_in_var_are_read_in_any_spelling():
    mdata = data(rna="a b c d")
    mdata["rna"].var["chromosome"] = pd.Categorical(["chr2", "M", None, "chrX"])
    mdata["rna"].var["cytoband"] = ["q21", "", "", "Xp11"]
    small, ont = ontology.chromosomes(mdata, bands=True)
    assert ont.terms == (("chr2", "chrX", "chrMT"), ("2q21", "Xp11", "MT")) and small["rna"].n_vars == 3
    mdata["rna"].var["chromosome"] = ""
    with refused("var['chromosome'] is empty"):
        ontology.chromosomes(mdata)


def test_planted_pathways_are_those_of_var():
    mdata = datasets.load("sim-bulk", n_obs=60)
    _, ont = ontology.planted(mdata, outside="keep")
    assert ont.latent_names == tuple(mdata.uns["truth"]["pathways"])
    for m, adata in mdata.mod.items():
        found = [";".join(np.array(ont.latent_names)[row]) for row in ont.reach(m)]
        assert found == list(adata.var["pathways"]) and max(ont.reach(m).sum(1)) > 1
    with refused("column 'sets'", "joined by ';'"):
        ontology.planted(mdata, key="sets")


@pytest.fixture
def small_reactome(tmp_path, monkeypatch):
    """Files in the form of Reactome's: two top terms, one and two steps below them, and a retired pathway."""
    texts = {
        "full_ont_lvl1_reactome.txt": "11\tR-HSA-10\n11\tR-HSA-11\n22\tR-HSA-11\n44\tR-HSA-20\n55\tR-HSA-99\n"
        "NR_1\tR-HSA-20",
        "full_ont_lvl2_reactome.txt": "R-HSA-10\tR-HSA-1\nR-HSA-11\tR-HSA-1\nR-HSA-20\tR-HSA-2\nR-HSA-99\tR-HSA-2",
        "Reactome_TopLvl_hsa.txt": "R-HSA-1 \tZeta\r\nR-HSA-2 \tAlpha \r\n",
        "reactome_pathways_names_2025_01_21.txt": "R-BTA-1\tZeta\tBos taurus\nR-HSA-1\tZeta\tHomo sapiens\n"
        "R-HSA-10\tSame\tHomo sapiens\nR-HSA-11\tSame\tHomo sapiens\nR-HSA-20\tTwenty\tHomo sapiens\n",
        "reactome_pathways_relation_2025_01_14.txt": "R-BTA-1\tR-BTA-10\nR-HSA-1\tR-HSA-10\nR-HSA-10\tR-HSA-11\n"
        "R-HSA-2\tR-HSA-20\n",
        "genes_chromosomes.txt": GENES,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, newline="")
    monkeypatch.setattr(identifiers, "ontology_files", lambda name: {file: tmp_path / file for file in texts})
    assert set(texts) == {file.path.rpartition("/")[2] for file in datasets.ontologies()["reactome"].files}


def test_reactome_in_one_two_and_three_levels(small_reactome):
    mdata = data(rna="ALPHA BETA SRYLIKE MT-X none")
    below = {
        1: [],
        2: [{"Same (R-HSA-10)", "Same (R-HSA-11)", "Twenty", "R-HSA-99"}],
        3: [{"Same (R-HSA-10)", "Twenty", "R-HSA-99"}, {"Same (R-HSA-11)", "Twenty", "R-HSA-99"}],
        (1,): [{"Same (R-HSA-10)", "Twenty", "R-HSA-99"}],
        (2,): [{"Same (R-HSA-11)", "Twenty", "R-HSA-99"}],
    }
    for levels, expected in below.items():
        small, ont = ontology.reactome(mdata, levels=levels)
        assert ont.latent_names == ("Alpha", "Zeta") and [set(level) for level in ont.terms[1:]] == expected
        assert list(small["rna"].var_names) == ["ALPHA", "BETA", "SRYLIKE", "MT-X"]
        np.testing.assert_array_equal(ont.reach("rna"), [[0, 1], [0, 1], [1, 0], [1, 0]])
    for levels in (0, 4, (3,), [1, 3]):
        with refused("levels=", "is not 1, 2 or 3"):
            ontology.reactome(mdata, levels=levels)
    with refused("give ids='ensembl'"):
        ontology.reactome(data(rna=["ENSG00000000018"]))
