"""What every integration metric costs: seconds and peak memory, one process per run; writes a CSV.

    python benchmarks/integration_metrics.py [N_OBS] [--n-latent 50] [--threads 2]

Made-up cells: 20 labels of unequal size × 5 batches as Gaussian clouds that overlap. Seconds are wall seconds, `cpu`
those of the process over all threads; `peak_mb` is the process's highest so far, so that a metric's own need shows as
a step. Silhouettes (distances of all pairs) and the search for neighbours grow with the square of n_obs.
"""

import argparse
import os
import time
from datetime import date
from pathlib import Path

OUT = Path(__file__).parent / "results" / "integration_metrics.csv"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n_obs", type=int, nargs="?", default=10_000)
    parser.add_argument("--n-latent", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def cells(n_obs: int, n_latent: int, seed: int = 0):
    """z [n_obs, n_latent], its state before correction, labels, batches, reference pseudotime."""
    import numpy as np

    rng = np.random.default_rng(seed)
    share = 0.85 ** np.arange(20)
    label = rng.choice(20, n_obs, p=share / share.sum())
    batch = rng.choice(5, n_obs, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    centre, moved = rng.normal(size=(20, n_latent)), rng.normal(size=(5, n_latent))
    noise = rng.normal(size=(n_obs, n_latent))
    z = centre[label] + 0.2 * moved[batch] + noise
    return z, z + moved[batch], label.astype(str), batch.astype(str), label + rng.random(n_obs)


def main() -> None:
    given = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(given.threads)  # before numpy is imported
    import pandas as pd
    import stopwatch

    from helpers.metrics import graphs, integration

    z, before, labels, batch, pseudotime = cells(given.n_obs, given.n_latent)
    integration.scores(z[:500], labels[:500], batch[:500])  # libraries warm
    rows = [{"metric": "before all", "seconds": 0.0, "cpu": 0.0, "peak_mb": stopwatch.peak_rss_mb()}]
    laps = stopwatch.Laps()

    def note(metric: str) -> None:
        laps.lap()
        peak = stopwatch.peak_rss_mb()
        rows.append({"metric": metric, "seconds": laps.wall[-1], "cpu": laps.cpu[-1], "peak_mb": peak})
        print(f"{metric:32}{laps.wall[-1]:9.1f} s{laps.cpu[-1]:9.1f} s{peak:9.0f} MB", flush=True)

    near = graphs.nearest(z)
    note("neighbours (90, exact)")
    for columns, metric in integration.metrics_of(z, near, labels, batch, before, batch, pseudotime):
        metric()
        note(columns[0] + (" and the rest" if len(columns) > 1 else ""))
    rows.append({"metric": "all", "seconds": sum(laps.wall), "cpu": sum(laps.cpu), "peak_mb": rows[-1]["peak_mb"]})
    print(f"all: {rows[-1]['seconds']:.0f} s, {rows[-1]['cpu']:.0f} CPU s, {rows[-1]['peak_mb']:.0f} MB")
    found = pd.DataFrame(rows).round(2)
    found.insert(0, "n_obs", given.n_obs)
    found = found.assign(n_latent=given.n_latent, threads=given.threads, date=date.today().isoformat())
    if OUT.exists():
        old = pd.read_csv(OUT)
        found = pd.concat([old[old["n_obs"] != given.n_obs], found])
    OUT.parent.mkdir(exist_ok=True)
    found.sort_values("n_obs", kind="stable").to_csv(OUT, index=False)


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"with everything: {time.time() - started:.0f} s")
