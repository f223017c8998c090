"""What a joint model of several modalities is worth on cells that it has not seen, beside simpler methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.distributions import Distribution

from helpers import components, controls, datasets, inference, models, penalties, prepare, tasks, training
from helpers.batches import Batch, Samples
from helpers.decoders import ForegroundHead
from helpers.encoders import DenseEncoder
from helpers.likelihoods import NegativeBinomial, Shares, log_likelihood
from helpers.models import Model
from helpers.models.dgd import start_at
from helpers.models.multidgd import start_covariates
from helpers.priors import BASAL, StandardNormal, parts_of

Predictor = Callable[[Batch], dict[str, Distribution]]  # what a method expects of each modality of some cells
TOLERANCE = 0.02  # nats by which a code must still improve while it is searched for
HEADS = {"protein": ForegroundHead}  # of modalities that are not negative binomial
RANKED = 400  # cells at the most whose peaks are ranked


@dataclass(frozen=True)
class Training:
    """How the models of notebook 06 are built and trained. Introduced in notebook 06."""

    n_latent: int = 20
    n_components: int = 8
    hidden: tuple[int, ...] = (100,)  # layers that all modalities share
    branch: tuple[int, ...] = ()  # layers of each modality's own
    epochs: int = 80
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.1
    patience: int = 10

    def fit(self, model: Model, samples: Samples, seed: int, epochs: int | None = None) -> pd.DataFrame:
        """Train a model; the history."""
        settings = {name: getattr(self, name) for name in ("lr", "weight_decay", "patience")}
        settings["epochs"] = epochs or self.epochs
        settings["batch_size"] = min(self.batch_size, len(samples.rows("train")) // 2)
        return training.fit(model, samples, device=samples.device, seed=seed, progress=False, **settings)


# ---------------------------------------------------------------- data


def prepared(
    mdata: mudata.MuData,
    label_key: str = "",
    n_samples: int = 0,
    n_features: int = 0,
    unlabelled: str = "",
    seed: int = 0,
) -> mudata.MuData:
    """Raw counts of cells that have all modalities, split 70 : 10 : 20 within classes of `label_key`.

    `n_samples`: so many cells at random, `n_features`: the most variable ones per modality (0: all); those that do not
    vary in the train split are left out, and cells without a count in some modality. `unlabelled`: a class that stands
    for cells without one. Introduced in notebook 06.
    """
    data = without_empty(prepare.complete(mdata, n_samples, seed))
    if unlabelled:
        data.obs[label_key] = data.obs[label_key].astype("category").cat.remove_categories([unlabelled])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(constant|cannot appear|do not vary).*")
        data = prepare.split(data, (0.7, 0.1, 0.2), stratify=label_key or None, seed=seed)
        data = prepare.fit_transform(data, n_features=n_features or None, scale="none")
    return without_empty(data)


def without_empty(data: mudata.MuData) -> mudata.MuData:
    """Cells with a count in every modality. Introduced in notebook 06."""
    rows = np.all([np.asarray(a.X.sum(1)).ravel() > 0 for a in data.mod.values()], axis=0)
    return data if rows.all() else data[rows].copy()


# ---------------------------------------------------------------- models


def train(
    mdata: mudata.MuData, how: Training, batch_key: str = "", seed: int = 0, epochs: int | None = None
) -> tuple[Model, pd.DataFrame]:
    """multiDGD of all modalities, started at a PCA, trained, and with codes of the test split; and the history.

    `batch_key`: the covariate that gets latent dimensions of its own ("" for none). Proteins get the mixture of
    background and foreground, all else a negative binomial. Introduced in notebook 06.
    """
    samples = Samples(mdata, covariates=[batch_key] if batch_key else [])
    model = untrained(samples, how, seed)
    history = how.fit(model, samples, seed, epochs)
    return inference.infer(model, samples, "test", tolerance=TOLERANCE, seed=seed), history


def untrained(samples: Samples, how: Training, seed: int = 0) -> Model:
    """multiDGD at its start: covariates at the components of their classes, all else at a PCA.

    Introduced in notebook 06.
    """
    torch.manual_seed(seed)
    n_train = len(samples.rows("train"))
    sizes, parts = (samples.n_vars, len(samples), how.n_latent, how.n_components), (how.hidden, how.branch)
    model = models.multidgd(*sizes, samples.n_classes, *parts, heads=HEADS, n_train=n_train).to(samples.device)
    z = components.pca_codes(samples, how.n_latent)
    return start_covariates(start_at(model, z, samples.rows("train"), seed=seed), samples)


def train_vae(
    mdata: mudata.MuData, how: Training, seed: int = 0, epochs: int | None = None
) -> tuple[Model, pd.DataFrame]:
    """A variational autoencoder of all modalities with multiDGD's decoder, and the history: what an encoder changes.

    Encoder: dense, of log1p of all counts side by side; prior N(0, I). Introduced in notebook 06.
    """
    samples = Samples(mdata)
    torch.manual_seed(seed)
    like = models.multidgd(samples.n_vars, 2, how.n_latent, 1, None, how.hidden, how.branch, HEADS)
    logs = dict.fromkeys(samples.n_vars, torch.log1p)
    encoder = DenseEncoder(samples.n_vars, how.n_latent, how.hidden[::-1], transform=logs)
    model = Model([encoder], like.fuse, StandardNormal(how.n_latent), [*like.decoders], {"kl": penalties.kl})
    return model, how.fit(model.to(samples.device), samples, seed, epochs)


# ---------------------------------------------------------------- methods as predictors


def predictor(model: Model) -> Predictor:
    """What a model expects of cells of which it has codes. Introduced in notebook 06."""
    return lambda batch: model.decode(tasks.z_of(model, batch), batch.library)


def mean_profile(samples: Samples) -> Predictor:
    """Every cell has the shares of the train split, whatever its counts. Introduced in notebook 06."""
    flat = {m: share[None] for m, share in profiles(samples).items()}
    return as_counts(lambda batch: flat, samples)


def from_pca(samples: Samples, n_latent: int) -> Predictor:
    """Each cell told from `n_latent` principal components of all its modalities by linear regression, as log1p of
    counts per 10,000 (`as_counts`). Introduced in notebook 06.
    """
    z = torch.from_numpy(components.pca_codes(samples, n_latent)).to(samples.device)
    z = torch.cat([torch.ones_like(z[:, :1]), z], 1)
    rows, sums = samples.rows("train"), {}
    for index in rows.split(1024):
        batch = samples[index]
        for m, x in batch.x.items():
            part = z[batch.index].T @ torch.log1p(1e4 * x / batch.library[m].clamp(min=1))
            sums[m] = sums[m] + part if m in sums else part
    gram = z[rows].T @ z[rows] + 1e-4 * torch.eye(z.shape[1]).to(z)
    slopes = {m: torch.linalg.solve(gram, each) for m, each in sums.items()}

    def values(batch: Batch) -> dict[str, Tensor]:
        return {m: (z[batch.index] @ w).expm1().clamp(min=0) for m, w in slopes.items()}

    return as_counts(values, samples)


def from_neighbours(mdata: mudata.MuData, source: str, target: str, n_latent: int = 20, k: int = 30) -> Predictor:
    """`target` as in the `k` train cells that are nearest in a PCA of `source` (`as_counts`).

    Introduced in notebook 06.
    """
    from sklearn.neighbors import NearestNeighbors

    z = components.pca_codes(Samples(datasets.only(mdata, [source]), "cpu"), min(n_latent, mdata[source].n_vars))
    samples, x = Samples(datasets.only(mdata, [target])), sp.csr_matrix(mdata[target].X)
    rows = samples.rows("train").cpu().numpy()
    near = rows[NearestNeighbors(n_neighbors=min(k, len(rows) - 1) + 1).fit(z[rows]).kneighbors(z)[1]]
    others = [[j for j in found if j != i][:k] for i, found in enumerate(near)]  # a train cell is not its own neighbour

    def values(batch: Batch) -> dict[str, Tensor]:
        total = np.stack([np.asarray(x[others[i]].sum(0)).ravel() for i in batch.index.tolist()])
        return {target: torch.from_numpy(total).to(samples.device)}

    return as_counts(values, samples)


def profiles(samples: Samples) -> dict[str, Tensor]:
    """Modality -> shares of all counts of the train split [n_vars], half a count added. Introduced in notebook 06."""
    totals: dict[str, Tensor] = {}
    for index in samples.rows("train").split(1024):
        for m, x in samples[index].x.items():
            totals[m] = totals.get(m, 0.5) + x.sum(0)
    return {m: total / total.sum() for m, total in totals.items()}


def as_counts(
    values: Callable[[Batch], Mapping[str, Tensor]], samples: Samples, steps: int = 100, seed: int = 0
) -> Predictor:
    """Expected counts as negative binomials: library size × (1 − w) · values / their sum + w · the mean profile.

    w, a number per modality, and the inverse dispersion of each feature are fitted to the train split by maximum
    likelihood, so that controls get what models have. `values`: batch -> modality -> [batch, n_vars], or one row for
    all. Introduced in notebook 06.
    """
    rows, average = samples.rows("train"), profiles(samples)
    log_r = {m: torch.ones(n, device=samples.device, requires_grad=True) for m, n in samples.n_vars.items()}
    logit = {m: torch.zeros(1, device=samples.device, requires_grad=True) for m in samples.n_vars}
    optimiser = torch.optim.Adam([*log_r.values(), *logit.values()], lr=0.1)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)

    def predict(batch: Batch) -> dict[str, Distribution]:
        found = {}
        for m, each in values(batch).items():
            w, share = torch.sigmoid(logit[m]), each / each.sum(1, keepdim=True).clamp(min=1e-9)
            log = torch.log((1 - w) * share + w * average[m])
            found[m] = NegativeBinomial(Shares(log, batch.library[m].clamp(min=1).log()), log_r[m])
        return found

    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = samples[rows[torch.randint(len(rows), (64,), generator=generator).to(rows.device)]]
        loss = -sum(log_likelihood(p, batch.stored(m)).mean() for m, p in predict(batch).items())
        optimiser.zero_grad(), loss.backward(), optimiser.step(), slower.step()
    for each in (*log_r.values(), *logit.values()):
        each.requires_grad_(False)
    return predict


# ---------------------------------------------------------------- scores


@torch.no_grad()
def per_cell(
    predict: Predictor, samples: Samples, modality: str, split: str = "test", columns: np.ndarray | None = None
) -> np.ndarray:
    """−log p of every cell of a split, nats [n_cells]. `columns` (of counts only): of these features, given the total
    that they have together, so that models of more and of fewer features compare. Introduced in notebook 06.
    """
    found = []
    for index in samples.rows(split).split(512):
        batch = samples[index]
        p, x = predict(batch)[modality], batch.stored(modality)
        if columns is not None:
            x, log_r = batch.x[modality][:, columns], p.log_r[..., columns]
            p = NegativeBinomial(Shares(p.log_mean[:, columns], x.sum(1, keepdim=True).clamp(min=1).log()), log_r)
        found.append(-log_likelihood(p, x))
    return torch.cat(found).cpu().numpy()


def reconstruction(
    fitted: Mapping[str, Model], mdata: mudata.MuData, n_latent: int = 20, seed: int = 0
) -> pd.DataFrame:
    """`evaluate` for models with codes of the test cells, PCA of `n_latent` dimensions and the mean profile, twice
    (`counts`): on the counts that a code was made from ("seen"), and on one half of a cell's counts, told from the
    other half ("other half"), to which noise that a code has learned by heart is of no use. Introduced in notebook 06.
    """
    device = next(next(iter(fitted.values())).parameters()).device
    whole, first, second = (Samples(data, device) for data in (mdata, *halves(mdata, seed=seed)))
    tables = []
    for counts, given, scored in (("seen", whole, whole), ("other half", first, second)):
        methods = {name: at_codes(model, given, counts != "seen") for name, model in fitted.items()}
        methods |= {"PCA": from_pca(given, n_latent), "mean profile": mean_profile(given)}
        tables.append(evaluate(methods, scored, n_models=len(fitted)).assign(counts=counts))
    return pd.concat(tables, ignore_index=True)


def at_codes(model: Model, samples: Samples, infer: bool = False) -> Predictor:
    """What a model expects of test cells at the codes that it has of these samples, whatever counts it is shown then.
    `infer`: find the codes of a model without encoders first. Introduced in notebook 06.
    """
    found = inference.infer(model, samples, "test", tolerance=TOLERANCE) if infer and parts_of(model.prior) else model
    rows, z = samples.rows("test"), torch.zeros(len(samples), model.prior.n_latent, device=samples.device)
    z[rows] = torch.from_numpy(tasks.embed(found, samples, "test")).to(z)
    return lambda batch: model.decode(z[batch.index], batch.library)


def halves(mdata: mudata.MuData, split: str = "test", seed: int = 0) -> tuple[mudata.MuData, mudata.MuData]:
    """The data twice, with every count of the split's cells in one or the other, at random; other cells are whole in
    both. Cells of which a half is empty get split "unused". Source: molecular cross-validation, Batson et al. 2019.
    Introduced in notebook 06.
    """
    rng, rows = np.random.default_rng(seed), mdata.obs["split"].eq(split).to_numpy()
    first, second = mdata.copy(), mdata.copy()
    for m in mdata.mod:
        x = sp.csr_matrix(mdata[m].X)
        part, of = x.copy(), np.repeat(rows, np.diff(x.indptr))
        part.data[of] = rng.binomial(x.data[of].astype(int), 0.5)
        rest = sp.csr_matrix(x - part + sp.diags_array((~rows).astype(x.dtype)) @ x)
        part.eliminate_zeros(), rest.eliminate_zeros()
        first[m].X, second[m].X = part, rest
        rows_lost = rows & ((part.sum(1).A1 == 0) | (rest.sum(1).A1 == 0))
        for half in (first, second):
            half.obs["split"] = half.obs["split"].astype(str).mask(rows_lost, "unused")
    return first, second


def evaluate(
    methods: Mapping[str, Predictor],
    samples: Samples,
    modalities: Sequence[str] | None = None,
    split: str = "test",
    n_models: int = 1,
) -> pd.DataFrame:
    """How well methods tell the counts of a split: a row per method and modality, the first `n_models` of which are
    models and the others controls (`kind`).

    `nll`: nats per cell, summed over features; `rmse` of expected counts over all entries; `r`: Pearson's correlation
    of log1p of measured and expected counts over cells, median over features; for peaks, `auroc` and `auprc` per cell
    of measured (count > 0) against not, mean over at most 400 cells, and `positive`, the share of measured ones, which
    is the AUPRC of chance. No threshold is involved. Introduced in notebook 06.
    """
    table = []
    for i, (name, predict) in enumerate(methods.items()):
        for m in modalities or samples.n_vars:
            kind = "model" if i < n_models else "control"
            nll = {"nll": float(per_cell(predict, samples, m, split).mean())}
            found = (
                nll
                | agreement(predict, samples, m, split)
                | (ranking(predict, samples, m, split) if m == "atac" else {})
            )
            table.append({"method": name, "kind": kind, "modality": m} | found)
    return pd.DataFrame(table)


@torch.no_grad()
def agreement(predict: Predictor, samples: Samples, modality: str, split: str = "test") -> dict[str, float]:
    """`rmse` and `r` as in `evaluate`. Introduced in notebook 06."""
    squares, n, moments = 0.0, 0, 0.0
    for index in samples.rows(split).split(512):
        batch = samples[index]
        x, mean = batch.x[modality].double(), predict(batch)[modality].mean.double()
        squares, n = squares + float((x - mean).square().sum()), n + len(x)
        a, b = x.log1p(), mean.log1p()
        moments = moments + torch.stack([a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)])
    a, b, aa, bb, ab = moments / n
    varies = (aa - a * a > 1e-12) & (bb - b * b > 1e-12)
    r = ((ab - a * b) / ((aa - a * a) * (bb - b * b)).clamp(min=1e-24).sqrt())[varies]
    return {"rmse": (squares / (n * len(a))) ** 0.5, "r": float(r.median()) if len(r) else float("nan")}


@torch.no_grad()
def ranking(predict: Predictor, samples: Samples, modality: str, split: str = "test") -> dict[str, float]:
    """`auroc`, `auprc` and `positive` as in `evaluate`. Introduced in notebook 06."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = []
    for index in samples.rows(split)[:RANKED].split(128):
        batch = samples[index]
        expected, there = predict(batch)[modality].mean.cpu().numpy(), (batch.x[modality] > 0).cpu().numpy()
        pairs = [(y, p) for y, p in zip(there, expected, strict=True) if y.any() and not y.all()]
        scores += [(roc_auc_score(y, p), average_precision_score(y, p), y.mean()) for y, p in pairs]
    return dict(zip(("auroc", "auprc", "positive"), np.mean(scores, axis=0).tolist(), strict=True))


