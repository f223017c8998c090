"""Optuna studies in a database: opened with clear errors, resumed after a kill, shared by several processes.

Every trial has a place, 0 … n_trials - 1. What it proposes depends on the seed, its place and the trials that have
finished, so that a study that was killed goes on as if it had not been: a lost trial is done again at its place.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import project

STARTUP = 5  # complete trials before any is pruned
POLL, HEARTBEAT, GRACE = 0.5, 30, 120  # seconds between looks, between signs of life, until a silent trial is lost
LOCK_SECONDS = 60.0  # how long to wait for another process that writes to the same SQLite file
OPENINGS = 20  # attempts to open a database that another process is just making
MOST_LOSSES = 2  # a trial that was lost so often, say for want of memory, is given up


@contextlib.contextmanager
def opened(storage: str | Path | None, name: str, record: Mapping[str, str], seed: int) -> Iterator[tuple]:
    """The Optuna study of that name, made where it is not there, and what to call its storage.

    Inside the block Optuna is quiet, and the database's errors are clear.

    `storage`: SQLite file, database URL, or None for `tuning.db` in the folder that `project.kept_beside` names.
    `record`: what decides the results, as texts; kept in the study and compared. Raises `ValueError` where the study
    was made with something else or the storage is no database, `OSError` where that is locked or out of reach.
    Introduced in notebook 02.
    """
    import optuna

    url, verbosity = database(storage), optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings(), clear_errors(url):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            yield load(connect(url), name, dict(record), seed, hidden(url)), hidden(url)
    finally:
        optuna.logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- the database


def database(storage: str | Path | None) -> str:
    """A file or URL as URL; makes the file's folder.

    Raises `ValueError` for what is no URL, for missing drivers and databases in memory, `OSError` for folders that
    cannot be written to. Introduced in notebook 02.
    """
    import sqlalchemy as sa

    if "://" not in str(storage):
        return sa.URL.create("sqlite", database=str(sqlite_file(storage))).render_as_string()
    try:
        url = sa.make_url(str(storage))
        url.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ValueError(
            f"storage {hidden(str(storage))} cannot be used ({error}): give an SQLite file, or a URL such as "
            "postgresql+psycopg://user@host/database with its driver installed"
        ) from error
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("a study in memory could be neither resumed nor shared: give an SQLite file")
    return str(storage)


def sqlite_file(path: str | Path | None) -> Path:
    """Absolute path of the study's file, in a folder that exists and outlives the run."""
    run = os.environ.get("WORKBOOK_RUN_DIR")
    if path is None:
        path = project.kept_beside(Path(run) if run else project.run_dir("explore", "tuning")) / "tuning.db"
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        raise ValueError(f"storage {path} is a folder: name a file in it, such as {path.name}/tuning.db")
    if run and path.is_relative_to(Path(run).resolve()):
        raise ValueError(f"{path} lies in the folder of this run, cleared before the next: give run.kept / 'tuning.db'")
    project.check_writable(path.parent)
    return path


def hidden(url: str) -> str:
    """What to show of a URL: an SQLite file's path, otherwise all but the password. Introduced in notebook 02."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return repr(url.split("@")[-1])
    return parsed.database if parsed.get_backend_name() == "sqlite" else parsed.render_as_string(hide_password=True)


@contextlib.contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Errors of the database as one sentence: `OSError` where waiting or another place helps, else `ValueError`."""
    import optuna
    import sqlalchemy as sa

    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, sa.exc.SQLAlchemyError) else error.__cause__
        reason, place = str(getattr(cause, "orig", cause)).strip(), hidden(url)
        if "locked" in reason:
            raise OSError(
                f"the study's file {place} stayed locked for {LOCK_SECONDS:g} s: close the program that has it open "
                "and call again, or give another file; many processes, or a network file system, need a PostgreSQL URL"
            ) from error
        if "not a database" in reason or "malformed" in reason:
            raise ValueError(f"{place} is no SQLite database, or damaged: give another file, or delete it") from error
        raise OSError(f"the study's storage {place} cannot be used: {reason}") from error


def connect(url: str) -> Any:
    """An Optuna storage with heartbeats; SQLite waits for other writers."""
    import optuna
    import sqlalchemy as sa

    options = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {}
    for attempt in range(OPENINGS):
        try:
            return optuna.storages.RDBStorage(
                url,
                options,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=lambda study, trial: do_again(study, trial, lost=True),
            )
        except (sa.exc.OperationalError, sa.exc.IntegrityError) as error:
            made_at_once = isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error)
            if not made_at_once or attempt == OPENINGS - 1:
                raise
            time.sleep(0.1)


