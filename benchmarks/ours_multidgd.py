"""Our multiDGD on a file of paired counts: training, then codes of held-out cells; prints one line of JSON.

    python benchmarks/ours_multidgd.py data.h5mu --epochs 10 --threads 2

The published network, number of components and covariate, as in `peer_multidgd.py`.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import mudata
import stopwatch
import torch

from helpers import inference, models, tasks, training
from helpers.batches import Samples
from helpers.likelihoods import log_likelihood
from helpers.models.multidgd import start_covariates


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time our multiDGD.")
    parser.add_argument("data", help="a .h5mu file with rna and atac counts, obs: cell_type, site, split")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=15, help="of inference, at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@torch.no_grad()
def test_nll(model: models.Model, samples: Samples) -> float:
    """Mean over test cells of −log NB summed over all features, nats, from the codes found."""
    batch = samples[samples.rows("test")]
    told = model.decode(tasks.z_of(model, batch), batch.library)
    return float(sum(-log_likelihood(p, batch.stored(m)).mean() for m, p in told.items()))


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    mdata = mudata.read_h5mu(options.data)
    mdata.uns["dataset"] = {"modalities": dict.fromkeys(mdata.mod, "counts")}
    torch.manual_seed(0)
    samples = Samples(mdata, "cpu", covariates=["site"])
    n_train, n_types = len(samples.rows("train")), mdata.obs["cell_type"].nunique()
    model = models.multidgd(samples.n_vars, len(samples), 20, n_types, samples.n_classes, n_train=n_train)
    start_covariates(model, samples)
    settings = {"batch_size": options.batch_size, "lr": options.lr, "weight_decay": 1e-4, "progress": False}
    training.fit(model, samples, epochs=1, **settings)  # what happens once, such as imports, is not counted
    start = time.perf_counter()
    training.fit(model, samples, epochs=options.epochs, **settings)
    line = {"seconds_per_epoch": (time.perf_counter() - start) / options.epochs}
    line["seconds_inference"], found = timed(lambda: inference.infer(model, samples, "test", steps=options.steps))
    line["test_nll"] = test_nll(found, samples)
    line["seconds_encoder_training"], reader = timed(
        lambda: inference.amortised(model, samples, epochs=20, batch_size=128, lr=1e-3, progress=False)
    )
    line["seconds_encoder"], _ = timed(lambda: tasks.embed(reader, samples, "test"))
    line["test_nll_encoder"] = test_nll(reader, samples)
    line["seconds_warm"], found = timed(lambda: inference.infer(model, samples, "test", steps=4, start=reader))
    line["test_nll_warm"] = test_nll(found, samples)
    print(json.dumps(line | {"peak_gb": stopwatch.peak_rss_mb() / 1024}), flush=True)


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    found = what()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main()
