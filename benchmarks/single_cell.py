"""Decoders with learned codes on fixed splits of real single cells: what notebooks 05 and 06 claim, in one table.

    WORKBOOK_DATA=... python benchmarks/single_cell.py --splits FOLDER [--only citeseq protein snare cost] [--seeds 3]

FOLDER holds pbmc_citeseq_s0.tsv.gz, pbmc_citeseq_protein_s0.tsv.gz and mop_snare_s0.tsv.gz (cell, split). Where a file
has no valid split, a tenth of its train cells is drawn for it: training stops by them, and settings were compared on
them (README). Scores are of the test split; a code of a test cell is found from its counts, as an encoder would do.
citeseq: RNA of two batches, the batch as a covariate. protein: proteins told from RNA alone. snare: RNA and peaks.
cost: CPU seconds per epoch and peak memory, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from helpers import components, datasets, inference, models, multimodal, tasks, training
from helpers.batches import Samples
from helpers.decoders import GaussianHead
from helpers.models.dgd import start_at
from helpers.models.multidgd import start_covariates
from helpers.multimodal import Predictor

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.05  # nats, of the search for codes
RESOLUTIONS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Setting:
    """One model and how it is trained."""

    n_latent: int = 20
    n_components: int = 8
    hidden: tuple[int, ...] = (100,)
    branch: tuple[int, ...] = ()
    scale: float = 2.0  # radius of the ball
    epochs: int = 60
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    patience: int = 5

    def training(self) -> dict[str, float]:
        names = ("epochs", "batch_size", "lr", "weight_decay", "patience")
        return {name: getattr(self, name) for name in names} | {"progress": False}


CITESEQ = Setting(n_latent=40, epochs=30)
PROTEIN = Setting(n_latent=40, branch=(100,), epochs=25)
SNARE = Setting(n_latent=30, n_components=14, epochs=10, batch_size=256, lr=4e-3, weight_decay=0.3)
ALONE = Setting(n_latent=20, n_components=14, epochs=60, lr=2e-3)  # RNA of the mouse cortex by itself


# ---------------------------------------------------------------- data


def divided(mdata: mudata.MuData, file: Path, seed: int = 0) -> mudata.MuData:
    """The data with the file's split; a tenth of train becomes valid where the file has none; cells that it does not
    name are left out.
    """
    split = pd.read_csv(file, sep="\t", index_col=0)["split"].replace("val", "valid")
    found = mdata[mdata.obs_names.isin(split.index)].copy()
    found.obs["split"] = split.reindex(found.obs_names).to_numpy(dtype=str)
    if "valid" not in set(found.obs["split"]):
        train = found.obs_names[found.obs["split"] == "train"]
        drawn = np.random.default_rng(seed).choice(train, len(train) // 10, replace=False)
        found.obs.loc[drawn, "split"] = "valid"
    return found


def where(mdata: mudata.MuData, *splits: str) -> np.ndarray:
    return np.flatnonzero(mdata.obs["split"].isin(splits))


# ---------------------------------------------------------------- models


def joint(samples: Samples, how: Setting, z: np.ndarray, seed: int) -> models.Model:
    """multiDGD started at a PCA, not trained yet."""
    torch.manual_seed(seed)
    rows = samples.rows("train")
    sizes = (samples.n_vars, len(samples), how.n_latent, how.n_components, samples.n_classes, how.hidden, how.branch)
    model = models.multidgd(*sizes, n_train=len(rows))
    return start_covariates(start_at(model, z, rows, seed=seed), samples)


def fitted(samples: Samples, how: Setting, z: np.ndarray, seed: int) -> models.Model:
    """Trained, with codes of the test split."""
    model = joint(samples, how, z, seed)
    training.fit(model, samples, seed=seed, **how.training())
    return inference.infer(model, samples, "test", tolerance=TOLERANCE, seed=seed)


# ---------------------------------------------------------------- scores


def summary(data: str, method: str, scores: list[Mapping[str, float]]) -> dict:
    """Mean and sd over seeds of every score."""
    table = pd.DataFrame(scores)
    row = {"data": data, "method": method, "seeds": len(table)} | table.mean().to_dict()
    return row | ({f"{k} sd": v for k, v in table.std().items()} if len(table) > 1 else {})


def fit_of(predict: Predictor, samples: Samples, modality: str = "rna") -> dict[str, float]:
    """Nats per test cell, summed over features, and the root of the mean squared error of all entries."""
    nll = multimodal.per_cell(predict, samples, modality).mean()
    return {"nll": float(nll), "rmse": multimodal.agreement(predict, samples, modality)["rmse"]}


def ranking(predict: Predictor, samples: Samples) -> dict[str, float]:
    """AUPRC and AUROC of measured against unmeasured peaks, mean over test cells."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = []
    for index in samples.rows("test").split(256):
        batch = samples[index]
        with torch.no_grad():
            expected = predict(batch)["atac"].mean.numpy()
        pairs = zip(
            (batch.x["atac"] > 0).numpy(), np.broadcast_to(expected, (len(batch), expected.shape[1])), strict=True
        )
        scores += [(average_precision_score(y, p), roc_auc_score(y, p)) for y, p in pairs if y.any()]
    return dict(zip(("auprc", "auroc"), np.mean(scores, axis=0).tolist(), strict=True))


