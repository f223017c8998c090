"""Mini-batches without a data loader: the whole data set lives on one device, an epoch is a permutation of row numbers.

A CSR matrix stays CSR, also in the batch, until somebody asks for dense values. Modalities that lack samples are masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mudata
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from helpers.project import pick_device


@dataclass(frozen=True)
class Counts:
    """The stored values of some rows of a CSR matrix [batch, n_vars], row after row.

    Introduced in notebook 06.
    """

    length: Tensor  # [batch] stored values per row
    column: Tensor  # [n_stored]
    value: Tensor  # [n_stored]
    n_vars: int

    def __len__(self) -> int:
        return len(self.length)

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, n_vars)."""
        return len(self), self.n_vars

    @cached_property
    def row(self) -> Tensor:
        """Row of each stored value, [n_stored]."""
        rows = torch.arange(len(self), device=self.length.device)
        return torch.repeat_interleave(rows, self.length, output_size=len(self.column))

    @cached_property
    def place(self) -> Tensor:
        """Where each stored value stands in the flat dense matrix, [n_stored]."""
        return self.row * self.n_vars + self.column

    def dense(self) -> Tensor:
        """[batch, n_vars]."""
        return self.value.new_zeros(len(self) * self.n_vars).index_add_(0, self.place, self.value).view(self.shape)

    def sum(self) -> Tensor:
        """Row sums [batch]."""
        return self.per_row(self.value)

    def per_row(self, each: Tensor) -> Tensor:
        """Sums [batch] of one number per stored value."""
        return torch.segment_reduce(each, "sum", lengths=self.length, initial=0.0)

    def __getitem__(self, rows: Tensor) -> Counts:
        return stored_rows(self.length.cumsum(0) - self.length, self.length, rows, self.column, self.value, self.n_vars)

    def hidden(self) -> Counts:
        """As many rows, without any value."""
        return Counts(torch.zeros_like(self.length), self.column[:0], self.value[:0], self.n_vars)

    def to(self, device: torch.device, non_blocking: bool = False) -> Counts:
        """The same on another device."""
        parts = (part.to(device, non_blocking=non_blocking) for part in (self.length, self.column, self.value))
        return Counts(*parts, self.n_vars)


def stored_rows(start: Tensor, length: Tensor, rows: Tensor, column: Tensor, value: Tensor, n_vars: int) -> Counts:
    """Rows of a CSR matrix whose row i has `length[i]` values from `start[i]` on. Introduced in notebook 06."""
    first, length = start[rows], length[rows]
    end = length.cumsum(0)
    total = int(end[-1]) if len(end) else 0
    source = torch.repeat_interleave(first - end + length, length, output_size=total)
    source += torch.arange(total, device=source.device)
    return Counts(length, column.index_select(0, source), value.index_select(0, source), n_vars)


class Values(Mapping):
    """Modality -> dense values [batch, n_vars], made of stored `Counts` when first asked for.

    Introduced in notebook 06.
    """

    def __init__(self, stored: Mapping[str, Tensor | Counts]):
        self.stored, self.dense = dict(stored), {}

    def __getitem__(self, modality: str) -> Tensor:
        found = self.stored[modality]
        if isinstance(found, Tensor):
            return found
        if modality not in self.dense:
            self.dense[modality] = found.dense()
        return self.dense[modality]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True)
class Batch:
    """What a model sees of some samples. Unobserved entries of `x` are zero and False in `mask`.

    Introduced in notebook 01.
    """

    x: Mapping[str, Tensor]  # modality -> [batch, n_vars]
    mask: dict[str, Tensor]  # modality -> [batch] bool, True where measured
    library: dict[str, Tensor]  # count modality -> [batch, 1] total counts, 0 where not measured
    index: Tensor  # [batch] rows of the data set
    covariates: dict[str, Tensor] = field(default_factory=dict)  # column -> [batch] codes, -1 where missing

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Batch:
        """Some samples of the batch, by their places in it [n_rows]."""
        parts = (self.mask, self.library, self.covariates)
        mask, library, covariates = ({name: value[rows] for name, value in part.items()} for part in parts)
        x = Values({m: self.stored(m)[rows] for m in self.x})
        return Batch(x, mask, library, self.index[rows], covariates)

    def stored(self, modality: str) -> Tensor | Counts:
        """Values of a modality as they are kept: `Counts` where the data are CSR. Introduced in notebook 06."""
        return self.x.stored[modality] if isinstance(self.x, Values) else self.x[modality]

    def showing(self, *modalities: str) -> Batch:
        """The same samples as if nothing but these modalities had been measured. Introduced in notebook 04."""
        x = {m: self.stored(m) if m in modalities else without_values(self.stored(m)) for m in self.x}
        mask = {m: v if m in modalities else torch.zeros_like(v) for m, v in self.mask.items()}
        return Batch(Values(x), mask, self.library, self.index, self.covariates)


