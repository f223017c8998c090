"""How well an embedding predicts annotation: scores of learners in every task, and performance over random.

Learners are trained on the embedding of the train split and scored on that of the test split. A sample without a
label is left out of that task only. Introduced in notebook 02.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from helpers import learners, project
from helpers.annotation import Task, labels
from helpers.splits import SPLITS
from helpers.wording import closest, few

VERSION = 1  # of the files that `score_all` keeps; raise it when a score changes its meaning
COLUMNS = {
    **dict.fromkeys(["task", "kind", "learner", "metric"], object),
    **dict.fromkeys(["value", "low", "high", "chance"], float),
    **dict.fromkeys(["n_train", "n_test", "n_missing", "n_dimensions"], int),
    "converged": bool,
}


@dataclass(frozen=True)
class Settings:
    """How tasks are scored: the same for all that is compared. Introduced in notebook 02."""

    learners: tuple[str, ...] = learners.LEARNERS
    scored_on: str = "test"
    n_bootstrap: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.learners if name not in learners.LEARNERS]
        if unknown or not self.learners:
            said = f"unknown learner '{unknown[0]}'" if unknown else "no learner is named"
            raise ValueError(f"tasks: {said}; choose from {few(learners.LEARNERS)}")
        if self.scored_on not in SPLITS:
            raise ValueError(f"tasks: scored_on is '{self.scored_on}'; it must be one of {few(SPLITS)}")
        if self.n_bootstrap < 0:
            raise ValueError(f"tasks: n_bootstrap is {self.n_bootstrap}; 0 leaves the intervals out")


# ---------------------------------------------------------------- scores


def score(z: ArrayLike, obs: pd.DataFrame, task: Task, settings: Settings = Settings()) -> list[dict[str, Any]]:
    """One row per learner and metric, with the keys of `COLUMNS`, for an embedding z [n_obs, n_dimensions].

    `value` with its bootstrap interval (`learners.evaluate`), the number of samples with a label, of samples of the
    two splits without one, and whether the learner converged. Survival has the learner "linear" only.
    Introduced in notebook 02.
    """
    z = np.asarray(z, dtype=np.float64)
    y, known = labels(obs, task)
    split = obs["split"].astype(str).to_numpy()
    train, test = (np.flatnonzero(known & (split == name)) for name in ("train", settings.scored_on))
    counts = {"n_train": len(train), "n_test": len(test), "n_dimensions": z.shape[1]}
    counts["n_missing"] = int((~known & np.isin(split, ["train", settings.scored_on])).sum())
    rows = []
    for learner in _learners_of(task, settings):
        found = learners.predict(task.kind, learner, z[train], y[train], z[test], settings.seed)
        head = {"task": task.name, "kind": task.kind, "learner": learner}
        scores = learners.evaluate(task.kind, y[test], found, settings.n_bootstrap, settings.seed)
        rows += [head | row | counts | {"converged": found.converged} for row in scores]
    return rows


def score_all(
    embeddings: Mapping[str, ArrayLike],
    obs: pd.DataFrame,
    tasks: Sequence[Task],
    settings: Settings = Settings(),
    jobs: int = 1,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """`score` of every embedding (method -> [n_obs, n_dimensions]) in every task: `method` and `COLUMNS`.

    `jobs` processes share the pairs. Each result is kept in `folder` under the hash of all that made it, so that a
    call that was stopped goes on where it was and a changed embedding is scored anew. Introduced in notebook 02.
    """
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    if survival := [task.name for task in tasks if not _learners_of(task, settings)]:
        advice = "add it to the learners, or name other columns"
        raise ValueError(f"tasks: survival ({few(survival)}) has the learner 'linear' only; {advice}")
    checked = {name: _checked_embedding(name, z, len(obs)) for name, z in embeddings.items()}
    pairs = [(method, task) for method in checked for task in tasks]
    if not pairs:
        raise ValueError("tasks: there are no embeddings or no tasks to score")
    shown = "WORKBOOK_RUN_DIR" not in os.environ if progress is None else progress
    calls = (delayed(_kept)(checked[m], obs[[*t.columns, "split"]], t, settings, folder) for m, t in pairs)
    found = Parallel(n_jobs=jobs, return_as="generator")(calls)
    results = list(tqdm(found, total=len(pairs), disable=not shown, leave=False, unit="task"))
    rows = [{"method": method} | row for (method, _), part in zip(pairs, results, strict=True) for row in part]
    return pd.DataFrame(rows)[["method", *COLUMNS]].astype(COLUMNS)


def _learners_of(task: Task, settings: Settings) -> tuple[str, ...]:
    return tuple(name for name in settings.learners if task.kind != "survival" or name == "linear")


def _checked_embedding(name: str, z: ArrayLike, n_obs: int) -> np.ndarray:
    z = z.toarray() if hasattr(z, "toarray") else z
    z = np.ascontiguousarray(z, dtype=np.float64)
    if z.ndim != 2 or len(z) != n_obs or not z.size:
        raise ValueError(f"tasks: embedding '{name}' has shape {z.shape}; it must be [{n_obs}, n_dimensions]")
    if not np.isfinite(z).all():
        raise ValueError(f"tasks: embedding '{name}' has {(~np.isfinite(z)).sum()} values that are NaN or infinite")
    return z


def _kept(z: np.ndarray, obs: pd.DataFrame, task: Task, settings: Settings, folder: str | Path | None) -> list[dict]:
    """`score`, read from the folder where it is there and whole."""
    if folder is None:
        return score(z, obs, task, settings)
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_-]', '_', task.name)}-{_digest(z, obs, task, settings)}.json"
    if (rows := _read(path)) is None:
        rows = score(z, obs, task, settings)
        plain = [{key: None if value != value else _python(value) for key, value in row.items()} for row in rows]
        project.write_atomic(path, json.dumps(plain, allow_nan=False, indent=1) + "\n")
    return rows


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _read(path: Path) -> list[dict] | None:
    """The rows that a file keeps; None where it is missing or damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        table = pd.DataFrame(rows)[list(COLUMNS)].astype(COLUMNS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table.to_dict("records") if len(table) else None


def _digest(z: np.ndarray, obs: pd.DataFrame, task: Task, settings: Settings) -> str:
    import sklearn

    said = json.dumps([VERSION, sklearn.__version__, asdict(task), asdict(settings), z.shape])
    digest = hashlib.sha256(said.encode())
    digest.update(obs.to_csv(index=False).encode())
    digest.update(z)
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------- comparison with random features


def over_random(table: pd.DataFrame, by: Iterable[str] = ()) -> pd.DataFrame:
    """Performance over random, (value - mean) / sd of as many random features, of every other method in the table.

    Random features are the methods whose names begin with "random "; mean and sd (n - 1) are taken over their draws
    with the same task, learner, metric and n_dimensions, and the same values in the columns `by` (say, the split's
    seed). Adds random_mean, random_sd, n_random, over_random, over_random_low and over_random_high (the bootstrap
    interval of `value`, on that scale), and `reason`: why over_random is NaN, else "".
    Raises ValueError without random features and for unknown columns. The paper's Eq. 5, with an interval.
    Introduced in notebook 02.
    """
    keys = ["task", "learner", "metric", "n_dimensions", *([by] if isinstance(by, str) else by)]
    for name in keys:
        if name not in table:
            raise ValueError(f"over_random: the table has no column '{name}'{closest(name, table.columns)}")
    drawn = table["method"].str.startswith("random ")
    if not drawn.any():
        raise ValueError("over_random: no method's name begins with 'random '; score outcomes.random_features too")
    draws = (
        table[drawn]
        .groupby(keys)["value"]
        .agg(random_mean="mean", random_sd="std", n_random="count", width=lambda v: v.max() - v.min())
    )
    result = table[~drawn].merge(draws.reset_index(), how="left", on=keys)
    result["n_random"] = result["n_random"].fillna(0).astype(int)
    result["reason"] = np.select(
        [result["n_random"] == 0, result["n_random"] == 1, result["width"] == 0],
        ["no random features with as many dimensions", "a single random draw", "all random draws score the same"],
        "",
    )
    spread = result["random_sd"].where(result["reason"] == "")
    for name, column in {"over_random": "value", "over_random_low": "low", "over_random_high": "high"}.items():
        result[name] = (result[column] - result["random_mean"]) / spread
    return result[[c for c in result if c not in ("width", "reason")] + ["reason"]]


def ranking(
    table: pd.DataFrame, by: str = "method", cells: Sequence[str] = ("task", "learner", "metric"), seed: int = 0
) -> pd.DataFrame:
    """Methods by their mean rank of `value` over `cells` (1 = best), with an interval and the share of cells won.

    Every cell is a contest of all methods on equal terms (ties share ranks; methods that do not stand in every cell
    are left out). `low` and `high` are the 95 % interval of the mean rank over 1,000 bootstrap draws of tasks, so that
    learners, metrics and repetitions of one task are not taken for independent. Index: `by`; columns: rank, low,
    high, first. Raises ValueError where no method stands in every cell. Introduced in notebook 02.
    """
    wide = table.pivot_table("value", list(cells), by).dropna(axis=1)
    if wide.empty:
        raise ValueError(f"ranking: no value of '{by}' has a score in every cell of {', '.join(cells)}")
    ranks = wide.rank(axis=1, ascending=False)
    per_task = ranks.groupby(level="task").mean()
    drawn = np.random.default_rng(seed).integers(len(per_task), size=(1000, len(per_task)))
    low, high = np.percentile(per_task.to_numpy()[drawn].mean(1), [2.5, 97.5], axis=0)
    first = (ranks.eq(ranks.min(axis=1), axis=0)).mean()
    found = pd.DataFrame({"rank": ranks.mean(), "low": low, "high": high, "first": first})
    return found.sort_values("rank")


def random_features(x: ArrayLike, n: int, draws: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """`draws` random sets of `n` columns of x [n_obs, n_vars], without replacement: {"random 1": [n_obs, n], ...}.

    Draw k is the same however many are asked for. Raises ValueError for more columns than there are.
    Introduced in notebook 02.
    """
    if not 0 < n <= x.shape[1] or draws < 1:
        raise ValueError(f"random_features: cannot draw {draws} times {n} of {x.shape[1]} features")
    found = {}
    for k in range(1, draws + 1):
        values = x[:, np.sort(np.random.default_rng([seed, k]).choice(x.shape[1], n, replace=False))]
        found[f"random {k}"] = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    return found


def umap(x: ArrayLike, train: ArrayLike, n_latent: int, seed: int = 0, n_neighbors: int = 15) -> np.ndarray:
    """UMAP [n_obs, n_latent] of x [n_obs, n_vars], fitted on the rows `train` (mask [n_obs]) and applied to the others.

    Raises ValueError where train has too few samples. McInnes et al. (2018). Introduced in notebook 02.
    """
    import torch
    from umap import UMAP

    threads = torch.get_num_threads()
    x, train = np.asarray(x, dtype=np.float32), np.asarray(train, dtype=bool)
    if train.sum() < n_latent + 2:
        raise ValueError(f"umap: {train.sum()} train samples are too few for {n_latent} dimensions")
    reducer = UMAP(min(n_neighbors, int(train.sum()) - 1), n_latent, random_state=seed, n_jobs=1)
    z = np.empty((len(x), n_latent), dtype=np.float32)
    z[train] = reducer.fit_transform(x[train])
    if not train.all():
        z[~train] = reducer.transform(x[~train])
    torch.set_num_threads(threads)  # numba, on which UMAP runs, would leave torch with all of them
    return z
