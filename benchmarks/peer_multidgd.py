"""multiDGD's own code on a file of paired counts: training, then codes of held-out cells; prints one line of JSON.

Runs in `.venv-multidgd` (see peers.mk), its package at commit 3887a98 on the path:

    .venv-multidgd/bin/python benchmarks/peer_multidgd.py data.h5mu --epochs 10 --steps 10 --threads 2

Only the calls of its tutorials are used; nothing of it is changed. Its hidden cost of a silhouette score per epoch is
part of what a user waits for, and small at this number of cells.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings

import mudata
import numpy as np
import scipy.sparse as sp
import stopwatch
import torch
from anndata import AnnData, concat


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time multiDGD's own code.")
    parser.add_argument("data", help="a .h5mu file with rna and atac counts, obs: cell_type, site, split")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="of inference")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def joined(path: str) -> AnnData:
    """Both modalities side by side, as its `setup_data` wants them."""
    mdata = mudata.read_h5mu(path)
    data = concat([mdata["rna"], mdata["atac"]], axis=1)
    data.X = sp.csr_matrix(data.X)
    data.obs = mdata.obs.loc[data.obs_names]
    data.var["modality"] = np.repeat(["rna", "atac"], [mdata["rna"].n_vars, mdata["atac"].n_vars])
    data.obs["train_val_test"] = data.obs["split"].map({"train": "train", "valid": "validation", "test": "test"})
    return data


def test_nll(model, data: AnnData) -> float:
    """Mean over test cells of −log NB summed over all features, nats, from the codes found."""
    test = data[data.obs["train_val_test"] == "test"]
    with torch.no_grad():
        told = model.decoder(torch.cat([model.test_rep.z, model.correction_test_rep.z], 1))
    total, start = 0.0, 0
    for share, module in zip(told, model.decoder.out_modules, strict=True):
        x = torch.from_numpy(test.X[:, start : start + share.shape[1]].toarray()).double()
        r, mean = module.distribution.log_r.detach().double().exp() + 1, share.double() * x.sum(1, keepdim=True)
        log_prob = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        log_prob += torch.xlogy(x, mean / (r + mean)) + r * torch.log(r / (r + mean))
        total, start = total - float(log_prob.sum(1).mean()), start + share.shape[1]
    return total


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    path = os.path.abspath(options.data)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        from multiDGD import DGD
        from multiDGD.functions._data import setup_data

        def fresh() -> DGD:
            return DGD(setup_data(joined(path), "modality", "cell_type", covariate_keys=["site"]), random_seed=0)

        fresh().train(n_epochs=1)  # what happens once, such as imports, is not counted
        model = fresh()
        start = time.perf_counter()
        model.train(n_epochs=options.epochs)
        trained = time.perf_counter()
        model.predict_new(n_epochs=options.steps)
        found = time.perf_counter()
        nll = test_nll(model, joined(path))
    line = {"seconds_per_epoch": (trained - start) / options.epochs, "seconds_inference": found - trained}
    print(json.dumps(line | {"test_nll": nll, "peak_gb": stopwatch.peak_rss_mb() / 1024}), flush=True)


if __name__ == "__main__":
    main()
