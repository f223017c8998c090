"""Run notebooks without opening them: `python -m helpers.run 01 05 --profile quick -p seed=1`.

A notebook's parameters are the typed literals of its cell tagged `parameters`. The profile's YAML changes them,
and `-p` changes those again; a name or a type that does not fit stops everything before anything runs. Exit codes:
0 all is well, 1 a notebook failed, 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from helpers import kernels, project, report
from helpers.parameters import read_parameters, resolve
from helpers.wording import closest

PACKAGE = Path(__file__).parent
STOP = threading.Event()


@dataclass(frozen=True)
class Job:
    """One notebook with its final parameters and the folder for its results. Introduced in notebook 01."""

    notebook: Path
    params: dict[str, Any]
    changed: dict[str, Any]  # those that differ from the notebook's own defaults
    folder: Path
    fingerprint: str

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f".{self.name}.partial")

    @property
    def failed(self) -> Path:
        return self.folder.with_name(f"{self.name}.failed")


@dataclass
class Outcome:
    """How a job ended: "done", "unchanged", "failed" or "stopped". Introduced in notebook 01."""

    job: Job
    status: str
    seconds: float
    message: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


# --- which notebooks, which folders --------------------------------------------------------------------------------


def all_notebooks() -> list[Path]:
    """The numbered notebooks in order. Introduced in notebook 01."""
    return sorted((project.ROOT / "notebooks").glob("[0-9]*.ipynb"))


def choose_notebooks(names: Sequence[str]) -> list[Path]:
    """Notebooks by number, stem or file name, or "all"; ValueError for an unknown one. Introduced in notebook 01."""
    there = all_notebooks()
    if not there:
        raise ValueError(f"there are no notebooks in {project.ROOT / 'notebooks'}")
    listing = "\n".join(f"  {path.stem}" for path in there)
    chosen: list[Path] = []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        fits = [path for path in there if _fits(path.stem, wanted)]
        if not fits:
            hint = closest(wanted, [p.stem for p in there])
            raise ValueError(f'unknown notebook "{name}"{hint}\nnotebooks:\n{listing}')
        chosen += [path for path in fits if path not in chosen]
    return chosen


def _fits(stem: str, wanted: str) -> bool:
    number = re.match(r"\d+", stem)
    return wanted in (stem, "all") or (wanted.isdigit() and number is not None and int(number[0]) == int(wanted))


def check_profile(profile: str) -> None:
    """ValueError unless params/<profile>/ is there; "defaults" needs no folder. Introduced in notebook 01."""
    there = ["defaults", *sorted(p.name for p in (project.ROOT / "params").glob("*") if p.is_dir())]
    if profile not in there:
        raise ValueError(f'unknown profile "{profile}"{closest(profile, there)}\nprofiles: {", ".join(there)}')


def plan(notebook: Path, profile: str, given: Mapping[str, str], output: Path | None) -> Job:
    """Everything about one execution, decided before anything runs. Introduced in notebook 01."""
    params, standard = resolve(notebook, profile, given)
    defaults = {name: parameter.default for name, parameter in read_parameters(notebook).items()}
    own = {name: value for name, value in params.items() if value != standard[name]}
    # other parameters, other folder: the profile's standard run is never overwritten by a variation of it
    suffix = f"@{_digest(own)[:8]}" if own and output is None else ""
    base = output or project.run_dir(profile, notebook.stem).parent
    changed = {name: value for name, value in params.items() if value != defaults[name]}
    return Job(notebook, params, changed, base / (notebook.stem + suffix), fingerprint(notebook, params))


def fingerprint(notebook: Path, params: Mapping[str, Any]) -> str:
    """Hash of all that decides a result: cells, parameters, package, versions, and the user's data files by date.

    Introduced in notebook 01.
    """
    cells = [(c["cell_type"], "".join(c["source"])) for c in json.loads(notebook.read_bytes())["cells"]]
    package = {str(p.relative_to(PACKAGE)): _digest_of(p) for p in PACKAGE.rglob("*") if _belongs(p)}
    texts = [v for value in params.values() for v in (value if isinstance(value, list) else [value])]
    files = [project.ROOT / v for v in texts if isinstance(v, str) and v and (project.ROOT / v).is_file()]
    dates = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return _digest([cells, dict(params), package, dates, sys.version.split()[0], version("torch")])


def _belongs(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def earlier_results(job: Job) -> dict[str, Any] | None:
    """Results of an earlier whole run with the same fingerprint, else None. Introduced in notebook 01."""
    try:
        results = json.loads((job.folder / "results.json").read_text(encoding="utf-8"))
        same = results["provenance"]["fingerprint"] == job.fingerprint
        whole = all((job.folder / name).is_file() for name in results["provenance"]["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return results if same and whole else None


@contextmanager
def reserved(job: Job) -> Iterator[None]:
    """Hold a job's folder; OSError when it is read-only or another run holds it. Introduced in notebook 01."""
    project.check_writable(job.folder.parent)
    with open(job.folder.with_name(f".{job.name}.lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another run is writing to {job.folder}; wait for it or choose --output") from None
        except OSError:
            pass  # a network file system without locks
        old = job.folder.with_name(f".{job.name}.old")
        if old.exists() and not job.folder.exists():  # killed between the two renames of `swap_in`
            os.replace(old, job.folder)
        yield


def swap_in(job: Job) -> None:
    """Put a whole result in the place of the one before. Introduced in notebook 01."""
    old = job.folder.with_name(f".{job.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if job.folder.exists():
        os.replace(job.folder, old)
    os.replace(job.partial, job.folder)
    for done_with in (old, job.failed, project.kept_beside(job.folder)):
        shutil.rmtree(done_with, ignore_errors=True)


# --- execution -----------------------------------------------------------------------------------------------------


def perform(job: Job, scratch: Path, threads: int | None, bar: bool | dict[str, Any]) -> Outcome:
    """Run a job in its .partial folder; swap in what is whole, keep a failure apart. Introduced in notebook 01."""
    began = time.perf_counter()
    shutil.rmtree(job.partial, ignore_errors=True)
    try:
        if STOP.is_set():
            return Outcome(job, "stopped", 0.0)
        job.partial.mkdir(parents=True)
        notebook = kernels.execute(job.notebook, job.partial, job.changed, scratch, threads, bar)
        results = complete(job, notebook)
        swap_in(job)
    except Exception as error:  # whatever a notebook does, the others still run
        seconds = time.perf_counter() - began
        if STOP.is_set():
            shutil.rmtree(job.partial, ignore_errors=True)
            return Outcome(job, "stopped", seconds)
        shutil.rmtree(job.failed, ignore_errors=True)
        if job.partial.exists():
            os.replace(job.partial, job.failed)
        return Outcome(job, "failed", seconds, explain(job, error))
    return Outcome(job, "done", time.perf_counter() - began, metrics=results["metrics"])


def complete(job: Job, notebook: Any) -> dict[str, Any]:
    """Check results.json, add fingerprint and files to it, write report.html. Introduced in notebook 01."""
    import nbformat

    path = job.partial / "results.json"
    if not path.is_file():
        raise ValueError("it wrote no results.json: its last cell must call `run.save_results(...)`")
    results = json.loads(path.read_text(encoding="utf-8"))
    if not {"metrics", "params", "provenance"} <= set(results):
        raise ValueError("its results.json was not written by `run.save_results(...)`")
    notebook.metadata.papermill |= {"input_path": f"notebooks/{job.notebook.name}", "output_path": "notebook.ipynb"}
    project.write_atomic(job.partial / "notebook.ipynb", nbformat.writes(notebook))
    project.write_atomic(job.partial / "report.html", report.to_html(notebook, job.name))
    files = sorted(str(p.relative_to(job.partial)) for p in job.partial.rglob("*") if p.is_file())
    results["provenance"] |= {"fingerprint": job.fingerprint, "files": files}
    project.write_atomic(path, json.dumps(results, indent=2, allow_nan=False) + "\n")
    return results


def explain(job: Job, error: Exception) -> str:
    """One screen: which cell, which cause, where the partly executed copy is.

    Introduced in notebook 01.
    """
    cell, cause = "", [f"{type(error).__name__}: {error}"]
    if hasattr(error, "ename"):
        cell = _cell_label(error.exec_count, error.source)
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(error.traceback)).splitlines()
        text = [line for line in text if line.strip("- ")]
        cause = [f"{error.ename}: {error.evalue}", *text[-16:-1]]
    elif type(error).__name__ == "DeadKernelError":
        cell = _last_started(job.failed / "notebook.ipynb")
        cause = ["the kernel died: most often the memory was used up (choose a smaller profile or data set)"]
    elif isinstance(error, ValueError):
        cause = [str(error)]
    shown = "\n".join(f"    {line[:160]}" for line in cause[:20])
    return f"{job.name} failed{cell}\n{shown}\n  partly executed copy: {_shown(job.failed / 'notebook.ipynb')}"


def _cell_label(count: int | None, source: str) -> str:
    return f' in cell In [{count}], "{(source.strip().splitlines() or [""])[0][:90]}"'


def _last_started(copy: Path) -> str:
    cells = json.loads(copy.read_text())["cells"] if copy.is_file() else []
    code = [c for c in cells if c["cell_type"] == "code" and c["metadata"].get("papermill", {}).get("start_time")]
    return _cell_label(len(code), "".join(code[-1]["source"])) if code else ""


def run_all(jobs: Sequence[Job], at_once: int, force: bool) -> list[Outcome]:
    """Run jobs, `at_once` at a time; KeyboardInterrupt ends them all cleanly. Introduced in notebook 01."""
    for job in jobs if force else ():
        shutil.rmtree(project.kept_beside(job.folder), ignore_errors=True)
    earlier = {} if force else {job.name: found for job in jobs if (found := earlier_results(job))}
    outcomes = {name: _unchanged(job, earlier[name]) for job in jobs if (name := job.name) in earlier}
    todo = [job for job in jobs if job.name not in earlier]
    threads = max(1, _cores() // at_once) if at_once > 1 else None
    with kernels.home() as scratch, ThreadPoolExecutor(at_once) as pool, _overall_bar(todo, at_once) as overall:
        waiting = [pool.submit(perform, job, scratch, threads, at_once == 1 and _bar(job)) for job in todo]
        try:
            for future in as_completed(waiting):
                outcomes[future.result().job.name] = future.result()
                overall.update(1)
                if future.result().message:
                    overall.write(f"\n{future.result().message}\n", file=sys.stderr)
        except KeyboardInterrupt:
            _stop(waiting)
            raise
    return [outcomes[job.name] for job in jobs]


def _bar(job: Job) -> dict[str, Any]:
    return {"desc": job.name, "bar_format": "{desc} {bar:24} {n_fmt}/{total_fmt} cells [{elapsed}]"}


def _overall_bar(jobs: Sequence[Job], at_once: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=len(jobs), unit="notebook", desc=f"{at_once} at a time", disable=at_once == 1 or not jobs)


def _unchanged(job: Job, results: dict[str, Any]) -> Outcome:
    return Outcome(job, "unchanged", results["provenance"]["wall_seconds"], metrics=results["metrics"])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stop(waiting: Sequence[Any]) -> None:
    import psutil

    STOP.set()
    for future in waiting:
        future.cancel()
    while not all(future.done() for future in waiting):  # a kernel may just be starting: ask again
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        time.sleep(0.1)


# --- the command line ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m helpers.run`; returns the exit code. Introduced in notebook 01."""
    options = _parser().parse_args(arguments)
    STOP.clear()
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill ends as Ctrl-C does
    try:
        if options.list_parameters:
            return _print_parameters(choose_notebooks(options.notebooks))
        with ExitStack() as held:
            jobs = _prepared(options, held)
            outcomes = run_all(jobs, options.jobs, options.force)
    except (ValueError, OSError) as error:
        print(f"error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished notebooks are kept, long sweeps of unfinished ones continue", file=sys.stderr)
        return 130
    print(summary(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers.run", description="Run notebooks and keep results.")
    parser.add_argument("notebooks", nargs="+", help='numbers or names of notebooks, or "all"')
    parser.add_argument("--profile", default="quick", help="folder of params/ to use (default: quick)")
    parser.add_argument("-p", dest="given", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write to DIR/<notebook>/, not runs/<profile>/")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks to run at the same time")
    parser.add_argument("--force", action="store_true", help="run again what has not changed")
    parser.add_argument("--list-parameters", action="store_true", help="print names, types, defaults and exit")
    return parser


def _prepared(options: argparse.Namespace, held: ExitStack) -> list[Job]:
    """All jobs, checked; their folders are held until `held` closes. Raises before anything runs."""
    if options.jobs < 1:
        raise ValueError("--jobs needs a number of at least 1")
    check_profile(options.profile)
    if wrong := [text for text in options.given if "=" not in text]:
        raise ValueError(f"-p {wrong[0]}: write -p NAME=VALUE")
    given = dict(text.split("=", 1) for text in options.given)
    jobs, faults = [], []
    for notebook in choose_notebooks(options.notebooks):
        try:
            jobs.append(plan(notebook, options.profile, given, options.output))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join([*faults, "nothing was executed"]))
    for job in jobs:
        held.enter_context(reserved(job))
    return jobs


def _print_parameters(notebooks: Sequence[Path]) -> int:
    for notebook in notebooks:
        print(notebook.stem, *read_parameters(notebook).values(), sep="\n")
    return 0


def summary(outcomes: Sequence[Outcome]) -> str:
    """Table of notebook, seconds, first three metrics, report and status. Introduced in notebook 01."""
    rows = [("notebook", "seconds", "headline metrics", "report", "status")]
    for done in outcomes:
        metrics = ", ".join(f"{name} {_brief(value)}" for name, value in list(done.metrics.items())[:3])
        page = "-" if done.status == "failed" else _shown(done.job.folder / "report.html")
        rows.append((done.job.name, f"{done.seconds:.0f}", metrics or "-", page, done.status))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _brief(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _shown(path: Path) -> str:
    """A path as one would type it here: relative when it lies below the present folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
