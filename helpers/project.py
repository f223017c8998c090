"""Where things are, which device is used, and what a run writes down; nothing about omics."""

from __future__ import annotations

import ast
import errno
import io
import json
import math
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(os.environ.get("WORKBOOK_ROOT") or Path(__file__).parents[1]).resolve()
VERDICTS = ("holds", "holds in part", "does not hold here", "cannot be tested")
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "anndata", "mudata")


def data_dir() -> Path:
    """Folder of downloaded data: the environment variable WORKBOOK_DATA, else the user's cache.

    Introduced in notebook 01.
    """
    if chosen := os.environ.get("WORKBOOK_DATA"):
        return Path(chosen).expanduser().resolve()
    import pooch

    return Path(pooch.os_cache("multiomics-workbook"))


def run_dir(profile: str, stem: str) -> Path:
    """Folder that holds what notebook `stem` writes under a profile. Introduced in notebook 01."""
    return ROOT / "runs" / profile / stem


def kept_beside(folder: Path) -> Path:
    """Folder beside that of a run for pieces of long work (sweeps, tuning). It outlives a killed run, so that the
    next one continues; the runner removes it once a run is whole. Introduced in notebook 02.
    """
    name = folder.name.removeprefix(".").removesuffix(".partial")
    return folder.with_name(f".{name}.kept")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device). Introduced in notebook 01."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str | Any = "auto") -> Any:
    """The `torch.device` called "auto" (CUDA, then Apple MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises ValueError when that device is not there. Introduced in notebook 01.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if str(name) == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind, _, index = str(name).partition(":")
    if kind not in there or (index and not index.isdigit()):
        raise ValueError(f'unknown device "{name}": choose "auto", "cpu", "cuda" or "mps"')
    if not there[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        found = ", ".join(k for k, yes in there.items() if yes)
        raise ValueError(f'device "{name}" is not on this machine (found: {found}); use device="auto"')
    return torch.device(str(name))


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file so that it is either whole or not there: temporary file beside it, fsync, rename.

    Text is written as UTF-8; missing folders are made. Raises OSError with one sentence (full disk, read-only
    folder) and then leaves the folder as it was. Introduced in notebook 01.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    content = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        shown = path.parent if path.name.startswith(".writable-") else path
        raise OSError(error.errno, f"cannot write {shown}: {_why(error)}") from error
    finally:
        if os.path.lexists(temporary):
            temporary.unlink()


def check_writable(folder: Path) -> None:
    """Make a folder; raise OSError with one sentence when it cannot be written to. Introduced in notebook 01."""
    probe = folder / f".writable-{secrets.token_hex(4)}"
    write_atomic(probe, "")
    probe.unlink()


def _why(error: OSError) -> str:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EACCES: "this folder may not be written to; choose another or change its permissions",
        errno.EPERM: "this folder may not be written to; choose another or change its permissions",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EEXIST: "a part of this path is a file, not a folder",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


def parameter_cell(notebook: str | Path) -> str:
    """Source of the one cell tagged `parameters` in a notebook file.

    Raises FileNotFoundError without the notebook, ValueError when it is no notebook or has not exactly one
    such cell. Introduced in notebook 01.
    """
    path = Path(notebook)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("[0-9]*.ipynb"))) or "none"
        raise FileNotFoundError(f"there is no notebook {path}; notebooks there: {known}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook of format 4: {error}") from error
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{path.name} needs exactly one cell tagged `parameters`, and has {len(tagged)}")
    return tagged[0]


def start(stem: str, namespace: Mapping[str, Any]) -> Run:
    """Begin a notebook's run: `run = project.start("01_beta_tradeoff", globals())`.

    Reads the present values of the notebook's parameters, checks that the output folder can be written to,
    picks the device that the parameter `device` names, and starts the clock. The folder is the
    runner's, or `runs/explore/<stem>` when one works by hand. Introduced in notebook 01.
    """
    statements = ast.parse(parameter_cell(ROOT / "notebooks" / f"{stem}.ipynb")).body
    names = [s.target.id for s in statements if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    if missing := [name for name in names if name not in namespace]:
        raise ValueError(f"run the parameters cell first: {', '.join(missing)} not defined")
    params = {name: namespace[name] for name in names}
    folder = Path(os.environ.get("WORKBOOK_RUN_DIR") or run_dir("explore", stem))
    check_writable(folder)
    return Run(stem, folder, params, pick_device(params.get("device", "auto")))


@dataclass
class Run:
    """What one execution of a notebook writes to `folder`; made by `start`. Introduced in notebook 01."""

    stem: str
    folder: Path
    params: dict[str, Any]
    device: Any
    started: float = field(default_factory=time.perf_counter)
    figures: dict[str, str | None] = field(default_factory=dict)  # file stem -> alternative text

    @property
    def kept(self) -> Path:
        """Folder for pieces of long work, see `kept_beside`."""
        return kept_beside(self.folder)

    def figure(self, fig: Any, what: str, alt: str | None = None) -> None:
        """Save a matplotlib figure as `figures/NN_what.png` and `.svg`, then show it (once) and close it.

        NN counts up; the same `what` keeps its number. `alt` says in words what the figure shows.
        """
        _check_slug(what, "figure")
        number = next((k for k, name in enumerate(self.figures) if name[3:] == what), len(self.figures))
        name = f"{number + 1:02d}_{what}"
        png = _rendered(fig, "png", {"Description": alt} if alt else {})
        write_atomic(self.folder / "figures" / f"{name}.png", png)
        write_atomic(self.folder / "figures" / f"{name}.svg", _rendered(fig, "svg", {"Date": None, "Description": alt}))
        self.figures[name] = alt
        _show_once(fig, png, alt)

    def table(self, table: Any, name: str) -> None:
        """Save a pandas DataFrame as `tables/name.csv`; an index that only counts rows is left out."""
        _check_slug(name, "table")
        counts_rows = table.index.name is None and list(table.index) == list(range(len(table)))
        write_atomic(self.folder / "tables" / f"{name}.csv", table.to_csv(index=not counts_rows))

    def save_results(
        self,
        metrics: Mapping[str, float],
        claims: Iterable[Mapping[str, str]] | None = None,
        mdata: Any = None,
    ) -> None:
        """Write `results.json`: metrics (name -> number), verdicts on claims, parameters and provenance.

        A metric that is NaN or infinite becomes null and is named in `not_finite`. A claim is {"id": "A1",
        "verdict": one of `VERDICTS`, "evidence": "..."}. `mdata.uns["dataset"]` tells the data and its hash.
        Raises ValueError for a metric that is no number and for a claim with another verdict.
        """
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        results = {
            "metrics": {name: v if math.isfinite(v) else None for name, v in numbers.items()},
            "not_finite": [name for name, v in numbers.items() if not math.isfinite(v)],
            "claims": _checked_claims(claims or []),
            "params": _plain(self.params),
            "figures": [{"file": f"figures/{name}.png", "alt": alt} for name, alt in self.figures.items()],
            "provenance": self._provenance(mdata),
        }
        write_atomic(self.folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")

    def _provenance(self, mdata: Any) -> dict[str, Any]:
        data = dict(mdata.uns.get("dataset", {})) if mdata is not None else {}
        return {
            "notebook": self.stem,
            "git": _git_state(),
            "versions": _versions(),
            "data": {
                "name": str(data.get("name") or self.params.get("dataset") or "") or None,
                "sha256": str(data.get("sha256") or "") or None,
            },
            "seed": _plain(self.params.get("seed")),
            "device": _device_name(self.device),
            "wall_seconds": round(time.perf_counter() - self.started, 2),
            **_peak_memory(self.device),
            "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu_count": os.cpu_count(),
        }


def _check_slug(name: str, kind: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f'"{name}" cannot name a {kind}: use letters, digits, "_" and "-"')


def _rendered(fig: Any, kind: str, metadata: dict[str, str | None]) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "workbook"}):  # the same figure gives the same file
        fig.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _show_once(fig: Any, png: bytes, alt: str | None) -> None:
    import matplotlib.pyplot as plt

    plt.close(fig)  # or the inline backend would show it a second time
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import Image, display

        display(Image(data=png, alt=alt, width=round(100 * fig.get_figwidth())))


def _number(name: str, value: Any) -> float | int:
    if not isinstance(name, str) or not name:
        raise ValueError(f"metrics are named by text, not {name!r}")
    try:
        value = value.item() if hasattr(value, "item") else value  # numpy scalars, 0-d arrays and tensors
    except (ValueError, RuntimeError):  # more than one element: told below
        pass
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'metric "{name}" must be one number, not {type(value).__name__} ({value!r:.60})')
    return value


def _checked_claims(claims: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    checked = [dict(claim) for claim in claims]
    for claim in checked:
        if set(claim) != {"id", "verdict", "evidence"}:
            raise ValueError(f"a claim has id, verdict and evidence, not {sorted(claim)}")
        if claim["verdict"] not in VERDICTS:
            options = ", ".join(f'"{v}"' for v in VERDICTS)
            raise ValueError(f'claim {claim["id"]}: verdict "{claim["verdict"]}" is none of {options}')
        if not str(claim["evidence"]).strip():
            raise ValueError(f"claim {claim['id']}: a verdict needs evidence, one sentence with its numbers")
    ids = [claim["id"] for claim in checked]
    if repeated := sorted({k for k in ids if ids.count(k) > 1}):
        raise ValueError(f"claims judged twice: {', '.join(repeated)}")
    return checked


def _plain(value: Any) -> Any:
    """The same value in JSON's types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _git_state() -> dict[str, Any]:
    """Commit of the workbook and whether files differ from it; nulls where it is not a git checkout."""
    try:
        top = _git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != ROOT:  # a folder inside somebody else's repository
            return {"commit": None, "dirty": None}
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _device_name(device: Any) -> str:
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _peak_memory(device: Any) -> dict[str, float | None]:
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cuda = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "peak_memory_mb": round(peak / 2**20, 1),
        "peak_cuda_memory_mb": None if cuda is None else round(cuda / 2**20, 1),
    }
