"""Thirty models of notebook 02: in one process, where data are loaded and prepared once, against a process each.

    python benchmarks/sweep.py [--dataset tcga-brca]

Both train the same settings and must find the same R². The separate processes run one after the other, as in a shell
loop over an ordinary training script; each imports, loads, filters and scales for itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
KINDS = ("vanillix", "varix β=0.01", "varix β=0.1", "varix β=1", "ontix")
COMMON = {"epochs": 40, "batch_size": 64, "clip_norm": 5.0}  # defaults of the notebook


def settings() -> list[dict]:
    """Five architectures, three sizes, two seeds."""
    cells = [(kind, n, seed) for kind in KINDS for n in (2, 8, 12) for seed in (0, 1)]
    return [{"data": "rna", "model": k, "n_latent": n, "config": "default", "seed": s} for k, n, s in cells]


def train(dataset: str, chosen: list[dict]) -> list[float]:
    """Load, prepare and train; R² of each setting."""
    import torch

    from helpers import datasets, prepare, sweeps, zoo

    torch.set_num_threads(1)
    mdata = prepare.complete(datasets.load(dataset))
    prepare.split(mdata, stratify=mdata.uns["dataset"]["label_key"], seed=0)
    mdata = prepare.fit_transform(mdata, n_features=150)
    given = zoo.inputs(datasets.only(mdata, ["rna"]), ["rna"], "auto", "cpu")
    contest = zoo.Contest(given, zoo.architectures([0.01, 0.1, 1.0]), "logistic-mid", 2e-3, COMMON)
    return [float(result["R²"]) for result in sweeps.sweep(chosen, contest.train, None, progress=False)]


def one_by_one(dataset: str) -> tuple[float, list[float]]:
    """Seconds and R² of a process per setting."""
    began, found = time.perf_counter(), []
    for number in range(len(settings())):
        command = [sys.executable, __file__, "--dataset", dataset, "--only", str(number)]
        found += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sim-bulk")
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(train(options.dataset, [settings()[options.only]])))
        return
    began = time.perf_counter()
    command = [sys.executable, "-c", f"import sweep; print(sweep.train({options.dataset!r}, sweep.settings()))"]
    together = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    seconds = time.perf_counter() - began
    ours = json.loads(together.stdout.splitlines()[-1])
    apart, theirs = one_by_one(options.dataset)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4, "the two did not do the same work"
    row = {"dataset": options.dataset, "models": len(ours), "one process, s": seconds, "processes, s": apart}
    table = pd.DataFrame([row | {"ratio": seconds / apart}])
    table.to_csv(RESULTS / f"sweep_{options.dataset}.csv", index=False, float_format="%.3f")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
