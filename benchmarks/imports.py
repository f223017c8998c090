"""What importing the package costs on top of torch, and what it pulls in; writes a CSV.

python benchmarks/imports.py
"""

import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd

HEAVY = ("scanpy", "umap", "jax", "sklearn", "matplotlib")
CODE = """
import time, torch
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
import sys
print(seconds, *[name for name in {heavy!r} if name in sys.modules])
"""


def main() -> None:
    rows = []
    for module in ("helpers", "helpers.models", "helpers.training", "helpers.datasets", "helpers.metrics"):
        seconds, heavy = [], set()
        for _ in range(5):
            code = CODE.format(module=module, heavy=HEAVY)
            out = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()
            seconds.append(float(out[0]))
            heavy |= set(out[1:])
        row = {"module": module, "median_seconds": pd.Series(seconds).median(), "max_seconds": max(seconds)}
        rows.append(row | {"heavy_imports": " ".join(sorted(heavy))})
    table = pd.DataFrame(rows).round(4).assign(date=date.today().isoformat())
    table.to_csv(Path(__file__).parent / "results" / "imports.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
