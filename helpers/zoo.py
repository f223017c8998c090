"""The architecture benchmark: which models stand for a contest, on which modalities, and what stands beside them."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import controls, metrics, models, outcomes, tasks, terms, training, tuning
from helpers.batches import Samples
from helpers.datasets import only
from helpers.models.stackix import Stack
from helpers.ontology import Ontology
from helpers.schedules import Curve, scaled

CONTROLS = ("PCA", "balanced PCA", "UMAP", "all features")
KEYS = ("data", "model", "n_latent", "config", "seed")
OF_RECIPE = ("dropout", "factor", "n_layers")  # hyperparameters that a model takes; the others go to the training


@dataclass(frozen=True)
class Input:
    """One combination of modalities, ready for every model. Introduced in notebook 02."""

    name: str  # "rna+cnv"
    samples: Samples
    x: np.ndarray  # [n_obs, n_vars] all modalities side by side
    balance: dict[str, float]  # modality -> weight of its errors, `controls.balance`
    ontology: Ontology | None

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split."""
        return self.samples.rows(split).cpu().numpy()

    def pca(self, n_latent: int, balanced: bool = False) -> controls.LinearControl:
        """Principal components of the train split; with `balanced`, modalities weigh as `balance` says."""
        weight = np.repeat([*self.balance.values()], [*self.samples.n_vars.values()]) if balanced else None
        return controls.pca(self.x[self.rows("train")], n_latent, weight)

    def r2(self, x_hat: np.ndarray) -> float:
        """R² of the test split's reconstruction x_hat [n_test, n_vars]."""
        return metrics.r2(self.x[self.rows("test")], x_hat)


def inputs(mdata: mudata.MuData, combinations: Iterable[str], ontology: str, device: Any) -> dict[str, Input]:
    """An `Input` per combination such as "rna+cnv", and for all modalities together.

    "each" stands for every modality alone, "every" for every combination there is.
    `mdata` is complete and prepared; matrices are shared, nothing is scaled twice. `ontology` is a name for
    `terms.by_name`; a combination in which it matches nothing stands without one, with a warning, as all do where
    "auto" cannot download its tables. Raises ValueError for unknown modalities. Introduced in notebook 02.
    """
    every = ["+".join(c) for k in range(len(mdata.mod)) for c in itertools.combinations(mdata.mod, k + 1)]
    words = {"each": [*mdata.mod], "every": every}
    wanted = [name for given in combinations for name in words.get(given, [given])]
    found = {}
    for name in dict.fromkeys([*wanted, "+".join(mdata.mod)]):
        part = only(mdata, name.split("+"))
        x = {m: np.asarray(adata[mdata.obs_names].X) for m, adata in part.mod.items()}
        train = (mdata.obs["split"] == "train").to_numpy()
        weight = controls.balance({m: values[train] for m, values in x.items()})
        found[name] = Input(name, Samples(part, device), np.hstack([*x.values()]), weight, _ontology(part, ontology))
    return found


def _ontology(part: mudata.MuData, name: str) -> Ontology | None:
    try:
        return terms.by_name(part, name, outside="keep")[1]
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and name != "auto":  # its tables do not arrive
            raise
        warnings.warn(f"Ontix is left out for {'+'.join(part.mod)}: {error}", stacklevel=3)
        return None


@dataclass(frozen=True)
class Architecture:
    """A recipe as it stands in the contest: `make(given, n_latent, **hyperparameters)`. Introduced in notebook 02."""

    make: Callable[..., nn.Module]
    beta: float | None = None  # weight of its KL; None: it has none
    balanced: bool = False  # whether modalities are weighed by `Input.balance`
    pace: float = 1.0  # share of the common learning rate that its default takes
    factor: float = 4.0  # defaults of its recipe, which a search tries first
    n_layers: int = 2
    takes: Callable[[Input], bool] = lambda given: True

    def weights(self, given: Input, annealing: str) -> dict[str, float | Curve]:
        """Weights of the loss terms, for `training.fit`."""
        kl = {} if self.beta is None else {"kl": scaled(self.beta, annealing)}
        return kl | ({f"nll/{m}": w for m, w in given.balance.items()} if self.balanced else {})