def clusters(z: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int = 0) -> dict[str, float]:
    """NMI and ARI of Leiden communities of all cells against known labels (None: unknown), of all and of test cells.
    The resolution is the one of the best NMI of all cells, as is usual: labels choose it, for every method alike.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known, found = labels != None, []  # noqa: E711, elementwise
    y = labels[known].astype(str)
    own = [components.communities(z[known], seed, 16, resolution) for resolution in RESOLUTIONS]
    for c in own:
        some = test[known]
        each = {"NMI": normalized_mutual_info_score(y, c), "NMI test": normalized_mutual_info_score(y[some], c[some])}
        each |= {"ARI": adjusted_rand_score(y, c), "ARI test": adjusted_rand_score(y[some], c[some])}
        found.append(each | {"n clusters": len(np.unique(c))})
    return max(found, key=lambda one: one["NMI"])


def codes_of(model: models.Model, samples: Samples) -> np.ndarray:
    """The basal part of all cells' codes [n_obs, n_latent]; valid cells' codes are found as test cells' are."""
    return multimodal.basal_codes(inference.infer(model, samples, "valid", tolerance=TOLERANCE), samples)


# ---------------------------------------------------------------- the three sets


def citeseq(folder: Path, seeds: int) -> list[dict]:
    """RNA of 10k and 5k cells, 4,000 genes."""
    mdata = datasets.only(datasets.load("pbmc-citeseq", with_5k=True, batch_key="batch"), ["rna"])
    mdata = divided(mdata, folder / "pbmc_citeseq_s0.tsv.gz")
    samples = Samples(mdata, "cpu", covariates=["batch"])
    labels, test = components.classes(mdata, "cell_type"), mdata.obs["split"].eq("test").to_numpy()
    z = components.pca_codes(samples, CITESEQ.n_latent)
    flat = fit_of(by_batch(samples), samples)
    rows = [summary("citeseq", "mean profile of the batch", [flat])]
    linear = fit_of(multimodal.from_pca(samples, 20), samples) | clusters(z[:, :20], labels, test)
    rows.append(summary("citeseq", "PCA 20", [linear]))
    found = []
    for seed in range(seeds):
        model = fitted(samples, CITESEQ, z, seed)
        own = clusters(codes_of(model, samples), labels, test, seed)
        found.append(fit_of(multimodal.predictor(model), samples) | own)
        print("citeseq", seed, found[-1], flush=True)
    return [*rows, summary("citeseq", "multiDGD", found)]


