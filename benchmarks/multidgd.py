"""Our multiDGD against its authors' code on the same simulated cells, in turn, and what large data take. Writes a CSV.

    python benchmarks/multidgd.py [--repeats 3] [--epochs 5]        (`make bench` installs the peer)
    WORKBOOK_DATA=../shared/data python benchmarks/multidgd.py --scale

6,400 training cells × (2,000 genes, 47 % of counts not zero, + 10,000 peaks, 5 %), 12 components, one covariate, the
published network. Every program runs in a process of its own; ratios are taken within a repeat. Data come from
`sim-multiome`'s generator, so that likelihoods of held-out cells mean something.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROGRAMS = {  # name -> environment, program, options
    "ours, batches of 128": (".venv", "ours_multidgd.py", ["--batch-size", "128"]),
    "ours, batches of 512": (".venv", "ours_multidgd.py", ["--batch-size", "512", "--lr", "2e-3"]),
    "multiDGD": (".venv-multidgd", "peer_multidgd.py", ["--steps", "10"]),
}


def simulated(path: Path) -> None:
    """8,000 cells in a file: 6,400 train, 800 valid, 800 test."""
    from helpers import multiome, prepare

    mdata = multiome.multiome(8000, 2000, 10_000, 12, 3, rna_depth=3000, atac_depth=600, seed=0)
    prepare.split(mdata, fractions=(0.8, 0.1, 0.1))
    mdata.uns.clear()
    mdata.write_h5mu(path)


def run(environment: str, program: str, options: list[str]) -> dict | None:
    """One program's line of JSON, or None where its environment is missing."""
    python = ROOT / environment / "bin" / "python" if environment != ".venv" else Path(sys.executable)
    if not python.exists():
        print(f"{environment} is not installed: make bench", file=sys.stderr)
        return None
    source = ROOT / ".venv-multidgd" / "source" / "src"
    paths = os.environ | {"PYTHONPATH": f"{HERE}:{source if environment != '.venv' else ROOT}"}
    done = subprocess.run([str(python), str(HERE / program), *options], capture_output=True, text=True, env=paths)
    if done.returncode:
        print(f"{program}: failed\n{done.stderr[-800:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def compared(repeats: int, epochs: int, threads: int) -> pd.DataFrame:
    """A row per program and repeat."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5mu"
        simulated(data)
        for repeat in range(repeats):
            for name, (environment, program, options) in PROGRAMS.items():
                given = [str(data), "--epochs", str(epochs), "--threads", str(threads), *options]
                if found := run(environment, program, given):
                    rows.append({"name": name, "repeat": repeat, "epochs": epochs} | found)
                    print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of multiDGD over those of ours, repeat by repeat: median, smallest, largest."""
    peer, rows = table[table.name == "multiDGD"].set_index("repeat"), []
    pairs = {"seconds_per_epoch": "seconds_per_epoch", "seconds_inference": "seconds_inference"}
    pairs |= {"seconds_warm": "seconds_inference", "seconds_encoder": "seconds_inference"}
    for name, ours in table[table.name != "multiDGD"].groupby("name", sort=False):
        for what, theirs in pairs.items():
            ratio = peer[theirs] / ours.set_index("repeat")[what]
            rows.append(
                {"name": name, "figure": what, "median": ratio.median(), "min": ratio.min(), "max": ratio.max()}
            )
    return pd.DataFrame(rows).round(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", action="store_true", help="instead: memory and time on large data")
    options = parser.parse_args()
    results = HERE / "results"
    if options.scale:
        threads = ["--threads", str(options.threads)]
        lines = [
            run(".venv", "ours_scale.py", [task, *threads, "--epochs", "1"]) for task in ("snare", "links", "large")
        ]
        table = pd.DataFrame([line for line in lines if line]).assign(date=date.today().isoformat())
        table.round(3).to_csv(results / "multidgd_scale.csv", index=False)
        print(table.to_string(index=False))
        return
    table = compared(options.repeats, options.epochs, options.threads).assign(date=date.today().isoformat())
    table.round(3).to_csv(results / "multidgd.csv", index=False)
    print(table.round(3).to_string(index=False))
    if "multiDGD" in set(table.name):
        print(ratios(table).to_string(index=False))


if __name__ == "__main__":
    main()
