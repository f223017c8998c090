"""What a decoder without an encoder needs: samples to learn from (the load), and work to place new ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from torch import Tensor, nn

from helpers import claims, components, datasets, fusion, inference, models, regulation, tasks, training
from helpers.batches import Batch, Samples
from helpers.encoders import Posterior
from helpers.layers import LinkedLinear, linear
from helpers.likelihoods import Gaussian
from helpers.models import Model
from helpers.priors import StandardNormal

SLOPE = 0.1  # of the encoder's LeakyReLU below zero (the text; its table says 0.01)


STARTS = {"scDGD, codes at a PCA": components.codes_from_pca, "scDGD, codes at random": components.codes_from_noise}


@dataclass(frozen=True)
class Pace:
    """Optimiser steps, and the learning rates of which each model keeps its best on valid. Introduced in notebook 05.

    Steps rather than epochs, so that small training sets are learned as thoroughly as large ones; but `epochs` at
    least, where each sample has a code that moves once an epoch.
    """

    steps: int = 1500
    lrs: Sequence[float] = (0.01,)
    batch_size: int = 32
    epochs: int = 1

    def options(self, n_train: int, lr: float, seed: int) -> dict:
        """Arguments of `training.fit`; training ends once valid has not improved for a quarter of its epochs."""
        size = max(2, min(self.batch_size, -(-n_train // 4)))  # four steps an epoch at least
        epochs = max(self.epochs, self.steps // -(-n_train // size))
        settings = {"epochs": epochs, "patience": max(10, epochs // 4), "batch_size": size, "lr": lr}
        return settings | {"decay": "cosine", "weight_decay": 1e-5, "seed": seed, "progress": False}


@dataclass(frozen=True)
class Paces:
    """What the three models of `experiment` need to be trained well, found on networks of other seeds.

    Introduced in notebook 05.
    """

    decoder: Pace = field(default_factory=lambda: Pace(1500, epochs=150))
    encoder: Pace = field(default_factory=lambda: Pace(3000, (0.001,)))
    autoencoder: Pace = field(default_factory=lambda: Pace(6000, (0.01,)))

    def times(self, factor: float) -> Paces:
        """So many times as many steps."""

        def scaled(pace: Pace) -> Pace:
            return replace(pace, steps=round(factor * pace.steps), epochs=max(1, round(factor * pace.epochs)))

        return Paces(**{name: scaled(pace) for name, pace in vars(self).items()})


def of_decoder(n_train: float, n_vars: int, n_latent: int, complexity: float | None = None) -> float:
    """Load of a decoder, α = N n / (C + N m): known values per unknown, weights and codes together.

    N `n_train` samples of n `n_vars` values, m `n_latent` code values each, and C the `complexity` of the decoder: its
    number of weights, n m of a dense layer unless given, an upper bound (sparse weights make the true load larger).
    Above 1 there is more to learn from than to be learned; it cannot exceed n / m. Raises ValueError for numbers that
    are not positive. Source: Schuster and Krogh 2021 (Entropy 23:1403). Introduced in notebook 05.
    """
    complexity = n_vars * n_latent if complexity is None else complexity
    if min(n_train, n_vars, n_latent, complexity) <= 0:
        raise ValueError(f"a load needs positive numbers, got {n_train}, {n_vars}, {n_latent} and {complexity}")
    return n_train * n_vars / (complexity + n_train * n_latent)


def of_encoder(n_train: float, n_vars: int, n_latent: int) -> float:
    """Load of a dense linear encoder, α = N m / (n m) = N / n: code values per weight. Introduced in notebook 05."""
    return n_train * n_latent / (n_vars * n_latent)


def n_samples(load: float, n_vars: int, n_latent: int) -> int:
    """Training samples that give a decoder this load (C = n m); the inverse of `of_decoder`, rounded up.

    Raises ValueError for a load that no number of samples reaches. Introduced in notebook 05.
    """
    most = n_vars / n_latent
    if not 0 < load < most:
        raise ValueError(
            f"load {load:g} must be above 0 and below n / m = {most:g}, which no number of samples reaches"
        )
    return int(np.ceil(round(n_vars * load / (most - load), 6)))


def table(loads: Sequence[float], n_vars: int, n_latent: int) -> pd.DataFrame:
    """What loads mean: training samples, and the load of an encoder with as many weights. Introduced in notebook 05."""
    n_train = [n_samples(load, n_vars, n_latent) for load in loads]
    encoder = [of_encoder(n, n_vars, n_latent) for n in n_train]
    return pd.DataFrame({"load of the decoder": loads, "training samples": n_train, "load of an encoder": encoder})


def simulated(
    n_train: int, n_genes: int, n_regulators: int, n_held: int = 100, density: float = 0.1, seed: int = 0
) -> MuData:
    """`sim-regulation` without noise: `n_held` test samples, as many valid ones, and `n_train` to train on.
    A share `density` of all possible links is there.

    Data sets of one seed share their network, test and valid samples, and the smaller's training samples are among
    those of the larger. Introduced in notebook 05.
    """
    sizes = {"n_genes": n_genes, "n_regulators": n_regulators, "density": density, "noise": 0.0}
    mdata = datasets.load("sim-regulation", n_obs=2 * n_held + n_train, seed=seed, **sizes)
    names = ["train", "valid", "test"]
    mdata.obs["split"] = pd.Categorical(np.repeat(names[::-1], [n_held, n_held, n_train]), names)
    return mdata


class RectifiedHead(nn.Module):
    """Codes [batch, n_regulators] -> `Gaussian` of variance ½ whose mean is max(0, W z + b), W zero but at `links`.

    `links` [n_vars, n_regulators] says who may act on whom. Introduced in notebook 05.
    """

    likelihood = Gaussian

    def __init__(self, links: np.ndarray):
        super().__init__()
        self.drive = LinkedLinear(links)

    def forward(self, h: Tensor, library: Tensor | None = None) -> Gaussian:
        return Gaussian(torch.relu(self.drive(h)), 0.5)


class LinearEncoder(nn.Module):
    """One linear layer and a LeakyReLU: points, [batch, n_latent]. Introduced in notebook 05."""

    stochastic = False

    def __init__(self, modality: str, n_vars: int, n_latent: int):
        super().__init__()
        self.modalities, self.n_latent = (modality,), n_latent
        self.layer = linear(n_vars, n_latent)

    def forward(self, batch: Batch) -> Posterior:
        """Values `batch.x[modality]` [batch, n_vars] -> posterior [batch, n_latent]."""
        return Posterior(nn.functional.leaky_relu(self.layer(batch.x[self.modalities[0]]), SLOPE), None)


def decoder(samples: Samples, links: np.ndarray) -> Model:
    """The network turned round: learned codes, one sparse layer with known links, ReLU. Introduced in notebook 05."""
    heads = {"rna": lambda n_in, n_vars: RectifiedHead(links)}
    return models.decoder(samples.n_vars, len(samples), links.shape[1], hidden=(), heads=heads)


def autoencoder(samples: Samples, links: np.ndarray) -> Model:
    """The same decoder behind a linear encoder with LeakyReLU. Introduced in notebook 05."""
    n_vars, n_latent = links.shape
    encoders = [LinearEncoder("rna", n_vars, n_latent)]
    return Model(encoders, fusion.concatenate, StandardNormal(n_latent), decoder(samples, links).decoders, {})


def trained(make: Callable[[], Model], samples: Samples, pace: Pace, seed: int) -> tuple[Model, float]:
    """A model that `make()` builds, trained at each learning rate of its pace: the best on valid, and its rate.

    Introduced in notebook 05.
    """
    n_train, made = len(samples.rows("train")), []
    for lr in pace.lrs:
        torch.manual_seed(seed)
        model = make()
        history = training.fit(model, samples, **pace.options(n_train, lr, seed))
        made.append((history.query("split == 'valid' and term == 'total'")["value"].min(), lr, model))
    _, lr, model = min(made, key=lambda each: each[0])
    return model, lr


def encoder_on(model: Model, samples: Samples, pace: Pace, seed: int) -> tuple[Model, float]:
    """A linear encoder for the decoder of `model`, which stays as it is: the best on valid, and its learning rate.

    Introduced in notebook 05.
    """
    n_train, made, n_vars = len(samples.rows("train")), [], samples.n_vars["rna"]
    for lr in pace.lrs:
        torch.manual_seed(seed)
        encoder = LinearEncoder("rna", n_vars, model.prior.n_latent)
        found = inference.amortised(model, samples, encoder, **pace.options(n_train, lr, seed))
        made.append((mean_squares(found, samples, "valid"), lr, found))
    _, lr, found = min(made, key=lambda each: each[0])
    return found, lr


def mean_squares(model: Model, samples: Samples, split: str) -> float:
    """Mean squared error per value of the reconstruction of a split. Introduced in notebook 05."""
    x = samples[samples.rows(split)].x["rna"].cpu().numpy()
    return float(np.square(tasks.reconstruct(model, samples, split)["rna"] - x).mean())


def scores(model: Model, mdata: MuData, samples: Samples, split: str = "test") -> dict[str, float]:
    """ "mse" per value, "unexplained" (the same over the variance of genes), and "r", the median over regulators of the
    correlation between code and true activity across samples: its size, since weights and codes may both change sign.

    Introduced in notebook 05.
    """
    rows = mdata.obs["split"].to_numpy() == split
    truth, z = mdata.obsm["truth_regulators"][rows], tasks.embed(model, samples, split)
    mse = mean_squares(model, samples, split)
    variance = float(np.var(mdata["rna"].X[rows], axis=0).mean())
    return {"mse": mse, "unexplained": mse / variance, "r": float(np.median(agreement(z, truth)))}


def agreement(z: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|Pearson r| of every code dimension with its true activity [n_latent]; 0 where a code does not vary.

    Introduced in notebook 05.
    """
    a, b = z - z.mean(0), truth - truth.mean(0)
    size = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.abs((a * b).sum(0)) / np.where(size > 0, size, 1)