def translations(model: Model, mdata: mudata.MuData, **options) -> pd.DataFrame:
    """How well each modality of test cells is told from each other one: as `evaluate`, with `source` and `target`, and
    `ratio`, the mean over cells of −log p, over that of the model that saw the target itself.

    The model's codes are inferred from the source alone (`options` as of `inference.infer`). Controls: neighbours and
    the mean profile. Introduced in notebook 06.
    """
    ceiling, samples = "the model, seen itself", Samples(mdata, next(model.parameters()).device)
    flat, tables = mean_profile(samples), []
    for source, target in ((a, b) for a in mdata.mod for b in mdata.mod if a != b):
        blind = inference.infer(model, samples, "test", modalities=[source], **{"tolerance": TOLERANCE} | options)
        methods = {"the model": predictor(blind), ceiling: predictor(model)}
        methods |= {"30 neighbours": from_neighbours(mdata, source, target), "mean profile": flat}
        table = evaluate(methods, samples, [target], n_models=2).assign(source=source, target=target)
        nll = {name: per_cell(predict, samples, target) for name, predict in methods.items()}
        table["ratio"] = [float(np.mean(nll[name] / nll[ceiling])) for name in table["method"]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True).drop(columns="modality")


def covariate_classes(model: Model, samples: Samples, covariate: str, split: str = "test") -> np.ndarray:
    """The class of a covariate that each code of a split lies at, [n] whole numbers: the likeliest component of its
    part of the latent space. Labels are not looked at. Introduced in notebook 06.
    """
    place, mixture = parts_of(model.prior)[covariate]
    z = torch.from_numpy(tasks.embed(model, samples, split)[:, place]).to(mixture.mean)
    return mixture.responsibilities(z).argmax(-1).cpu().numpy()


def basal_codes(model: Model, data: Samples | mudata.MuData, split: str | None = None) -> np.ndarray:
    """Codes without the part of covariates [n, n_latent]; all of the code without such. Introduced in notebook 06."""
    z, parts = tasks.embed(model, data, split), parts_of(model.prior)
    return z[:, parts[BASAL][0]] if parts else z


def planes(model: Model, data: mudata.MuData, label_key: str, batch_key: str = "") -> dict[str, np.ndarray]:
    """Codes of test cells to look at [n, 2]: `label_key` -> principal components of the basal part, `batch_key` -> the
    two dimensions of that covariate. Introduced in notebook 06.
    """
    z, places = tasks.embed(model, data, "test"), parts_of(model.prior)
    basal = z[:, places[BASAL][0]]
    found = {label_key: controls.pca(basal, 2).embed(basal)}
    return found | ({batch_key: z[:, places[batch_key][0]]} if batch_key in places else {})
