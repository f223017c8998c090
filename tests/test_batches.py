"""Batches hold the right rows, whatever the storage; bad data is refused."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import build

from helpers.batches import Counts, Samples, SparseRows, check_batch_size, epoch


def test_csr_rows_become_dense_batches():
    rng = np.random.default_rng(0)
    dense = sp.random(50, 30, 0.1, dtype=np.float32, rng=rng).toarray()
    dense[7] = 0  # an empty row
    x = sp.csr_matrix(dense)
    rows = torch.tensor([7, 3, 3, 49, 0])
    taken = SparseRows(x, torch.device("cpu")).take(rows)
    np.testing.assert_array_equal(taken.dense().numpy(), dense[rows.numpy()])


def test_csr_on_the_cpu_shares_its_memory():
    x = sp.random(20, 30, 0.2, "csr", np.float32, rng=np.random.default_rng(0))
    rows = SparseRows(x, torch.device("cpu"))
    assert rows.values.data_ptr() == x.data.ctypes.data
    assert rows.column.data_ptr() == x.indices.ctypes.data


def test_stored_counts_are_rows_of_the_matrix():
    """Sums, single rows and a value kept in two pieces."""
    dense = sp.random(12, 8, 0.4, dtype=np.float32, rng=np.random.default_rng(0)).toarray()
    counts = SparseRows(sp.csr_matrix(dense), torch.device("cpu")).take(torch.arange(12))
    np.testing.assert_allclose(counts.sum().numpy(), dense.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(counts[torch.tensor([4, 4, 0])].dense().numpy(), dense[[4, 4, 0]])
    np.testing.assert_array_equal(counts.hidden().dense().numpy(), np.zeros((12, 8)))
    twice = sp.csr_matrix((np.array([1, 2, 5], np.float32), [3, 3, 0], [0, 3]), shape=(1, 4))
    assert SparseRows(twice, torch.device("cpu")).take(torch.tensor([0])).value.tolist() == [5, 3]


def test_values_are_made_dense_when_asked_for(counts):
    batch = Samples(counts, "cpu")[torch.arange(5)]
    part, kept = batch[torch.tensor([3, 1])], batch.stored("rna")
    assert isinstance(kept, Counts) and not batch.x.dense
    np.testing.assert_array_equal(part.x["rna"].numpy(), counts["rna"].X.toarray()[[3, 1]])
    assert batch.showing("rna").stored("rna") is kept
    assert batch.showing("other").x["rna"].abs().sum() == 0


def test_dense_and_sparse_give_the_same_batches(counts):
    dense = counts.copy()
    dense.mod["rna"].X = counts["rna"].X.toarray()
    index = torch.tensor([5, 1, 100])
    a, b = Samples(counts, "cpu")[index], Samples(dense, "cpu")[index]
    torch.testing.assert_close(a.x, b.x)
    torch.testing.assert_close(a.library, b.library)
    torch.testing.assert_close(a.library["rna"], a.x["rna"].sum(1, keepdim=True))


def test_missing_modalities_are_masks_and_zeros():
    names = {"rna": ["a", "b", "c"], "protein": ["b", "c", "d"]}
    mdata = build({"rna": np.ones((3, 2)), "protein": np.full((3, 4), 2.0)}, names=names)
    batch = Samples(mdata, "cpu")[torch.arange(4)]
    order = list(mdata.obs_names)
    assert {n for n, seen in zip(order, batch.mask["rna"], strict=True) if seen} == {"a", "b", "c"}
    assert {n for n, seen in zip(order, batch.mask["protein"], strict=True) if seen} == {"b", "c", "d"}
    torch.testing.assert_close(batch.x["rna"], torch.ones(4, 2) * batch.mask["rna"][:, None])
    torch.testing.assert_close(batch.x["protein"], 2 * torch.ones(4, 4) * batch.mask["protein"][:, None])


def test_host_storage_gives_the_same_batches(counts):
    index = torch.tensor([2, 9, 4])
    streamed = Samples(counts, torch.device("cpu"), resident=False)[index]
    torch.testing.assert_close(streamed.x, Samples(counts, "cpu")[index].x)


def test_an_epoch_visits_every_row_once():
    rows = torch.arange(100, 201)
    chunks = list(epoch(rows, 20, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(chunks).sort().values, rows)
    assert [len(c) for c in chunks] == [20, 20, 20, 20, 21]  # a last batch of one joins its predecessor
    assert torch.equal(torch.cat(list(epoch(rows, 20))), rows)  # without a generator: in order


def test_covariates_are_codes(two_modalities):
    two_modalities.obs["site"] = np.where(np.arange(200) % 2, "x", None)
    batch = Samples(two_modalities, "cpu", covariates=["site"])[torch.arange(4)]
    assert batch.covariates["site"].tolist() == [-1, 0, -1, 0]
    with pytest.raises(ValueError, match="covariate 'sites' is not a column"):
        Samples(two_modalities, "cpu", covariates=["sites"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(two_modalities, bad):
    two_modalities["protein"].X[3, 4] = bad
    with pytest.raises(ValueError, match="modality 'protein' holds"):
        Samples(two_modalities, "cpu")


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match="at least 2 samples in the train split, found 1"):
        check_batch_size(1, 16)
    with pytest.raises(ValueError, match="batch_size is 1"):
        check_batch_size(10, 1)
    with pytest.warns(UserWarning, match="batch_size 16 exceeds the 10 training samples"):
        check_batch_size(10, 16)