def by_batch(samples: Samples) -> Predictor:
    """The shares of the train cells of each cell's batch, with dispersions fitted."""
    code, rows = samples.covariates["batch"], samples.rows("train")
    total = torch.zeros(samples.n_classes["batch"], samples.n_vars["rna"])
    for index in rows.split(1024):
        total.index_add_(0, code[index], samples[index].x["rna"])
    return multimodal.as_counts(lambda batch: {"rna": total[code[batch.index]]}, samples)


def protein(folder: Path, seeds: int) -> list[dict]:
    """14 proteins from RNA: the median over proteins of Pearson's r of log1p of counts over test cells.

    All methods learn standardised log1p of counts (a mean of counts is ruled by a few large ones: the same neighbours
    fall to .83); multiDGD by a Gaussian. A code of a test cell is found from its RNA alone.
    """
    mdata = divided(datasets.load("pbmc-citeseq"), folder / "pbmc_citeseq_protein_s0.tsv.gz")
    y = np.log1p(dense(mdata["protein"].X))
    fit, test = where(mdata, "train", "valid"), where(mdata, "test")
    z = components.pca_codes(Samples(datasets.only(mdata, ["rna"]), "cpu"), 50)
    rows = [
        summary("protein", name, [{"r": median_r(y[test], told)}]) for name, told in protein_controls(z, y, fit, test)
    ]
    samples, told = Samples(with_proteins(mdata, y), "cpu"), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        sizes = (samples.n_vars, len(samples), PROTEIN.n_latent, PROTEIN.n_components, None, PROTEIN.hidden)
        n_train = len(samples.rows("train"))
        model = models.multidgd(*sizes, PROTEIN.branch, heads={"protein": GaussianHead}, n_train=n_train)
        start_at(model, z[:, : PROTEIN.n_latent], samples.rows("train"), seed=seed)
        training.fit(model, samples, seed=seed, **PROTEIN.training())
        blind = inference.infer(model, samples, "test", modalities=["rna"], tolerance=TOLERANCE, seed=seed)
        told.append(tasks.translate(blind, samples, "rna", "protein", "test"))
        print("protein", seed, median_r(y[test], told[-1]), median_r(y[test], np.mean(told, axis=0)), flush=True)
    rows.append(summary("protein", "multiDGD", [{"r": median_r(y[test], each)} for each in told]))
    together = {"r": median_r(y[test], np.mean(told, axis=0))}
    return [*rows, summary("protein", f"multiDGD, mean answer of {seeds} seeds", [together])]


def protein_controls(
    z: np.ndarray, y: np.ndarray, fit: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Proteins of test cells from PCA codes z by neighbours and by ridge regression."""
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import NearestNeighbors

    for k in (15, 30):
        near = NearestNeighbors(n_neighbors=k).fit(z[fit, :20]).kneighbors(z[test, :20], return_distance=False)
        yield f"{k} nearest, PCA 20", y[fit][near].mean(1)
    yield "ridge, PCA 50", RidgeCV(np.logspace(-2, 4, 13)).fit(z[fit], y[fit]).predict(z[test])


def with_proteins(mdata: mudata.MuData, y: np.ndarray) -> mudata.MuData:
    """The data with proteins y [n_obs, n_proteins], standardised on train, in place of the counted ones."""
    train, old = where(mdata, "train"), mdata["protein"]
    values = (y - y[train].mean(0)) / y[train].std(0)
    found = mudata.MuData({"rna": mdata["rna"], "protein": AnnData(values.astype(np.float32), old.obs, old.var)})
    found.obs = mdata.obs.copy()
    found.uns["dataset"] = {"modalities": {"rna": "counts", "protein": "continuous"}}
    return found


def dense(x: np.ndarray | sp.spmatrix) -> np.ndarray:
    return np.asarray(x.todense() if sp.issparse(x) else x, dtype=np.float64)


def median_r(y: np.ndarray, y_hat: np.ndarray) -> float:
    """Median over columns of Pearson's r."""
    return float(np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(y.T, y_hat.T, strict=True)]))