def architectures(betas: Sequence[float]) -> dict[str, Architecture]:
    """Vanillix, Varix for every β, and with the middle β Stackix, Ontix, Varix from PCA. Introduced in notebook 02."""
    middle = sorted(betas)[len(betas) // 2]
    zoo = {"vanillix": Architecture(lambda given, n, **h: models.vanillix(given.samples.n_vars, n, **h))}
    for beta in betas:
        zoo[f"varix β={beta:g}"] = Architecture(lambda given, n, **h: models.varix(given.samples.n_vars, n, **h), beta)
    return zoo | {
        "stackix": Architecture(
            lambda given, n, **h: models.stackix(given.samples.n_vars, n, **h),
            middle,
            takes=lambda given: "+" in given.name,
        ),
        "ontix": Architecture(
            lambda given, n, **h: models.ontix(given.ontology, n, **h),
            middle,
            takes=lambda given: given.ontology is not None,
        ),
        "varix from PCA": Architecture(from_pca, middle, balanced=True, pace=0.1, factor=16.0, n_layers=1),
    }


def from_pca(given: Input, n_latent: int, n_layers: int = 1, factor: float = 16.0, dropout: float = 0.1) -> nn.Module:
    """Varix with linear paths that start at the balanced PCA of the train split. Introduced in notebook 02."""
    model = models.varix(given.samples.n_vars, n_latent, n_layers, factor, dropout, skip=True)
    return controls.start_at(model, given.pca(n_latent, balanced=True))


@dataclass(frozen=True)
class Contest:
    """Inputs, architectures and what all trainings share. Introduced in notebook 02."""

    given: Mapping[str, Input]
    zoo: Mapping[str, Architecture]
    annealing: str
    lr: float  # learning rate where it is not tuned
    common: Mapping[str, Any]  # settings of `training.fit`: epochs, batch_size, ...

    def cells(self, sizes: Sequence[int]) -> list[tuple[str, str, int]]:
        """(data, model, n_latent) of everything that can be trained."""
        pairs = [(name, kind) for kind, what in self.zoo.items() for name in self.given if what.takes(self.given[name])]
        return [(*pair, n) for pair in pairs for n in sizes]

    def build(self, n_vars: Mapping[str, int], cell: tuple, dropout: float = 0.1, **hyper: Any) -> nn.Module:
        """The model of a cell, as a recipe for `tuning.tune`."""
        name, kind, n = cell
        return self.zoo[kind].make(self.given[name], n, dropout=dropout, **hyper)

    def tune(self, cell: tuple[str, str, int], n_trials: int, storage: Path, seed: int) -> tuning.Tuned:
        """Search a cell's hyperparameters in the published space, defaults first; one study per cell in a storage.

        Layers are searched from the recipe's default upwards: the published 2 to 4, and 1 to 3 from PCA.
        """
        name, kind, n = cell
        what = self.zoo[kind]
        first = {"lr": self.lr * what.pace, "weight_decay": 1e-3, "dropout": 0.1}
        first |= {"factor": what.factor, "n_layers": what.n_layers}
        space = tuning.SPACE | {"n_layers": ("int", what.n_layers, what.n_layers + 2)}
        size = float(np.abs(self.given[name].x).sum())
        decides = (cell, seed, self.annealing, what.beta, first, sorted(self.common.items()), size)
        own = hashlib.sha256(repr(decides).encode()).hexdigest()[:8]  # where anything differs, another study
        options = {"name": f"{name}, {kind}, {n} ({own})", "first": first, "seed": int(own, 16), "progress": False}
        options |= {"weights": what.weights(self.given[name], self.annealing), **self.common}
        recipe = partial(self.build, cell=cell)
        return tuning.tune(recipe, self.given[name].samples, space, n_trials, storage, **options)

    def train(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Train one setting (`KEYS` and hyperparameters): embedding of all samples and scores on the test split."""
        given, kind = self.given[setting["data"]], setting["model"]
        torch.manual_seed(setting["seed"])
        hyper = {k: v for k, v in setting.items() if k in OF_RECIPE}
        model = self.zoo[kind].make(given, setting["n_latent"], **hyper)
        options = {k: v for k, v in setting.items() if k not in (*KEYS, *OF_RECIPE)}
        weights = self.zoo[kind].weights(given, self.annealing)
        lr = self.lr * self.zoo[kind].pace
        options = {**self.common, "lr": lr, "seed": setting["seed"], "progress": False, **options}
        training.fit(model, given.samples, weights=weights, **options)
        x_hat = np.hstack([*tasks.reconstruct(model, given.samples, "test").values()])
        scores = {"R²": given.r2(x_hat), "n_parameters": models.n_parameters(model)}
        if isinstance(model, Stack):
            scores["R² of codes"] = metrics.r2(*tasks.codes(model, given.samples, "test"))
        return {"z": tasks.embed(model, given.samples), **scores}


def baselines(given: Input, n: int, n_random: int, with_umap: bool, seed: int) -> list[dict[str, Any]]:
    """What stands beside models of `n` dimensions: PCA, balanced PCA, UMAP (all fitted on train), random features.

    A row each, like the results of `Contest.train`. Introduced in notebook 02.
    """
    rows = {}
    for control in (given.pca(n), given.pca(n, balanced=True)):
        z = control.embed(given.x)
        rows[control.name] = {"z": z, "R²": given.r2(control.decode(z[given.rows("test")]))}
    if with_umap:
        train = np.isin(np.arange(len(given.x)), given.rows("train"))
        rows["UMAP"] = {"z": outcomes.umap(given.x, train, n, seed)}
    rows |= {name: {"z": z} for name, z in outcomes.random_features(given.x, n, n_random, seed).items()}
    fixed = {"data": given.name, "n_latent": n, "config": "default", "seed": seed}
    return [{**fixed, "model": name, **row} for name, row in rows.items()]


def predictions(
    entries: Sequence[Mapping[str, Any]], mdata: mudata.MuData, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What every entry's embedding predicts: a table of all scores, and one of performance over random.

    `options` go to `tasks.predict_labels`. Both tables carry `KEYS` and R²; the second has one metric per task (AUC,
    R2 or C-index) and no random features. Introduced in notebook 02.
    """
    names = [f"{entry['model']} #{i}" for i, entry in enumerate(entries)]  # random draws keep their "random " in front
    about = pd.DataFrame([{k: entry.get(k) for k in (*KEYS, "R²")} for entry in entries], index=names)
    found = tasks.predict_labels(dict(zip(names, (entry["z"] for entry in entries), strict=True)), mdata, **options)
    table = found.join(about, on="method")
    headline = table[table["metric"].isin(["auc", "r2", "c_index"])]
    return table.drop(columns="method"), outcomes.over_random(headline, by=["data"]).drop(columns="method")
