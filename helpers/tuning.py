"""Hyperparameter search: an Optuna study over a recipe, which resumes after a kill and which processes can share."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import studies
from helpers.batches import Samples
from helpers.schedules import Curve, scaled
from helpers.training import Settings, TrainingDiverged, Watch, fit, seeded
from helpers.wording import closest, few

Range = Sequence[Any]  # ("log", low, high), ("uniform", low, high), ("int", low, high) or ("choice", a, b, ...)
SPACE: dict[str, Range] = {
    "lr": ("log", 1e-5, 1e-2),
    "weight_decay": ("log", 1e-5, 0.1),
    "dropout": ("uniform", 0.0, 0.5),
    "factor": ("uniform", 1.0, 64.0),
    "n_layers": ("int", 2, 4),  # hidden layers; the published code counts the latent one too: ("int", 1, 3) here
}
KINDS = ("log", "uniform", "int", "choice")
OF_TRAINING = ("lr", "weight_decay", "batch_size", "clip_norm")  # tunable fields of `training.Settings`
REPORTS = 50  # times at most that a trial asks whether to go on: each writes to the storage
LEAST_COMPLETE = 4  # trials from which importances are estimated
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Tuned:
    """What a study found. Introduced in notebook 02.

    `params`, `value`: the best complete trial and its loss on the valid split, nats per sample. `trials`: one row per
    trial: number, value (of a pruned trial: the last it reported), state ("complete", "pruned", "diverged", "failed":
    killed or stopped, "running": elsewhere), seconds, epochs, and a column per hyperparameter of `space`.
    """

    params: dict[str, Any]
    value: float
    trials: pd.DataFrame = field(repr=False)
    space: dict[str, Range] = field(repr=False)
    name: str
    storage: str

    @property
    def settings(self) -> dict[str, Any]:
        """The part of `params` for `training.fit`."""
        return divided(self.params)[0]

    @property
    def model(self) -> dict[str, Any]:
        """The part of `params` for the recipe."""
        return divided(self.params)[1]


def tune(
    recipe: Callable[..., nn.Module],
    data: Samples | mudata.MuData,
    space: Mapping[str, Range] | None = None,
    n_trials: int = 50,
    storage: str | Path | None = None,
    *,
    epochs: int,
    weights: Mapping[str, float | Curve] | None = None,
    name: str | None = None,
    first: Mapping[str, Any] | None = None,
    seed: int = 0,
    timeout: float | None = None,
    device: str = "auto",
    progress: bool | None = None,
    **settings,
) -> Tuned:
    """Search for hyperparameters with a low loss on the valid split, all loss terms at their full weight.

    Parameters
    ----------
    recipe : `recipe(n_vars, **hyperparameters)` -> model; bind all else: `functools.partial(models.varix, n_latent=8)`.
    data : `Samples`, or a MuData, which is put on the device once.
    space : hyperparameter -> range, `SPACE` (as published) by default; "lr", "weight_decay", "batch_size" and
        "clip_norm" go to the training, all others to the recipe.
    n_trials : trials wanted in the study, those of earlier calls and of other processes included.
    storage : SQLite file (such as `run.kept / "tuning.db"`) or database URL; None: a file `tuning.db` in the folder
        that `project.kept_beside` names. For several machines, a PostgreSQL or MySQL URL: SQLite on a network file
        system may lose writes.
    epochs, weights, **settings : as for `training.fit`. A trial's value is that of the model which `fit` leaves: the
        last epoch's or, with `patience`, the best. Every schedule counts at its last weight (AUTOENCODIX tuned with
        the KL at 4.5e-5 of its weight, which ignores it).
    name : of the study in the storage; the recipe's by default.
    first : hyperparameters of the first trial, such as the defaults one wants to beat; what it does not name is
        proposed.
    seed : of the proposals, and of initial weights and training, where it is the same for all trials.
    timeout : seconds after which no further trial begins.
    progress : one progress bar; by default in interactive use only.

    Sampler: multivariate TPE. Pruner: median rule after 5 complete trials, asked only once all schedules have settled,
    since losses that lack a part of their KL do not compare ("logistic-mid": after 3/4 of the epochs). Trials that
    diverge or exceed the GPU's memory count as pruned. In one process the same seed gives the same trials, also after
    a kill; with several, what a trial tries depends on which others had finished. A trial of a killed process is done
    again, once, with the same hyperparameters: at once where it ran on this machine, else 2 minutes after its last
    sign of life. `tune` waits for trials of other processes, so that all return the same.

    Raises `ValueError` on unknown hyperparameters or settings, bad ranges, data without a valid split, a study made
    with other data, recipe, space or settings (code is not compared), a file or URL that is no database; `OSError`
    where that is locked or out of reach; `RuntimeError` where no trial is complete. Introduced in notebook 02.
    """
    space = {k: tuple(v) for k, v in (SPACE if space is None else space).items()}
    check_space(recipe, space, settings)
    check_first(first or {}, space)
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}")
    samples = data if isinstance(data, Samples) else Samples(data, device)
    fixed = asdict(Settings(epochs=epochs, seed=seed, **settings))
    check_samples(samples)
    search = Search(recipe, samples, space, dict(weights or {}), fixed)
    with studies.opened(storage, name or describe(recipe).split("(")[0], search.record(), seed) as (study, place):
        if first and not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(first), skip_if_exists=True)
        studies.work_on(study, search, n_trials, seed, timeout, progress)
        return result(study, space, place)


# ---------------------------------------------------------------- what is asked for


def check_space(recipe: Callable, space: Mapping[str, Range], settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for ranges that are none, and for names that neither training nor recipe can take."""
    fields = [name for name in Settings.__dataclass_fields__ if name not in ("epochs", "seed")]
    if not space:
        raise ValueError("the space is empty: name at least one hyperparameter, as tuning.SPACE does")
    if unknown := [name for name in settings if name not in fields]:
        raise ValueError(f"unknown settings {few(unknown)}{closest(unknown[0], fields)} Settings: {', '.join(fields)}")
    if twice := [name for name in space if name in settings]:
        raise ValueError(f"{few(twice)} both given and in the space: leave one out")
    if fixed := [name for name in space if name in Settings.__dataclass_fields__ and name not in OF_TRAINING]:
        raise ValueError(
            f"{few(fixed)} cannot be tuned, since trials would not compare; of the training's settings, "
            f"{few(OF_TRAINING)} can"
        )
    for name, values in space.items():
        check_range(name, values)
        if name not in OF_TRAINING:
            check_argument(recipe, name)