def without_values(x: Tensor | Counts) -> Tensor | Counts:
    """The same shape, all zero. Introduced in notebook 06."""
    return torch.zeros_like(x) if isinstance(x, Tensor) else x.hidden()


class DenseRows:
    """A dense matrix [n_rows, n_vars] at home on one device. Introduced in notebook 01."""

    def __init__(self, x: np.ndarray, home: torch.device):
        self.values = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(home)
        self.n_rows, self.n_vars = x.shape

    def take(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Rows [batch] -> [batch, n_vars], zeros where `mask` [batch] is False."""
        x = self.values.index_select(0, rows)
        return x if mask is None else x * mask[:, None]


class SparseRows:
    """A CSR matrix at home on one device; on the CPU it shares scipy's memory. Introduced in notebook 01."""

    def __init__(self, x: sp.csr_matrix, home: torch.device):
        if not x.has_canonical_format:  # a value stored in two pieces would count as two
            x = x.copy()
            x.sum_duplicates()
        self.start = torch.from_numpy(x.indptr.astype(np.int64)).to(home)
        self.column = torch.from_numpy(x.indices).to(home)
        self.values = torch.from_numpy(x.data.astype(np.float32, copy=False)).to(home)
        self.n_rows, self.n_vars = x.shape

    def take(self, rows: Tensor, mask: Tensor | None = None) -> Counts:
        """Rows [batch] -> their stored values, none where `mask` [batch] is False."""
        start = self.start[rows]
        length = self.start[rows + 1] - start
        length = length if mask is None else length * mask
        every = torch.arange(len(rows), device=rows.device)
        return stored_rows(start, length, every, self.column, self.values, self.n_vars)


@dataclass(frozen=True)
class Modality:
    """One modality's matrix and where each sample of the data set stands in it."""

    rows: DenseRows | SparseRows
    position: Tensor  # [n_obs] row of the matrix, -1 where the sample lacks the modality
    library: Tensor | None  # [n_rows, 1] total counts, None unless counts
    complete: bool  # every sample is measured

    def take(self, index: Tensor) -> tuple[Tensor | Counts, Tensor, Tensor | None]:
        """Rows of the data set [batch] -> values [batch, n_vars], mask [batch], library [batch, 1] or None."""
        position = self.position[index]
        mask, row = position >= 0, position.clamp(min=0)
        if not self.rows.n_rows:  # nobody has it
            nothing = torch.zeros(len(index), self.rows.n_vars, device=position.device)
            return nothing, mask, None if self.library is None else nothing[:, :1]
        library = None if self.library is None else self.library[row] * mask[:, None]
        return self.rows.take(row, None if self.complete else mask), mask, library


class Samples:
    """All samples of a MuData, ready to be indexed: `samples[rows] -> Batch`.

    Parameters
    ----------
    mdata : the data; every modality's X is [n_obs_of_modality, n_vars], dense or CSR.
    device : where batches are wanted: "auto", "cpu", "cuda", "mps".
    covariates : columns of `mdata.obs` to deliver as category codes; their names are in `categories`.
    resident : keep the matrices on that device; None: where they fit into 80 % of its free memory. Otherwise
        they stay in host memory and each batch is copied from pinned pages.

    Raises `ValueError` on NaN or infinite values. Introduced in notebook 01.
    """

    def __init__(
        self,
        mdata: mudata.MuData,
        device: str | torch.device = "auto",
        covariates: Sequence[str] = (),
        resident: bool | None = None,
    ):
        if not isinstance(mdata, mudata.MuData):
            raise ValueError(
                f"pass a MuData, not {type(mdata).__name__}: mudata.MuData({{'rna': adata}}), or datasets.load"
            )
        self.device = pick_device(device) if isinstance(device, str) else device
        resident = fits_on(self.device, mdata) if resident is None else resident
        self.home = self.device if resident else torch.device("cpu")
        self.n_obs, self.obs_names = mdata.n_obs, mdata.obs_names
        self.split = mdata.obs["split"].to_numpy() if "split" in mdata.obs else np.repeat("train", mdata.n_obs)
        kinds = mdata.uns.get("dataset", {}).get("modalities", {})
        self.modalities = {m: place(mdata, m, self.home, kinds.get(m) == "counts") for m in mdata.mod}
        self.covariates = {c: codes(mdata, c).to(self.home) for c in covariates}
        self.categories = {c: list(mdata.obs[c].astype("category").cat.categories) for c in covariates}
        self.features = {m: mdata[m].var_names for m in mdata.mod}
        self.shapes = {m: image_shape(mdata, m) for m in mdata.mod if "image_shape" in mdata[m].uns}

    @property
    def n_vars(self) -> dict[str, int]:
        """Features per modality: the sizes a recipe asks for."""
        return {name: modality.rows.n_vars for name, modality in self.modalities.items()}

    @property
    def n_classes(self) -> dict[str, int]:
        """Categories per covariate. Introduced in notebook 04."""
        return {column: len(names) for column, names in self.categories.items()}

    def rows(self, split: str) -> Tensor:
        """Row numbers of a split "train", "valid" or "test" (all samples are "train" where none is given)."""
        return torch.from_numpy(np.flatnonzero(self.split == split)).to(self.home)

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: Tensor) -> Batch:
        index = index.to(self.home)
        taken = {name: modality.take(index) for name, modality in self.modalities.items()}
        return Batch(
            x=Values({name: self._send(x) for name, (x, _, _) in taken.items()}),
            mask={name: self._send(mask) for name, (_, mask, _) in taken.items()},
            library={name: self._send(total) for name, (_, _, total) in taken.items() if total is not None},
            index=self._send(index),
            covariates={name: self._send(code[index]) for name, code in self.covariates.items()},
        )

    def _send(self, value: Tensor | Counts) -> Tensor | Counts:
        if self.home == self.device:
            return value
        pin = self.device.type == "cuda" and isinstance(value, Tensor)
        return (value.pin_memory() if pin else value).to(self.device, non_blocking=True)