def snare(folder: Path, seeds: int) -> list[dict]:
    """RNA and peaks of the same cells; labels without the unclear class."""
    mdata, samples, z = snare_given(folder)
    labels = mdata.obs["cell_type"].astype(object).where(lambda c: c.notna() & (c != "Mis"), None).to_numpy()
    test = mdata.obs["split"].eq("test").to_numpy()
    flat = multimodal.mean_profile(samples)
    rows = [summary("snare", "mean profile, peak frequency", [fit_of(flat, samples) | ranking(flat, samples)])]
    for name, each in z.items():
        rows.append(summary("snare", name, [clusters(each, labels, test, seed) for seed in range(seeds)]))
    found = []
    for seed in range(seeds):
        model = fitted(samples, SNARE, z["PCA 20 of RNA"], seed)
        predict = multimodal.predictor(model)
        own = clusters(codes_of(model, samples), labels, test, seed)
        found.append(fit_of(predict, samples) | ranking(predict, samples) | own)
        print("snare", seed, found[-1], flush=True)
    rows.append(summary("snare", "multiDGD", found))
    rna, found = Samples(datasets.only(mdata, ["rna"]), "cpu"), []
    start = components.pca_codes(rna, ALONE.n_latent)
    for seed in range(seeds):
        torch.manual_seed(seed)
        sizes = (rna.n_vars, len(rna), ALONE.n_latent, ALONE.n_components, ALONE.hidden)
        model = start_at(models.scdgd(*sizes, n_train=len(rna.rows("train"))), start, rna.rows("train"), seed=seed)
        training.fit(model, rna, seed=seed, **ALONE.training())
        model = inference.infer(model, rna, "test", tolerance=TOLERANCE, seed=seed)
        own = clusters(codes_of(model, rna), labels, test, seed)
        found.append(fit_of(multimodal.predictor(model), rna) | own)
        print("snare, RNA alone", seed, found[-1], flush=True)
    return [*rows, summary("snare", "scDGD, RNA alone", found)]


def snare_given(folder: Path) -> tuple[mudata.MuData, Samples, dict[str, np.ndarray]]:
    """Data, samples and PCA codes of the RNA."""
    mdata = divided(datasets.load("mop-snare"), folder / "mop_snare_s0.tsv.gz")
    rna = Samples(datasets.only(mdata, ["rna"]), "cpu")
    return mdata, Samples(mdata, "cpu"), {"PCA 20 of RNA": components.pca_codes(rna, SNARE.n_latent)}


def cost(folder: Path) -> dict:
    """CPU seconds per epoch of training, the valid split left out, median of three, and peak memory of the process."""
    _, samples, z = snare_given(folder)
    samples.split = np.where(samples.split == "valid", "unused", samples.split)
    model, each = joint(samples, SNARE, z["PCA 20 of RNA"], 0), [time.process_time()]
    how = SNARE.training() | {"epochs": 4, "patience": None}
    training.fit(model, samples, watch=lambda *_: each.append(time.process_time()), **how)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"CPU s per epoch": float(np.median(np.diff(each)[1:])), "peak GiB": peak}


def cost_apart(folder: Path) -> list[dict]:
    """`cost` in a process of its own."""
    command = [sys.executable, __file__, "--splits", str(folder), "--only", "inside"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [summary("snare", f"multiDGD, batches of {SNARE.batch_size}", [json.loads(out.splitlines()[-1])])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["citeseq", "protein", "snare", "cost"])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*still improved.*")
    if args.only == ["inside"]:
        return print(json.dumps(cost(args.splits)))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "single_cell.csv"
    for name in args.only:
        rows = cost_apart(args.splits) if name == "cost" else SETS[name](args.splits, args.seeds)
        table = pd.DataFrame(rows).assign(section=name)
        old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["section"])
        pd.concat([old[old["section"] != name], table]).to_csv(path, index=False, float_format="%.5g")
        print(table.round(4).to_string(), flush=True)


SETS = {"citeseq": citeseq, "protein": protein, "snare": snare}

if __name__ == "__main__":
    main()
