"""What there is to predict: tasks found in the annotation (`obs`) of the samples, and their labels.

Introduced in notebook 02.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.splits import column_of
from helpers.wording import closest, few

MAX_CLASSES = 10  # whole numbers with more distinct values are taken for measurements
TIME = re.compile(r"(.+?)[_.](months|days|years|time)", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """Something to predict: one column of obs, or for survival the columns of time and event.

    `kind` is "classification", "regression" or "survival". Introduced in notebook 02.
    """

    name: str
    kind: str
    columns: tuple[str, ...]


def find_tasks(
    obs: pd.DataFrame,
    columns: Iterable[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    survival: Mapping[str, Sequence[str]] | None = None,
    scored_on: str = "test",
) -> list[Task]:
    """The tasks in `obs` [n_obs, ...], which has the column "split".

    - `columns`: names of columns or of survival tasks; None takes every column but "split".
    - `kinds`: column -> "classification" or "regression" where detection is wrong. Text, categories, truth values
      and whole numbers with at most `MAX_CLASSES` distinct values are classes; other numbers are measurements.
    - `survival`: name -> (time, event), event 1 or True where it was seen. None finds them by name:
      "os_months" and "os_event" make the task "os", "survival_months" and "event" the task "survival" (days, years
      and time as well). Their columns are no tasks of their own then, unless `columns` or `kinds` name them.

    What cannot be scored (one class, a constant, no label, no event, dates) is left out with a warning, and is a
    ValueError where it was named. Raises ValueError for unknown names and kinds, and where no task is left.
    Introduced in notebook 02.
    """
    if "split" not in obs:
        raise ValueError("tasks: obs has no column 'split'; run prepare.split first")
    pairs, kinds = _survival_pairs(obs) if survival is None else _checked_pairs(obs, survival), dict(kinds or {})
    named = {*kinds, *(survival or {})}
    if columns is None:
        taken = {"split", *(column for pair in pairs.values() for column in pair)} - set(kinds)
        columns = [*(c for c in obs.columns if c not in taken), *pairs]
    else:
        columns = list(dict.fromkeys([columns] if isinstance(columns, str) else columns))
        named.update(columns)
    _check_kinds(kinds, columns, obs)
    tasks = [_task(obs, name, kinds.get(name), pairs) for name in columns]
    problems = {task.name: text for task in tasks if (text := _problem(obs, task, scored_on))}
    for name in (name for name in problems if name in named):
        raise ValueError(f"tasks: '{name}' cannot be scored: {problems[name]}")
    if len(problems) == len(tasks):
        raise ValueError(f"tasks: no column can be scored: {_listed(problems) or 'there is none'}")
    if problems:
        warnings.warn(f"tasks: left out {_listed(problems)}", stacklevel=2)
    return [task for task in tasks if task.name not in problems]


def labels(obs: pd.DataFrame, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Values of a task, class names or numbers [n_obs] or time and event [n_obs, 2], and which are known [n_obs].

    Raises ValueError for numbers that are no numbers. Introduced in notebook 02.
    """
    table = obs[list(task.columns)]
    known = table.notna().all(axis=1).to_numpy()
    if task.kind == "classification":
        return table.iloc[:, 0].astype(str).to_numpy(dtype=str), known
    values = [pd.to_numeric(table[c].astype(object), errors="raise").to_numpy(float, na_value=np.nan) for c in table]
    return np.column_stack(values) if task.kind == "survival" else values[0], known


def _survival_pairs(obs: pd.DataFrame) -> dict[str, tuple[str, str]]:
    pairs = {}
    for time in obs.columns:
        if match := TIME.fullmatch(str(time)):
            stem = match[1]
            events = [f"{stem}_event", f"{stem}.event", *(["event"] if stem.lower() == "survival" else [])]
            if event := next((name for name in events if name in obs), None):
                pairs[stem] = (time, event)
    return pairs


def _checked_pairs(obs: pd.DataFrame, survival: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    for name, pair in survival.items():
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"tasks: survival['{name}'] must be the columns (time, event), not {pair!r}")
        for column in pair:
            column_of(obs, column)
    return {name: tuple(pair) for name, pair in survival.items()}


def _check_kinds(kinds: Mapping[str, str], columns: Sequence[str], obs: pd.DataFrame) -> None:
    for name, kind in kinds.items():
        if kind not in ("classification", "regression"):
            hint = f"; give survival={{'{name}': (time, event)}}" if kind == "survival" else ""
            raise ValueError(f"tasks: kinds['{name}'] is '{kind}', not 'classification' or 'regression'{hint}")
        if name not in columns:
            raise ValueError(f"tasks: kinds names '{name}', which is no task here{closest(name, columns)}")


def _task(obs: pd.DataFrame, name: str, kind: str | None, pairs: Mapping[str, tuple[str, str]]) -> Task:
    if name in pairs and kind is None:
        return Task(name, "survival", pairs[name])
    if name not in obs or name == "split":
        known = [c for c in (*obs.columns, *pairs) if c != "split"]
        raise ValueError(f"tasks: there is no '{name}' to predict{closest(name, known)}; there are {few(known)}")
    return Task(name, kind or _kind_of(obs[name]), (name,))


def _kind_of(values: pd.Series) -> str:
    types, known = pd.api.types, values.dropna()
    if known.dtype == object:
        known = known.infer_objects()
    if types.is_datetime64_any_dtype(known) or types.is_timedelta64_dtype(known):
        return "dates"
    if not types.is_numeric_dtype(known) or types.is_bool_dtype(known):
        return "classification"
    distinct = set(known.to_numpy(float))
    return "classification" if len(distinct) <= MAX_CLASSES and all(v.is_integer() for v in distinct) else "regression"


def _problem(obs: pd.DataFrame, task: Task, scored_on: str) -> str | None:
    """Why the task cannot be scored, if it cannot."""
    if task.kind == "dates":
        return "it holds dates; turn them into numbers first"
    try:
        y, known = labels(obs, task)
    except (ValueError, TypeError):
        return "its values are not numbers"
    if task.kind != "classification" and not np.isfinite(y[known]).all():
        return "it has infinite values"
    split = obs["split"].astype(str).to_numpy()
    parts = {name: y[known & (split == name)] for name in dict.fromkeys(["train", scored_on])}
    for name, part in parts.items():
        if not len(part):
            return f"no sample of the {name} split has a label"
        if text := _survival_problem(part) if task.kind == "survival" else _constant(part, task.kind):
            return f"{text} in the {name} split"
    if task.kind == "classification" and len(set.intersection(*map(set, parts.values()))) < 2:
        return f"the train and {scored_on} splits share fewer than two classes"
    return None


def _constant(y: np.ndarray, kind: str) -> str | None:
    if len(set(y)) > 1:
        return None
    return f"there is one class ({y[0]})" if kind == "classification" else f"the value is constant ({y[0]:g})"


def _survival_problem(y: np.ndarray) -> str | None:
    if not np.isin(y[:, 1], (0, 1)).all():
        return "events other than 0 and 1 are"
    if (y[:, 0] < 0).any():
        return "negative times are"
    return None if y[:, 1].any() else "there are no events"


def _listed(problems: Mapping[str, str]) -> str:
    return "; ".join(f"'{name}' ({text})" for name, text in problems.items())
