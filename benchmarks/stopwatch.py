"""Epoch times and the one line of JSON that every program in this folder ends with. Standard library only."""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence


class Laps:
    """Wall and CPU seconds between successive calls of `lap`; the clock starts on `start`."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.start()

    def start(self) -> None:
        """(Re)start the running lap, e.g. right before training begins."""
        self._last = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """End the running lap and begin the next."""
        now = time.perf_counter(), time.process_time()
        self.wall.append(now[0] - self._last[0])
        self.cpu.append(now[1] - self._last[1])
        self._last = now


def arguments(description: str, epochs: int = 6) -> argparse.ArgumentParser:
    """The options that all programs share: sizes of the run, threads, seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=epochs, help="measured, after a first one that is not")
    parser.add_argument("--n-obs", type=int, help="rows of the simulated matrix")
    parser.add_argument("--n-vars", type=int, default=2000, help="columns of the simulated matrix")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2, help="torch's intra-op threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def report(laps: Laps, n_measured: int, final_loss: float, **facts: object) -> None:
    """Print the result as one line of JSON.

    The first lap is warm-up and is only reported; the next `n_measured` count; anything after them is dropped
    (some tools store results in their last epoch). `final_loss` is the mean training loss per sample of the
    last measured epoch. Raises ValueError if fewer laps were taken.
    """
    if len(laps.wall) < n_measured + 1:
        raise ValueError(f"{n_measured + 1} epochs were wanted, the tool ended {len(laps.wall)}.")
    wall, cpu = laps.wall[1 : n_measured + 1], laps.cpu[1 : n_measured + 1]
    line = facts | {
        "epochs": n_measured,
        "seconds_per_epoch": round(statistics.median(wall), 4),
        "cpu_seconds_per_epoch": round(statistics.median(cpu), 4),
        "seconds_first_epoch": round(laps.wall[0], 4),
        "seconds_each": _rounded(wall),
        "cpu_seconds_each": _rounded(cpu),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "final_loss": round(float(final_loss), 3),
    }
    print(json.dumps(line), flush=True)


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in seconds]
