"""Our training loop against a bare loop and the peers: same network, loss, data and run. Writes a CSV and a figure.

    python benchmarks/loop.py [--repeats 5] [--epochs 6] [--device cpu]

Every program runs in a process and an environment of its own, in turn, so that a machine whose speed drifts
drifts for all of them; ratios are taken within a repeat. Peers that are not installed are left out (`make bench`
installs them).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # for the figure's style
PROGRAMS = {  # (work, name) -> environment, program, options
    ("scvi", "bare loop"): (".venv", "bare_loop.py", ["--model", "scvi"]),
    ("scvi", "ours"): (".venv", "ours.py", ["--model", "scvi"]),
    ("scvi", "ours, bf16"): (".venv", "ours.py", ["--model", "scvi", "--precision", "bf16"]),
    ("scvi", "ours, compiled"): (".venv", "ours.py", ["--model", "scvi", "--compile"]),
    ("scvi", "scvi-tools"): (".venv-peers", "peer_scvi.py", []),
    ("varix", "bare loop"): (".venv", "bare_loop.py", ["--model", "varix"]),
    ("varix", "ours"): (".venv", "ours.py", ["--model", "varix"]),
    ("varix", "ours, bf16"): (".venv", "ours.py", ["--model", "varix", "--precision", "bf16"]),
    ("varix", "autoencodix"): (".venv-autoencodix", "peer_autoencodix.py", []),
}
TARGETS = {("scvi", "scvi-tools"): 2.5, ("varix", "autoencodix"): 1.8, ("scvi", "bare loop"): 1 / 1.15}
TARGETS |= {("varix", "bare loop"): 1 / 1.15}  # "at most 1.15 times the bare loop", as a speed-up


def measure(key: tuple[str, str], epochs: int, device: str, threads: int) -> dict | None:
    """One run of one program, or None where its environment is missing."""
    environment, program, options = PROGRAMS[key]
    python = ROOT / environment / "bin" / "python" if environment != ".venv" else Path(sys.executable)
    if not python.exists():
        return None
    command = [python, HERE / program, *options, "--epochs", str(epochs), "--threads", str(threads)]
    command += ["--device", device] if device != "cpu" and environment == ".venv" else []
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        print(f"{key}: failed\n{done.stderr[-600:]}", file=sys.stderr)
        return None
    return dict(zip(("work", "name"), key, strict=True)) | json.loads(done.stdout.splitlines()[-1])


def ratios(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Seconds of each program over ours, repeat by repeat: median, smallest, largest."""
    rows = []
    for (work, name), runs in table.groupby(["work", "name"], sort=False):
        ours = table[(table.work == work) & (table.name == "ours")].set_index("repeat")[what]
        ratio = runs.set_index("repeat")[what] / ours
        row = {"work": work, "name": name, "figure": what, "median": ratio.median()}
        rows.append(row | {"min": ratio.min(), "max": ratio.max(), "target": TARGETS.get((work, name))})
    return pd.DataFrame(rows).round(3)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Seconds per epoch of every program, one panel per work."""
    from matplotlib import pyplot as plt

    from helpers import plots

    plots.use_style()
    fig, axes = plots.row(table.work.nunique())
    for ax, (work, runs) in zip(axes, table.groupby("work", sort=False), strict=True):
        names = list(dict.fromkeys(runs["name"]))
        for i, name in enumerate(names):
            seconds = runs.loc[runs["name"] == name, "seconds_per_epoch"]
            colour = plots.PALETTE[0] if name.startswith("ours") else plots.CONTROL
            ax.barh(i, seconds.median(), color=colour)
            ax.plot(seconds, [i] * len(seconds), "k.", ms=3)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set(xlabel="seconds per epoch", title={"scvi": "SCVI, 8,000 × 2,000", "varix": "Varix, 5,000 × 2,000"}[work])
    fig.savefig(path, dpi=160)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    for repeat in range(options.repeats):
        for key in PROGRAMS:
            if repeat and "compiled" in key[1]:  # compiling takes a minute; once shows what it gains
                continue
            result = measure(key, options.epochs, options.device, options.threads)
            if result is not None:
                rows.append(result | {"repeat": repeat})
                print(repeat, *key, result["seconds_per_epoch"], flush=True)
    table = pd.DataFrame(rows)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    table = table.assign(date=date.today().isoformat(), commit=commit.stdout.strip(), machine=platform.processor())
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    table.drop(columns=["seconds_each", "cpu_seconds_each"]).to_csv(results / f"loop_{options.device}.csv", index=False)
    summary = pd.concat([ratios(table, what) for what in ("seconds_per_epoch", "cpu_seconds_per_epoch")])
    summary.to_csv(results / f"loop_{options.device}_ratios.csv", index=False)
    draw(table, results / f"loop_{options.device}.png")
    print(summary.to_string(index=False))


if __name__ == "__main__":
    main()
