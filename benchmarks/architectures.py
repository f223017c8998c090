"""Embeddings of TCGA breast cancer against simple baselines, on fixed splits: what notebook 02 claims, in one table.

    WORKBOOK_DATA=... python benchmarks/architectures.py --splits FOLDER

FOLDER holds brca_pam50_s{0,1,2}_{train,valid,test}.txt, patients by line, 560/187/187. Features are all that vary in
rna, cnv and mutation, standardised on train. Scores are of the test split, from posterior means: logistic regression
on PAM50 (AUC one against one, balanced accuracy), five nearest neighbours, R² per sample over all features. The
setting of "varix from PCA" is chosen per split on the valid split: the highest AUC plus balanced accuracy among those
that reconstruct no worse than PCA. Ontix reads all features and reconstructs those that Reactome knows.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from helpers import controls, datasets, metrics, models, ontology, prepare, schedules, tasks, training
from helpers.batches import Samples

RESULTS = Path(__file__).parent / "results"
GRID = list(itertools.product((1e-4, 3e-4), (0.1, 1.0), (0.0, 0.5, 1.0)))  # lr, beta, strength of the balance
SEEDS = 3


class Split:
    """One fixed split, prepared on its train part."""

    def __init__(self, folder: Path, number: int):
        parts = ("train", "valid", "test")
        ids = {name: (folder / f"brca_pam50_s{number}_{name}.txt").read_text().split() for name in parts}
        mdata = datasets.load("tcga-brca")
        mdata = prepare.split(mdata[mdata.obs["pam50"].notna()].copy(), ids=ids)
        self.mdata = prepare.fit_transform(mdata, select="nonzero_variance", n_features=None)
        self.samples, self.y = Samples(self.mdata, "cpu"), self.mdata.obs["pam50"].to_numpy()
        self.x = np.hstack([self.mdata[m].X for m in self.mdata.mod])
        self.rows = {name: self.samples.rows(name).numpy() for name in parts}
        self.number = number

    def weight(self, strength: float = 0.5) -> dict[str, float]:
        return controls.balance({m: self.mdata[m].X[self.rows["train"]] for m in self.mdata.mod}, strength)

    def pca(self, n: int, strength: float = 0.0) -> controls.LinearControl:
        each = np.repeat([*self.weight(strength).values()], [*self.samples.n_vars.values()])
        return controls.pca(self.x[self.rows["train"]], n, each if strength else None)

    def score(self, z: np.ndarray, x_hat: np.ndarray | None, on: str = "test") -> dict[str, float]:
        given = (z[self.rows["train"]], self.y[self.rows["train"]], z[self.rows[on]], self.y[self.rows[on]])
        found = metrics.logistic_accuracy(*given)
        neighbours = metrics.knn_label_accuracy(*given, k=5)["balanced_accuracy"]
        scores = {"AUC": found["auc"], "balanced accuracy": found["balanced_accuracy"], "5-NN": neighbours}
        return scores | {"R²": np.nan if x_hat is None else metrics.r2(self.x[self.rows[on]], x_hat[self.rows[on]])}


def fitted(split: Split, model, seed: int, epochs: int = 50, lr: float = 1e-3, beta: float = 0.1, weights=None):
    """Train, and give back embedding, reconstruction and seconds."""
    began = time.perf_counter()
    has_kl = any(term.split("/")[0] == "kl" for term in model.losses(split.samples[torch.arange(4)]))
    kl = {"kl": schedules.scaled(beta, "logistic-mid")} if has_kl else {}
    options = {"epochs": epochs, "lr": lr, "batch_size": 64, "clip_norm": 5.0, "seed": seed, "progress": False}
    training.fit(model, split.samples, weights=kl | (weights or {}), **options)
    x_hat = np.hstack([*tasks.reconstruct(model, split.samples).values()])
    return tasks.embed(model, split.samples), x_hat, time.perf_counter() - began


def from_pca(split: Split, seed: int, lr: float, beta: float, strength: float):
    torch.manual_seed(seed)
    model = models.varix(split.samples.n_vars, 8, n_layers=1, factor=16, skip=True)
    weights = {f"nll/{m}": w for m, w in split.weight(strength).items()}
    return fitted(split, controls.start_at(model, split.pca(8, strength)), seed, 50, lr, beta, weights)


def choose(split: Split) -> tuple:
    """The grid's best setting on the valid split."""
    pca = split.pca(8)
    least = split.score(pca.embed(split.x), pca.decode(pca.embed(split.x)), "valid")["R²"]
    tried = {setting: split.score(*from_pca(split, 0, *setting)[:2], "valid") for setting in GRID}
    good = {setting: s for setting, s in tried.items() if s["R²"] >= least} or tried
    return max(good, key=lambda setting: good[setting]["AUC"] + good[setting]["balanced accuracy"])


