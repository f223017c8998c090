"""Papermill in kernels of this very interpreter, whatever Jupyter kernels the user has installed."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import project

PACKAGE = Path(__file__).parent


@contextmanager
def home() -> Iterator[Path]:
    """A temporary folder for kernel descriptions, known to Jupyter while the context lasts.

    Introduced in notebook 01.
    """
    names = ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="workbook-", ignore_cleanup_errors=True) as folder:
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before["JUPYTER_PATH"]]))
        os.environ["JUPYTER_RUNTIME_DIR"] = str(Path(folder) / "runtime")
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def execute(
    notebook: Path,
    folder: Path,
    params: Mapping[str, Any],
    scratch: Path,
    threads: int | None = None,
    bar: bool | dict[str, Any] = False,
) -> Any:
    """Run a notebook in a kernel of its own; `folder/notebook.ipynb` is kept up to date. Returns the executed node.

    `scratch` comes from `home`, `threads` limits the kernel's processors, `bar` are options for tqdm. Raises
    papermill's PapermillExecutionError for a failing cell, nbclient's DeadKernelError for a killed kernel.
    Introduced in notebook 01.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it tells twice what is raised

    return papermill.execute_notebook(
        _literal(notebook),
        _literal(folder / "notebook.ipynb"),
        dict(params),
        kernel_name=_describe(folder, scratch, threads),
        language="python",
        progress_bar=bar,
        resources={"metadata": {"path": str(project.ROOT)}},  # the kernel's folder; `cwd` would move this process
    )


def _literal(path: Path) -> str:
    return str(path.resolve()).replace("{", "{{").replace("}", "}}")  # papermill formats paths


def _describe(folder: Path, scratch: Path, threads: int | None) -> str:
    """Write the description of a kernel that writes to `folder`; returns the kernel's name."""
    name = f"workbook-{len(list(scratch.glob('kernels/*')))}-{os.urandom(4).hex()}"
    env = {key: value.replace("$", "$$") for key, value in _environment(folder, scratch / name, threads).items()}
    quiet = "--IPKernelApp.log_level=50"  # what goes wrong in a cell is in the notebook
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
    spec = {"argv": command, "display_name": name, "language": "python", "env": env}  # jupyter expands ${NAME}
    project.write_atomic(scratch / "kernels" / name / "kernel.json", json.dumps(spec))
    return name


def _environment(folder: Path, profile: Path, threads: int | None) -> dict[str, str]:
    fixed = {
        "WORKBOOK_RUN_DIR": str(folder.resolve()),
        "WORKBOOK_ROOT": str(project.ROOT),
        "PYTHONHASHSEED": "0",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning threads starve each other
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(profile),  # nobody's start-up files
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # or the kernel prints a warning about frozen modules
    }
    limited = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA") if threads else ()
    return fixed | {f"{name}_NUM_THREADS": str(threads) for name in limited}
