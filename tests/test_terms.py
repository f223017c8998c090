"""Ontologies by name and by file."""

import numpy as np
import pytest
from conftest import build

from helpers import datasets, terms


@pytest.fixture(scope="module")
def bulk():
    return datasets.load("sim-bulk", n_obs=60, n_rna=80, n_methylation=60, n_mutation=60)


def test_auto_takes_the_terms_that_data_bring_along(bulk):
    _, found = terms.by_name(bulk)
    assert set(found.latent_names) == set(bulk.uns["truth"]["pathways"])
    assert terms.by_name(bulk, "chromosomes")[1].latent_names[0].startswith("chr")


def test_files_count_from_the_projects_root(bulk, tmp_path, monkeypatch):
    monkeypatch.setattr(terms.project, "ROOT", tmp_path)
    genes = list(bulk["rna"].var_names[:6])
    (tmp_path / "sets.gmt").write_text("a\tx\t" + "\t".join(genes[:4]) + "\nb\tx\t" + "\t".join(genes[3:]) + "\n")
    (tmp_path / "up.tsv").write_text("child\tparent\na\ttop\nb\ttop\n")
    only_rna = datasets.only(bulk, ["rna"])
    _, flat = terms.by_name(only_rna, "sets.gmt", outside="keep")
    assert flat.latent_names == ("a", "b") and flat.members["rna"].sum() == 4 + 3
    _, deep = terms.by_name(only_rna, "sets.gmt; up.tsv", outside="keep")
    assert deep.terms == (("top",), ("a", "b"))
    with pytest.raises(ValueError, match=r"no ontology 'reactom' \(did you mean|no ontology 'reactom'"):
        terms.by_name(bulk, "reactom")


def test_data_without_names_that_an_ontology_knows_say_so():
    mdata = build({"protein": np.ones((9, 4))})
    with pytest.raises(ValueError):
        terms.by_name(mdata, "planted")


def test_only_shares_matrices_and_keeps_annotation(bulk):
    part = datasets.only(bulk, ["mutation", "rna"])
    assert list(part.mod) == ["mutation", "rna"] and part["rna"].X is bulk["rna"].X
    assert part.obs["cancer_type"].equals(bulk.obs["cancer_type"]) and part.uns["dataset"] == bulk.uns["dataset"]
    with pytest.raises(ValueError, match="there is no modality 'rnaa'"):
        datasets.only(bulk, ["rnaa"])