def check_argument(recipe: Callable, name: str) -> None:
    """Raise `ValueError` unless the recipe takes that hyperparameter and has it not bound already."""
    arguments = inspect.signature(recipe).parameters.values()
    free = [a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY) and a.name != "n_vars"]
    if isinstance(recipe, partial) and name in recipe.keywords:
        raise ValueError(
            f"{name!r} is in the space, and bound to {recipe.keywords[name]!r} in the recipe: leave one out"
        )
    if name not in free and not any(a.kind is a.VAR_KEYWORD for a in arguments):
        known = [*free, *OF_TRAINING]
        raise ValueError(
            f"the space names {name!r}, which is neither an argument of {describe(recipe)} nor a setting "
            f"of the training{closest(name, known)} Known are {', '.join(known)}"
        )


def check_range(name: str, values: Range) -> None:
    """Raise `ValueError` unless this is ("log" | "uniform" | "int", low, high) or ("choice", a, b, ...)."""
    kind, *rest = values or ("",)
    where = f"range of {name!r}, {tuple(values)}"
    if kind not in KINDS:
        raise ValueError(f"{where}: must begin with one of {few(KINDS)}{closest(kind, KINDS)}")
    if kind == "choice":
        if not rest or not all(isinstance(v, bool | int | float | str | None) for v in rest):
            raise ValueError(f"{where}: give numbers, texts, True/False or None to choose from")
        return
    types = int if kind == "int" else (int, float)
    if len(rest) != 2 or not all(isinstance(v, types) for v in rest) or not -np.inf < rest[0] <= rest[1] < np.inf:
        raise ValueError(f"{where}: give two {'whole ' if kind == 'int' else ''}numbers, low <= high")
    if kind == "log" and rest[0] <= 0:
        raise ValueError(f"{where}: a logarithmic range begins above 0")