def experiment(
    load: float,
    seed: int = 0,
    n_genes: int = 1000,
    n_regulators: int = 100,
    density: float = 0.1,
    paces: Paces | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Decoder, encoder on that decoder, and autoencoder at one load: a row per model with `scores` of test samples.

    Columns: load, n_train, seed, model, lr (the best one on valid), mse, unexplained, r. All three have one sparse
    layer with known links and ReLU; the codes of the decoder's test samples are found with it frozen. "mean" is a
    control: the train mean. The same arguments give the same table. Source: Schuster and Krogh 2021, section 2.3.
    Introduced in notebook 05.
    """
    paces = paces or Paces()
    mdata = simulated(n_samples(load, n_genes, n_regulators), n_genes, n_regulators, density=density, seed=seed)
    samples = Samples(mdata, device)
    links = regulation.weights(mdata).to_numpy() != 0
    alone, lr = trained(lambda: decoder(samples, links), samples, paces.decoder, seed)
    rows = [{"model": "decoder", "lr": lr} | scores(inference.infer(alone, samples, "test", lr=0.3), mdata, samples)]
    found, lr = encoder_on(alone, samples, paces.encoder, seed)
    rows.append({"model": "encoder on it", "lr": lr} | scores(found, mdata, samples))
    whole, lr = trained(lambda: autoencoder(samples, links), samples, paces.autoencoder, seed)
    rows.append({"model": "autoencoder", "lr": lr} | scores(whole, mdata, samples))
    rows.append({"model": "mean", "lr": np.nan} | of_mean(mdata))
    table = pd.DataFrame(rows)
    n_train = int((mdata.obs["split"] == "train").sum())
    return pd.concat([pd.DataFrame({"load": load, "n_train": n_train, "seed": seed}, table.index), table], axis=1)


def of_mean(mdata: MuData) -> dict[str, float]:
    """`scores` of the train mean as the answer for every test sample. Introduced in notebook 05."""
    x, split = mdata["rna"].X, mdata.obs["split"].to_numpy()
    test = x[split == "test"]
    mse = float(np.square(test - x[split == "train"].mean(0)).mean())
    return {"mse": mse, "unexplained": mse / float(np.var(test, axis=0).mean()), "r": 0.0}


def verdicts(made: pd.DataFrame) -> list[dict[str, str]]:
    """Claims D1 and D2 from tables of `experiment` at several loads and seeds.

    D1: the decoder at the smallest load from 1 on has a lower test error than the autoencoder at the largest. D2: r of
    at least 0.99 for the decoder above load 1 and the encoder from 3.3 on, never for the autoencoder. Introduced in
    notebook 05.
    """
    error, r = (made.pivot_table(value, ["load", "seed"], "model") for value in ("unexplained", "r"))
    loads = r.index.get_level_values("load")
    least, most = min([load for load in loads if load >= 1], default=max(loads)), max(loads)
    pairs = zip(error.loc[least, "decoder"], error.loc[most, "autoencoder"], strict=True)
    below = [a < b for a, b in pairs]
    known = {
        "decoder above load 1": r["decoder"][loads > 1] >= 0.99,
        "encoder on it from load 3.3": r["encoder on it"][loads >= 3.3] >= 0.99,
        "autoencoder never": r["autoencoder"] < 0.99,
    }
    said = ", ".join(f"{name} {each.sum()} of {len(each)}" for name, each in known.items())
    return [
        claims.share("D1", below, f"test error of the decoder at load {least:g} below the autoencoder's at {most:g}"),
        claims.share("D2", np.concatenate([*known.values()]), f"r of 0.99 as claimed ({said})"),
    ]


# ---------------------------------------------------------------- the same questions, of cells


def efficiency(
    mdata: MuData, label: str, n_train: int, k: int, seed: int = 0, epochs: int = 100, **options
) -> pd.DataFrame:
    """`components.clusterings` with `n_train` of the training cells: a row per method, with the column n_train.

    scDGD of `k` components and its peers; test cells are always the same, and the cells of a small training set are
    among those of a larger one. Small sets train for as many steps as the whole, `epochs` of it. `options` as of
    `clusterings`. Raises ValueError for more training cells than there are. Introduced in notebook 05.
    """
    part, n_all = subset(mdata, n_train, seed), int((mdata.obs["split"] == "train").sum())
    starts = {"scDGD": components.from_pca}
    longer = round(epochs * n_all / n_train)
    table = components.clusterings(part, label, [k], [seed], longer, starts=starts, **options)
    return table.assign(n_train=n_train)


def subset(mdata: MuData, n_train: int, seed: int = 0) -> MuData:
    """The same data with `n_train` of the training samples, chosen at random: the smaller choice is part of the larger.

    Raises ValueError for fewer than two, or more than there are. Introduced in notebook 05.
    """
    train = np.flatnonzero(mdata.obs["split"] == "train")
    if not 2 <= n_train <= len(train):
        raise ValueError(f"n_train={n_train} must be at least 2, and at most the {len(train)} training samples")
    left_out = np.random.default_rng(seed).permutation(train)[n_train:]
    return mdata[np.setdiff1d(np.arange(mdata.n_obs), left_out)].copy()


def ways_to_codes(model: Model, samples: Samples, encoder: Model, split: str = "test") -> pd.DataFrame:
    """What it costs to place new samples, and how well they are placed: a row per way.

    Ways: `encoder` (of `inference.amortised`) alone; the search from component means, 20 steps of 0.01 as published and
    to convergence; the search to convergence from where the encoder begins. Columns: way, nll (nats per sample), loss
    (with -log p(z)), decodings (passes through the decoder per sample) and seconds
    (of the processor). Introduced in notebook 05.
    """
    ways = {
        "encoder": lambda: encoder,
        "20 steps, as published": lambda: inference.infer(model, samples, split, steps=20, lr=0.01),
        "search": lambda: inference.infer(model, samples, split),
        "encoder, then search": lambda: inference.infer(model, samples, split, start=encoder),
    }
    return pd.DataFrame([{"way": name} | cost(way, model, samples, split) for name, way in ways.items()])


def cost(way: Callable[[], Model], model: Model, samples: Samples, split: str) -> dict[str, float]:
    """nll, loss, decodings and seconds of one way to codes for the samples of a split. Introduced in notebook 05."""
    began = time.process_time()
    with decodings(model) as rows, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* codes still improved")  # what that costs is shown
        placed = way()
        z = torch.from_numpy(tasks.embed(placed, samples, split))
    seconds = time.process_time() - began
    nll = components.reconstruction(placed, samples, split)["nll"]
    with torch.no_grad():
        prior = -float(model.prior.log_prob(z.to(model.prior.mean.device)).mean())
    return {"nll": nll, "loss": nll + prior, "decodings": sum(rows) / len(z), "seconds": seconds}


@contextmanager
def decodings(model: Model) -> Iterator[list[int]]:
    """Count rows that pass through the first decoder while the block runs. Introduced in notebook 05."""
    rows: list[int] = []
    handle = model.decoders[0].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


def verdicts_on_cells(
    found: pd.DataFrame, starts: pd.DataFrame, placed: pd.DataFrame, n_types: int
) -> list[dict[str, str]]:
    """Claims D5 to D8 from `components.clusterings` with K = `n_types` and twice that, the same from other starts of
    the codes, and `ways_to_codes`.

    D5: ARI of the scDGD above those of k-means on the VAE and of Leiden on the PCA, and higher with 2K than with K.
    D6: RMSE of test cells at most the VAE's. D7: ARI with codes at zero above that of the best other start, seed by
    seed. D8: an encoder alone comes within 1 % of the search's NLL; as its start, it halves the search. Introduced in
    notebook 05.
    """
    ari, rmse = (found.pivot_table(value, ["k", "seed"], "method") for value in ("ari", "rmse"))
    leiden = found[found["method"] == "PCA, Leiden"].set_index("seed")["ari"]
    ours, cost = ari["scDGD"], placed.set_index("way")
    zero = ari["scDGD, published start"].loc[n_types]
    other = starts[starts["method"].isin(STARTS)].pivot_table("ari", "seed", "method").max(axis=1)
    cases = {
        "above the VAE's k-means": ours > ari["VAE, k-means"],
        "above Leiden on the PCA": ours.loc[n_types] > leiden,
        "higher with twice as many components": ours.loc[2 * n_types] > ours.loc[n_types],
    }
    said = ", ".join(f"{name} {each.sum()} of {len(each)}" for name, each in cases.items())
    near = cost.loc["encoder", "nll"] <= 1.01 * cost.loc["search", "nll"]
    faster = cost.loc["encoder, then search", "decodings"] < 0.5 * cost.loc["search", "decodings"]
    mended = f"encoder within 1 % of the search's NLL: {near}; search from it half as long: {faster}"
    return [
        claims.share("D5", np.concatenate([*cases.values()]), f"ARI of scDGD: {said}"),
        claims.share("D6", rmse["scDGD"] <= rmse["VAE, k-means"], "RMSE of test cells at most the VAE's"),
        claims.difference("D7", zero, other, "ARI of codes at zero over the best of other starts"),
        claims.share("D8", [near, faster], mended),
    ]