def named_as_they_are(z: np.ndarray, terms: ontology.Ontology, split: Split) -> dict[str, float]:
    """Do dimensions say what terms do? |r| on test with the first principal component of each term's own features.

    PCA has no names, so it gets the best one-to-one match of dimensions to terms.
    """
    train, test = split.rows["train"], split.rows["test"]
    members = np.concatenate([terms.reach(m) for m in split.mdata.mod])  # [n_vars, n_terms]
    scores = [controls.pca(split.x[train][:, own], 1).embed(split.x[:, own])[test, 0] for own in members.T]
    r = np.abs(np.corrcoef(z[test].T, np.array(scores))[: z.shape[1], z.shape[1] :])
    best = r[linear_sum_assignment(-r)]
    return {"named |r|": float(np.median(np.diag(r))), "matched |r|": float(np.median(best))}


def table(split: Split) -> list[dict]:
    """All methods on one split; neural ones with several seeds."""
    rows = []

    def add(method: str, n: int, z, x_hat, seed: int = 0, seconds: float = 0.0, **more) -> None:
        scores = split.score(z, x_hat)
        rows.append(
            {"method": method, "n_latent": n, "split": split.number, "seed": seed, **scores, "seconds": seconds, **more}
        )
        print(pd.Series(rows[-1]).to_dict(), flush=True)

    _, terms = ontology.reactome(split.mdata, outside="keep")
    _, deep = ontology.reactome(split.mdata, levels=2, outside="keep")
    n_terms = len(terms.latent_names)
    for n, strength in itertools.product((8, n_terms), (0.0, 0.5)):
        pca = split.pca(n, strength)
        z = pca.embed(split.x)
        more = named_as_they_are(z, terms, split) if n == n_terms else {}
        add(pca.name, n, z, pca.decode(z), **more)
    chosen = choose(split)
    for seed in range(SEEDS):
        z, x_hat, seconds = from_pca(split, seed, *chosen)
        add("varix from PCA", 8, z, x_hat, seed, seconds, chosen=str(chosen))
        for name, make in {"vanillix": models.vanillix, "varix": models.varix, "stackix": models.stackix}.items():
            torch.manual_seed(seed)
            model = make(split.samples.n_vars, 8, n_layers=1, **({} if name == "stackix" else {"factor": 16}))
            z, x_hat, seconds = fitted(split, model, seed, 100)
            add(name, 8, z, x_hat, seed, seconds)
        for name, given in {"ontix": terms, "ontix, two levels": deep}.items():
            torch.manual_seed(seed)
            model = models.ontix(given, n_layers=1, factor=16)
            weights = {f"nll/{m}": w for m, w in split.weight().items()}
            z, x_hat, seconds = fitted(split, model, seed, 100, weights=weights)
            add(name, n_terms, z, x_hat, seed, seconds, **named_as_they_are(z, given, split))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    found = pd.DataFrame([row for number in range(3) for row in table(Split(options.splits, number))])
    found.to_csv(RESULTS / "architectures.csv", index=False, float_format="%.4f")
    per_split = found.groupby(["method", "n_latent", "split"]).mean(numeric_only=True).groupby(level=[0, 1])
    columns = ["AUC", "balanced accuracy", "5-NN", "R²", "named |r|", "matched |r|", "seconds"]
    print(
        (
            per_split.mean()[columns].round(3).astype(str) + " ± " + per_split.std()[columns].round(3).astype(str)
        ).to_string()
    )


if __name__ == "__main__":
    main()