def check_first(first: Mapping[str, Any], space: Mapping[str, Range]) -> None:
    """Raise `ValueError` unless the first trial's hyperparameters lie in the space."""
    for name, value in first.items():
        if name not in space:
            raise ValueError(
                f"first names {name!r}, which is not in the space{closest(name, space)}: {', '.join(space)}"
            )
        kind, *values = space[name]
        if not (value in values if kind == "choice" else values[0] <= value <= values[1]):
            raise ValueError(f"first: {name}={value!r} lies outside of its range {space[name]}")


def check_samples(samples: Samples) -> None:
    """Raise `ValueError` where there is nothing to train on or to judge by."""
    for split in ("train", "valid"):
        if not len(samples.rows(split)):
            raise ValueError(f"tuning needs samples in the {split} split and finds none: check obs['split']")


# ---------------------------------------------------------------- one trial, and all of them


@dataclass(frozen=True)
class Search:
    """What all trials of a study share; called with an Optuna trial, it answers with the trial's value.

    Introduced in notebook 02.
    """

    recipe: Callable[..., nn.Module]
    samples: Samples
    space: dict[str, Range]
    weights: dict[str, float | Curve]
    settings: dict[str, Any]

    def __call__(self, trial: Any) -> float:
        """Train with what the trial proposes; raises `optuna.TrialPruned` where it diverges or is pruned."""
        import optuna

        totals: list[float] = []
        try:
            n_epochs = self.train(propose(trial, self.space), watcher(trial, totals, self.settings["epochs"]))
        except (TrainingDiverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr("diverged", str(error))
            raise optuna.TrialPruned from error
        trial.set_user_attr("epochs", n_epochs)
        return totals[-1] if self.settings["patience"] is None else min(totals)

    def train(self, params: Mapping[str, Any], watch: Watch) -> int:
        """Build and fit one model, its initial weights from the seed too; the number of epochs."""
        of_training, of_model = divided(params)
        with seeded(self.settings["seed"], self.samples.device):
            model = self.recipe(self.samples.n_vars, **of_model)
        settings = self.settings | of_training
        history = fit(model, self.samples, weights=self.weights, watch=watch, progress=False, **settings)
        return int(history.epoch.max())

    def record(self) -> dict[str, str]:
        """What decides a trial's value beside its hyperparameters, as texts: kept in the study and compared."""
        lines = {"recipe": describe(self.recipe)}
        lines |= {f"space of {name}": " ".join(map(str, values)) for name, values in self.space.items()}
        lines |= {f"setting {k}": repr(v) for k, v in self.settings.items() if k not in self.space}
        lines |= {f"weight of {k}": summary(w, self.settings["epochs"]) for k, w in self.weights.items()}
        return lines | fingerprint(self.samples)


def watcher(trial: Any, totals: list[float], epochs: int) -> Watch:
    """A hook for `fit` that collects valid totals once all schedules have settled, reports some, and prunes."""
    import optuna

    every = -(-epochs // REPORTS)

    def watch(epoch: int, terms: Mapping[str, Mapping[str, float]], settled: bool) -> None:
        if not settled:
            return
        totals.append(terms["valid"]["total"])
        if epoch % every == 0 and epoch < epochs:  # after the last epoch there is nothing left to save
            trial.report(totals[-1], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    return watch


def propose(trial: Any, space: Mapping[str, Range]) -> dict[str, Any]:
    """Hyperparameters for an Optuna trial."""
    suggest = {
        "log": lambda name, low, high: trial.suggest_float(name, low, high, log=True),
        "uniform": trial.suggest_float,
        "int": trial.suggest_int,
        "choice": lambda name, *choices: trial.suggest_categorical(name, choices),
    }
    return {name: suggest[kind](name, *rest) for name, (kind, *rest) in space.items()}


def divided(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyperparameters of the training, and those of the recipe."""
    of_training = {name: value for name, value in params.items() if name in OF_TRAINING}
    return of_training, {name: value for name, value in params.items() if name not in OF_TRAINING}


def result(study: Any, space: dict[str, Range], place: str) -> Tuned:
    """What a study has found; raises `RuntimeError` where no trial is complete."""
    found = [t for t in study.get_trials(deepcopy=False) if t.state.name in STATES and "surplus" not in t.user_attrs]
    best = min((t for t in found if t.state.name == "COMPLETE"), key=lambda t: t.value, default=None)
    columns = ["number", "value", "state", "seconds", "epochs", *space]
    trials = pd.DataFrame([row(t, space) for t in found], columns=columns).astype({"epochs": "Int64"})
    if best is None:
        counts = ", ".join(f"{n} {s}" for s, n in trials.state.value_counts().items()) if found else "none has begun"
        why = next((f"; the first: {t.user_attrs['diverged']}" for t in found if "diverged" in t.user_attrs), "")
        raise RuntimeError(f"no trial of study {study.study_name!r} is complete ({counts}){why}")
    return Tuned({k: best.params[k] for k in space}, best.value, trials, space, study.study_name, place)


def row(trial: Any, space: Mapping[str, Range]) -> dict[str, Any]:
    """One line of `Tuned.trials`."""
    return {
        "number": trial.number,
        "value": np.nan if trial.value is None else trial.value,
        "state": "diverged" if "diverged" in trial.user_attrs else STATES[trial.state.name],
        "seconds": trial.duration.total_seconds() if trial.duration else np.nan,
        "epochs": trial.user_attrs.get("epochs", trial.last_step),
        **{name: trial.params.get(name) for name in space},
    }


def importances(tuned: Tuned, seed: int = 0) -> pd.Series:
    """Share of the variance of the loss that each hyperparameter explains by itself, falling; they sum to 1.

    Functional ANOVA over a random forest of the complete trials (Hutter, Hoos and Leyton-Brown, ICML 2014). Trials
    crowd where the sampler found low losses, so that few of them tell little about the rest of the space.
    Raises `ValueError` for fewer than 4 complete trials. Introduced in notebook 02.
    """
    import optuna

    complete = tuned.trials[tuned.trials.state == "complete"]
    if len(complete) < LEAST_COMPLETE:
        raise ValueError(f"importances need {LEAST_COMPLETE} complete trials or more, got {len(complete)}")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        study = optuna.create_study()
        for params, value in zip(complete[[*tuned.space]].to_dict("records"), complete.value, strict=True):
            study.enqueue_trial(params)
            trial = study.ask()
            propose(trial, tuned.space)
            study.tell(trial, value)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator), dtype=float)
    finally:
        optuna.logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- what a study was made with


def describe(value: Any) -> str:
    """A text that is the same in every process: no addresses, arrays by shape, `partial` by what it binds."""
    if isinstance(value, partial):
        bound = [describe(v) for v in value.args] + [f"{k}={describe(v)}" for k, v in sorted(value.keywords.items())]
        return f"{describe(value.func)}({', '.join(bound)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"({', '.join(describe(v) for v in value)})"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    shape = getattr(value, "shape", None)
    return getattr(value, "__name__", type(value).__name__) + ("" if shape is None else str(list(shape)))


def summary(weight: float | Curve, epochs: int) -> str:
    """A weight or schedule as its last value and a digest of all."""
    curve = weight if callable(weight) else scaled(weight)
    values = [f"{curve(t, epochs):.6g}" for t in range(epochs)]
    return values[-1] if len(set(values)) == 1 else f"{values[-1]}, annealed ({digest(values)})"


def fingerprint(samples: Samples) -> dict[str, str]:
    """Samples by name and split; modalities by size and mean absolute value, rounded: machines differ in sums."""
    counts = ", ".join(f"{int((samples.split == s).sum())} {s}" for s in ("train", "valid"))
    lines = {"samples": f"{counts} ({digest([*samples.obs_names, *samples.split])})"}
    for name, modality in samples.modalities.items():
        values = modality.rows.values
        mean = float(values.abs().mean(dtype=torch.float64)) if len(values) else 0.0
        lines[f"modality {name}"] = f"{modality.rows.n_rows} x {modality.rows.n_vars}, mean size {mean:.4g}"
    return lines


def digest(texts: Sequence[str]) -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()[:8]
