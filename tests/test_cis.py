"""Links and effects against what is known of them, on data whose answers are planted."""

import numpy as np
import pandas as pd
import pytest
from conftest import build

from helpers import cis, inference, links, models, multimodal, multiome, perturbation
from helpers.batches import Samples
from helpers.multimodal import Training


@pytest.fixture(scope="module")
def planted():
    """A small simulation with its model."""
    made = multiome.multiome(n_obs=300, n_genes=60, n_peaks=300, n_types=4, n_factors=4, seed=1)
    mdata = multimodal.prepared(made, "cell_type")
    return mdata, multimodal.train(mdata, Training(8, 4, (32,), epochs=30, lr=5e-3), "site")[0]


def scored(scores, groups=("T",)):
    """A gene whose first two peaks are linked."""
    rows = [
        ("g", f"p{i}", t, s, 1000.0 * i) for t, each in zip(groups, scores, strict=True) for i, s in enumerate(each)
    ]
    return pd.DataFrame(rows, columns=["gene", "peak", "group", "score", "distance"])


TRUTH = pd.DataFrame({"gene": ["g", "g"], "peak": ["p0", "p1"], "types": ["T", "B"]})


def test_agreement_knows_perfect_and_useless_scores():
    tables = {"good": scored([[-3, 2, 1, 0]]), cis.CONTROLS[0]: scored([[0, 1, 2, 3]])}
    table = cis.agreement(tables, TRUTH).set_index("method")
    assert table.loc["good", "auroc"] == 1 and table.loc[cis.CONTROLS[0], "auroc"] == 0
    assert list(table["kind"]) == ["model", "control"] and "right type" not in table


def test_right_type_is_told_from_wrong_type():
    """Link p0 acts in T and p1 in B; each stands out there and not elsewhere."""
    table = scored([[9, 0, 1, 2], [0, 9, 1, 2]], ["T", "B"])
    assert cis.by_type(table, TRUTH) == {"right type": 1.0, "wrong type": 0.0}
    found = cis.agreement({"x": table}, TRUTH).iloc[0]
    assert found["right type"] == 1 and found["acts or not"] == 1
    assert cis.by_type(scored([[1, 1, 0, 0]], ["NK"]), TRUTH) == {}


def test_effects_are_averaged_in_bins_of_distance():
    table = scored([[4, -2, 1, 1]])
    found = cis.by_distance({"x": table}, (0, 1500, 5000))
    assert found["effect"].tolist() == [3.0, 1.0] and found["n"].tolist() == [2, 2]
    assert found[["near", "far"]].to_numpy().tolist() == [[0, 1500], [1500, 5000]]


def test_known_links_are_the_planted_ones_or_those_of_the_table(planted):
    mdata, _ = planted
    found = cis.known_links(mdata)
    assert len(found) and found["gene"].isin(mdata["rna"].var_names).all() and "types" in found
    other = mdata.copy()
    other.uns.pop("truth")
    assert cis.known_links(other).empty
    other["atac"].var["gene"] = [mdata["rna"].var_names[0], "unknown", np.nan] * (other["atac"].n_vars // 3) + [
        np.nan
    ] * (other["atac"].n_vars % 3)
    assert set(cis.known_links(other)["gene"]) == {mdata["rna"].var_names[0]}


def test_planted_links_are_found_and_every_method_scores_the_same_pairs(planted):
    mdata, model = planted
    truth = cis.known_links(mdata)
    genes = list(dict.fromkeys(truth["gene"]))[:12]
    tables = cis.rivals(model, mdata, genes, "cell_type")
    pairs = {name: set(links.keys(table)) for name, table in tables.items()}
    assert all(found <= pairs["distance alone"] for found in pairs.values())
    assert pairs[cis.OURS] == pairs["distance alone"]
    found = cis.agreement(tables, truth).set_index("method")
    assert found.loc[cis.OURS, "auroc"] > 0.6 and list(found["kind"]) == ["model"] * 3 + ["control"] * 3


def test_silenced_is_the_difference_of_perturb_in_counts_per_10000(planted):
    mdata, model = planted
    gene = str(cis.known_links(mdata)["gene"].iloc[0])
    table = cis.silenced(model, mdata, [gene], "cell_type", split="test")
    kind, peak = str(table["group"].iloc[0]), str(table["peak"].iloc[0])
    options = {"step": perturbation.published_step, "by": "cell_type", "split": "test", "expressing": True}
    effect = perturbation.perturb(model, mdata, gene, **options)
    expected = 1e4 * effect[kind, peak].layers["difference"].item()
    assert table["score"].iloc[0] == pytest.approx(expected, rel=1e-4)
    assert table["distance"].abs().max() <= 100_000


def test_genes_that_nobody_expresses_are_left_out(planted):
    mdata, model = planted
    silent = mdata.copy()
    gene, other = list(dict.fromkeys(cis.known_links(mdata)["gene"]))[:2]
    x = silent["rna"].X.tolil()
    x[np.flatnonzero(mdata.obs["split"] == "test"), silent["rna"].var_names.get_loc(gene)] = 0
    silent["rna"].X = x.tocsr()
    model = inference.infer(model, silent, "test", steps=20, tolerance=1.0)
    found = cis.silenced(model, silent, [gene, other], "cell_type", split="test")
    assert set(found["gene"].astype(str)) == {other}