def place(mdata: mudata.MuData, name: str, home: torch.device, counts: bool) -> Modality:
    """One modality of a MuData as a `Modality` at home on a device."""
    x = mdata[name].X
    rows = SparseRows(sp.csr_matrix(x), home) if sp.issparse(x) else DenseRows(np.asarray(x), home)
    check_finite(rows.values, name)
    position = mdata[name].obs_names.get_indexer(mdata.obs_names)
    library = torch.from_numpy(np.asarray(x.sum(1), np.float32).reshape(-1, 1)).to(home) if counts else None
    return Modality(rows, torch.from_numpy(position.astype(np.int64)).to(home), library, bool((position >= 0).all()))


def check_finite(values: Tensor, name: str) -> None:
    """Raise `ValueError` where values are NaN or infinite; one number, no temporary of the matrix's size."""
    if torch.isfinite(values.sum()):
        return
    n_nan, n_inf = int(values.isnan().sum()), int(values.isinf().sum())
    if n_nan or n_inf:  # a sum of finite values may overflow
        raise ValueError(
            f"modality {name!r} holds {n_nan} NaN and {n_inf} infinite values; "
            "treat them with prepare.fit_transform(..., nan=...) before training"
        )


def image_shape(mdata: mudata.MuData, name: str) -> tuple[int, int, int]:
    """(height, width, channels) of a modality of pictures; `ValueError` where pixels are missing or too many."""
    shape, n_vars = tuple(int(n) for n in mdata[name].uns["image_shape"]), mdata[name].n_vars
    if len(shape) != 3 or int(np.prod(shape)) != n_vars:
        raise ValueError(
            f"modality {name!r} has {n_vars} pixels, but its pictures are {shape} (height, width, channels): prepare "
            "pictures with select='none', which keeps all of them"
        )
    return shape


def codes(mdata: mudata.MuData, column: str) -> Tensor:
    """Category codes [n_obs] of a column of `mdata.obs`, -1 where missing."""
    if column not in mdata.obs:
        raise ValueError(f"covariate {column!r} is not a column of mdata.obs: {list(mdata.obs.columns)}")
    return torch.from_numpy(mdata.obs[column].astype("category").cat.codes.to_numpy(dtype=np.int64, copy=True))


def fits_on(device: torch.device, mdata: mudata.MuData) -> bool:
    """Whether the matrices fit into 80 % of the device's free memory (host memory always counts as fitting)."""
    if device.type != "cuda":
        return True
    stored = (a.X.nnz * 12 if sp.issparse(a.X) else a.X.size * 4 for a in mdata.mod.values())
    return sum(stored) < 0.8 * torch.cuda.mem_get_info(device)[0]


def epoch(rows: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Row numbers of one epoch, batch by batch; shuffled where a generator is given.

    A last batch of one sample joins its predecessor, since batch normalisation needs two. Introduced in notebook 01.
    """
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    chunks = list(rows.split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    yield from chunks


def check_batch_size(n_train: int, batch_size: int) -> None:
    """Raise on fewer than two training samples or a batch size below two; warn where one batch holds the epoch."""
    if n_train < 2:
        raise ValueError(f"training needs at least 2 samples in the train split, found {n_train}: check obs['split']")
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}; batch normalisation needs at least 2 samples per batch")
    if n_train < batch_size:
        warnings.warn(
            f"batch_size {batch_size} exceeds the {n_train} training samples: every epoch is one batch of {n_train}",
            stacklevel=3,
        )
