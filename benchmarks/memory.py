"""Peak memory of training on a CSR matrix of 100,000 × 5,000 at 5 % density; writes a CSV.

    python benchmarks/memory.py

The matrix takes 8 bytes per stored value (a float32 and an int32). What counts is how far the peak lies above what
the process held before, in matrices; the model and its optimiser are counted apart.
"""

import subprocess
from datetime import date
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import stopwatch
import torch
from ours import scvi_like

from helpers import training
from helpers.batches import Samples

N_OBS, N_VARS, PER_ROW = 100_000, 5_000, 250


def matrix(seed: int = 0) -> sp.csr_matrix:
    """Counts 1 … 5 at 250 columns of every row, drawn in place so that making them needs no second copy."""
    rng = np.random.default_rng(seed)
    columns = np.empty((N_OBS, PER_ROW), np.int32)
    step = N_VARS // PER_ROW
    for start in range(0, N_OBS, 5_000):  # one column from each stretch of 20: sorted and unique
        block = rng.integers(step, size=(5_000, PER_ROW), dtype=np.int32)
        columns[start : start + 5_000] = block + np.arange(0, N_VARS, step, dtype=np.int32)
    values = np.empty(N_OBS * PER_ROW, np.float32)
    for start in range(0, values.size, 5_000_000):
        values[start : start + 5_000_000] = rng.integers(1, 6, size=min(5_000_000, values.size - start))
    row_ends = np.arange(0, values.size + 1, PER_ROW, dtype=np.int32)
    return sp.csr_matrix((values, columns.ravel(), row_ends), shape=(N_OBS, N_VARS))


def main() -> None:
    torch.set_num_threads(2)
    md.set_options(pull_on_update=False)
    model = scvi_like(N_VARS)
    training.fit(scvi_like(50), small(), epochs=1, batch_size=32, progress=False)  # libraries warm
    baseline = stopwatch.peak_rss_mb()
    x = matrix()
    size = (x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 2**20
    made = stopwatch.peak_rss_mb() - baseline
    mdata = md.MuData({"rna": ad.AnnData(x)})
    mdata.uns["dataset"] = {"modalities": {"rna": "counts"}}
    training.fit(model, Samples(mdata, "cpu"), epochs=1, batch_size=128, progress=False)
    above = stopwatch.peak_rss_mb() - baseline
    state = 4 * 4 * sum(p.numel() for p in model.parameters()) / 2**20  # weights, best weights, two moments
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    row = {"n_obs": N_OBS, "n_vars": N_VARS, "density": PER_ROW / N_VARS, "matrix_mb": size, "baseline_mb": baseline}
    row |= {"made_mb": made, "peak_above_mb": above, "model_mb": state, "ratio": (above - state) / size, "target": 1.5}
    row |= {"date": date.today().isoformat(), "commit": commit}
    table = pd.DataFrame([row]).round(2)
    path = Path(__file__).parent / "results" / "memory_cpu.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    print(table.T.to_string(header=False))


def small() -> md.MuData:
    """Fifty features for the warm-up."""
    mdata = md.MuData({"rna": ad.AnnData(sp.random(200, 50, 0.2, "csr", np.float32).ceil())})
    mdata.uns["dataset"] = {"modalities": {"rna": "counts"}}
    return mdata


if __name__ == "__main__":
    main()