def load(backend: Any, name: str, record: dict[str, str], seed: int, place: str) -> Any:
    """The study of that name; one that never got a trial to its end is made anew, if it had another record."""
    import optuna

    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP)
    options = {"storage": backend, "study_name": name, "sampler": sampler(seed, 0), "pruner": pruner}
    study = optuna.create_study(**options, direction="minimize", load_if_exists=True)
    trials = study.get_trials(deepcopy=False)  # read first: whoever made trials had set the record before
    there = study.user_attrs.get("made_with")
    if there == record:
        return study
    if any(t.state.name not in ("FAIL", "WAITING") for t in trials) or (trials and there is None):
        raise ValueError(
            f"study {name!r} in {place} was made with other {differences(there or {}, record)}. "
            "Give the same ones to continue it, or another name= or storage"
        )
    if trials:
        optuna.delete_study(study_name=name, storage=backend)
        study = optuna.create_study(**options, direction="minimize", load_if_exists=True)
    study.set_user_attr("made_with", record)
    return study


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first three entries that differ, in words."""
    names = [k for k in dict.fromkeys([*there, *here]) if there.get(k) != here.get(k)]
    shown = [f"{k} ({there.get(k, 'nothing')} there, {here.get(k, 'nothing')} here)" for k in names[:3]]
    return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------- the work


@dataclass(frozen=True)
class Placed:
    """An objective whose proposals depend on the trial's place; called by Optuna with a trial."""

    objective: Callable[[Any], float]
    n_trials: int
    seed: int

    def __call__(self, trial: Any) -> float | None:
        """The trial's value; None where another process took its place a moment earlier."""
        import optuna

        trial.set_user_attr("worker", worker())
        trials = trial.study.get_trials(deepcopy=False)
        place = place_of(trial, trials)
        if place >= self.n_trials or is_twin(trial, trials):
            return trial.set_user_attr("surplus", True)
        trial.study.sampler = sampler(self.seed, place)
        try:
            return self.objective(trial)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except (Exception, KeyboardInterrupt):
            do_again(trial.study, trial, lost=False)
            raise


def work_on(
    study: Any,
    objective: Callable[[Any], float],
    n_trials: int,
    seed: int,
    timeout: float | None = None,
    progress: bool | None = None,
) -> None:
    """Run trials until the study has `n_trials` (complete, pruned, or given up), counting those of other processes.

    Waits for trials that others still run, and takes over those that were lost. No trial begins after `timeout`
    seconds. What the objective raises passes on, and its trial is done again by the next call. Introduced in notebook
    02.
    """
    began, unsigned = time.monotonic(), {}
    with bar_over(n_trials, progress) as bar:
        while timeout is None or time.monotonic() - began < timeout:
            take_back(study, unsigned)
            trials = study.get_trials(deepcopy=False)
            show(bar, trials)
            states = {t.state.name for t in trials}
            if len(first_tries(trials)) < n_trials or "WAITING" in states:
                run_one(study, Placed(objective, n_trials, seed))
            elif "RUNNING" in states:
                time.sleep(POLL)
            else:
                break


def run_one(study: Any, objective: Placed) -> None:
    """One trial, unless another process has meanwhile taken it for lost (a machine that slept)."""
    try:
        study.optimize(objective, n_trials=1)
    except ValueError as error:
        if not str(error).startswith("Cannot tell a"):
            raise


def first_tries(trials: Sequence[Any]) -> list[Any]:
    """Trials that hold a place of their own: neither repetitions nor surplus."""
    return [t for t in trials if not {"repeats", "surplus"} & set(t.user_attrs)]


def place_of(trial: Any, trials: Sequence[Any]) -> int:
    """How many first tries came before this one, or before the one that it repeats."""
    number = trial.user_attrs.get("repeats", trial.number)
    return sum(t.number < number for t in first_tries(trials))


def is_twin(trial: Any, trials: Sequence[Any]) -> bool:
    """Whether two processes queued the same lost trial at once, and this is the later of the two."""
    mine = [trial.user_attrs.get(key) for key in ("repeats", "lost")]
    alike = [t for t in trials if "repeats" in t.user_attrs and [t.user_attrs["repeats"], t.user_attrs["lost"]] == mine]
    return any(t.number < trial.number and t.state.name != "FAIL" for t in alike)


def sampler(seed: int, place: int) -> Any:
    """Multivariate TPE with random numbers of its own for every place; trials that run elsewhere count as bad."""
    import numpy as np
    import optuna

    own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=True)


def do_again(study: Any, trial: Any, lost: bool) -> None:
    """Queue a trial's hyperparameters once more, at its place; not where it was lost too often."""
    import optuna

    attributes = trial.user_attrs
    n_lost = attributes.get("lost", 0) + lost
    if n_lost < MOST_LOSSES:
        first = attributes.get("repeats", trial.number)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"repeats": first, "lost": n_lost},
            )
        )


def take_back(study: Any, unsigned: dict[int, float]) -> None:
    """Fail the running trials of processes that are gone, and queue them again.

    A process of this machine is looked up; of others, Optuna's heartbeats tell. `unsigned`: when trials were first seen
    that no process has signed, as happens to one killed in between.
    """
    import optuna

    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        signed = trial.user_attrs.get("worker")
        since = time.monotonic() - unsigned.setdefault(trial.number, time.monotonic())
        if is_gone(signed) if signed else since > GRACE:
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another was faster
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                do_again(study, trial, lost=True)


def worker() -> list:
    """This process: machine (with its container's process names) and number."""
    names = Path("/proc/self/ns/pid")
    return [f"{platform.node()} {os.readlink(names) if names.exists() else ''}", os.getpid()]


def is_gone(signed: Sequence) -> bool:
    """Whether a process of this machine has ended; our own has no trial in the works while it asks."""
    import psutil

    machine, number = signed
    return machine == worker()[0] and (number == os.getpid() or not psutil.pid_exists(number))


def bar_over(n_trials: int, progress: bool | None) -> Any:
    """A progress bar; by default in interactive use only."""
    from tqdm.auto import tqdm

    shown = "WORKBOOK_RUN_DIR" not in os.environ if progress is None else progress
    return tqdm(total=n_trials, disable=not shown, leave=False, unit="trial", smoothing=0)


def show(bar: Any, trials: Sequence[Any]) -> None:
    """Move the bar to the finished trials, with the best value so far."""
    bar.n = sum(t.state.name in ("COMPLETE", "PRUNED") for t in trials)
    values = [t.value for t in trials if t.state.name == "COMPLETE"]
    bar.set_postfix({"best": f"{min(values):.5g}"} if values else {})