def test_silencing_a_factor_moves_its_motif(planted):
    mdata, model = planted
    table = cis.factor_effects(model, mdata, multiome.factors(mdata))
    assert list(table.columns) == ["gene", "role", "change", "others", "right"] and len(table) == 4
    assert table["right"].mean() >= 0.75
    bare = mdata.copy()
    bare["atac"].var = bare["atac"].var.drop(columns="motifs")
    with pytest.raises(ValueError, match="no column 'motifs'"):
        cis.factor_effects(model, bare, multiome.factors(mdata))


def test_displaced_genes_have_no_links_and_uniform_p_values(planted):
    mdata, model = planted
    moved = cis.displaced(mdata)
    before, after = mdata["rna"].var, moved["rna"].var
    assert sorted(before["tss"]) == sorted(after["tss"]) and (before["tss"] != after["tss"]).mean() > 0.9
    assert before["factors"].equals(after["factors"])
    p = links.link(model, moved, by="cell_type")["p_value"]
    assert np.histogram(p, 5, (0, 1))[0] / len(p) == pytest.approx([0.2] * 5, abs=0.06)


def test_the_gene_of_a_protein_is_ranked_among_all():
    made = multiome.multiome(n_obs=200, n_genes=50, n_peaks=100, n_types=4, n_factors=4)
    rna, rng = made["rna"], np.random.default_rng(0)
    sure = rna.var_names[int(np.argmax(rna.X.mean(0)))]
    counts = rng.poisson(5 + 3 * rna[:, sure].X.toarray())
    mdata = build({"rna": rna.X, "protein": counts}, kinds={"rna": "counts", "protein": "counts"})
    mdata["rna"].var_names = list(rna.var_names)
    mdata["protein"].var_names = ["P"]
    mdata.update()
    samples = Samples(mdata, "cpu")
    model = inference.infer(models.scdgd(samples.n_vars, len(samples), 4, 2), samples, steps=5)
    table = cis.own_genes(model, mdata, {"P": sure, "Q": sure, "R": "nowhere"})
    assert list(table["method"]) == [cis.OURS, cis.CONTROLS[0]] and set(table["protein"]) == {"P"}
    assert table["rank"].between(1, 50).all() and (table["n_genes"] == 50).all()
    assert table["rank"].iloc[1] == 1  # Spearman sees it at once


def test_verdicts_follow_from_their_tables():
    rows = [("ours", a, e) for a, e in ((0, 3.0), (2000, 1.1), (5000, 1.0))]
    far = pd.DataFrame(rows, columns=["method", "near", "effect"])
    assert cis.verdict_on_distance(far, planted=False)["verdict"] == "holds"
    assert cis.verdict_on_distance(far, planted=True)["verdict"] == "cannot be tested"
    assert cis.verdict_on_distance(far.assign(effect=[1.0, 1.1, 2.0]), False)["verdict"] == "does not hold here"
    found = pd.DataFrame({"method": ["ours", cis.CONTROLS[0]], "kind": ["model", "control"], "auroc": [0.8, 0.52]})
    assert cis.verdict_on_links(found)["verdict"] == "cannot be tested"
    both = found.assign(**{"right type": [0.8, np.nan], "wrong type": [0.6, np.nan]})
    assert cis.verdict_on_links(both)["verdict"] == "holds"
    assert cis.verdict_on_factors(pd.DataFrame())["verdict"] == "cannot be tested"
    assert cis.verdict_on_factors(pd.DataFrame({"right": [True, True]}))["verdict"] == "holds"


def test_without_known_links_variable_genes_with_a_place_are_asked():
    """A gene that varies comes first, one without coordinates is left out, and known links come before all."""
    rng = np.random.default_rng(0)
    x = rng.poisson(20, size=(60, 5)).astype(float)
    x[:30, 3], x[:30, 1] = 0, 5
    mdata = build({"rna": x, "atac": np.ones((60, 4))}, kinds={"rna": "counts", "atac": "counts"})
    assert cis.variable_genes(mdata, 2) == ["rna3", "rna1"]
    nothing = pd.DataFrame(columns=["gene", "peak"])
    assert cis.genes_to_ask(mdata, nothing, 3) == []
    mdata["rna"].var["chromosome"], mdata["rna"].var["tss"] = "chr1", [1.0, 2.0, 3.0, np.nan, 5.0]
    mdata["atac"].var["chromosome"], mdata["atac"].var["start"], mdata["atac"].var["end"] = "chr1", 1, 9
    assert cis.genes_to_ask(mdata, nothing, 2)[0] == "rna1" and "rna3" not in cis.genes_to_ask(mdata, nothing, 5)
    assert cis.genes_to_ask(mdata, pd.DataFrame({"gene": ["rna4", "rna4"], "peak": ["a", "b"]}), 3) == ["rna4"]
    assert cis.agreement({"nearness": nothing}, nothing).empty
