"""Memory and time of our multiDGD where data are large; each task in a process of its own, one line of JSON.

    WORKBOOK_DATA=../shared/data python benchmarks/ours_scale.py snare     mop-snare, 10,309 cells × 27,411 features
    python benchmarks/ours_scale.py large                                  simulated, 60,000 × 130,000 at 1 %
    WORKBOOK_DATA=../shared/data python benchmarks/ours_scale.py links     500 genes × all peaks × 1,000 cells

`peak_gb` is the largest resident memory of the whole process, data and imports included.
"""

import argparse
import json
import time
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import stopwatch
import torch

from helpers import datasets, inference, links, models, prepare, training
from helpers.batches import Samples


def fit(mdata: md.MuData, n_components: int, epochs: int, batch_size: int) -> tuple[models.Model, Samples, float]:
    """A model with published widths, its samples, and seconds per epoch."""
    torch.manual_seed(0)
    samples = Samples(mdata, "cpu")
    n_train = len(samples.rows("train"))
    model = models.multidgd(samples.n_vars, len(samples), 20, n_components, n_train=n_train)
    start = time.perf_counter()
    training.fit(model, samples, epochs=epochs, batch_size=batch_size, lr=1e-3, weight_decay=1e-4, progress=False)
    return model, samples, (time.perf_counter() - start) / epochs


def snare(epochs: int) -> dict:
    """Training and codes of the test split on mop-snare."""
    mdata = prepare.split(datasets.load("mop-snare"), fractions=(0.8, 0.1, 0.1))
    model, samples, seconds = fit(mdata, 15, epochs, 128)
    start = time.perf_counter()
    inference.infer(model, samples, "test", tolerance=0.01)
    return {"seconds_per_epoch": seconds, "seconds_inference": time.perf_counter() - start}


def large(epochs: int, n_obs: int = 60_000, n_vars: int = 130_000, density: float = 0.01) -> dict:
    """Training on counts whose dense form would take 31 GB; a tenth of the features are genes."""
    rng = np.random.default_rng(0)
    share = rng.gamma(0.5, size=n_vars)
    edges, n, blocks = np.cumsum(share / share.sum()), int(density * n_vars), []
    for start in range(0, n_obs, 5000):
        column = np.searchsorted(edges, rng.random((min(5000, n_obs - start), n))).clip(max=n_vars - 1)
        starts = np.arange(0, column.size + 1, n)
        block = sp.csr_matrix(
            (np.ones(column.size, np.float32), column.astype(np.int32).ravel(), starts), (len(column), n_vars)
        )
        block.sum_duplicates()
        blocks.append(block)
    x = sp.vstack(blocks, format="csr")
    del blocks
    nnz, n_genes = x.nnz, n_vars // 10
    parts = {"rna": x[:, :n_genes], "atac": x[:, n_genes:]}
    del x
    names = [f"cell{i}" for i in range(n_obs)]
    mdata = md.MuData({m: ad.AnnData(v, obs=pd.DataFrame(index=names)) for m, v in parts.items()})
    mdata.uns["dataset"] = {"modalities": dict.fromkeys(parts, "counts")}
    mdata.obs["split"] = "train"
    _, _, seconds = fit(mdata, 20, epochs, 128)
    return {"seconds_per_epoch": seconds, "stored_values": nnz, "dense_gb": 4 * n_obs * n_vars / 1e9}


def all_links(epochs: int) -> dict:
    """Associations of 500 genes with all peaks, from the codes of 1,000 cells."""
    mdata = prepare.split(datasets.load("mop-snare", n_obs=1000))
    mdata.obs["split"] = "train"
    model, _, _ = fit(mdata, 15, epochs, 128)
    genes = list(mdata["rna"].var_names[:500])
    links.associations(model, mdata, genes[:2], by=None)  # what happens once, such as imports, is not counted
    start = time.perf_counter()
    found = links.associations(model, mdata, genes, by=None)
    return {
        "seconds_links": time.perf_counter() - start,
        "pairs": int(np.prod(found.shape)),
        "groups": len(found.layers),
    }


def main() -> None:
    tasks = {"snare": snare, "large": large, "links": all_links}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    line = {"task": options.task, **tasks[options.task](options.epochs)}
    print(json.dumps(line | {"peak_gb": stopwatch.peak_rss_mb() / 1024}), flush=True)


if __name__ == "__main__":
    main()
