"""Pictures drawn by models with and without an encoder: trained alike, judged by what they draw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from numpy.typing import ArrayLike

from helpers import claims, components, controls, datasets, fusion, inference, models, tasks, training
from helpers.batches import Samples
from helpers.decoders import BernoulliHead
from helpers.encoders import ImageEncoder
from helpers.load import Pace, subset
from helpers.models import Model
from helpers.models.assembly import own
from helpers.models.dgd import start_at
from helpers.models.xmodalix import image_decoder
from helpers.priors import StandardNormal

EDGE = 1e-6  # a predicted pixel is kept so far from 0 and 1, where a logarithm would end
WIDTHS = (128, 32)  # hidden layers of the classifier; the last one's activations are the features
SEARCH = {"tolerance": 1e-2, "steps": 100}  # of codes: pictures have hundreds of nats


@dataclass(frozen=True)
class Studio:
    """How every model of `experiment` is built and trained: the same decoder, the same steps. Introduced in
    notebook 05.
    """

    n_latent: int = 16
    width: int = 16  # channels of the decoder's last but one layer
    steps: int = 1000
    lr: float = 0.01
    batch_size: int = 64

    @property
    def pace(self) -> Pace:
        """What training takes; sixty epochs at least, which codes need, where there are steps enough."""
        return Pace(self.steps, (self.lr,), self.batch_size, min(60, self.steps // 15 + 1))


def pictures(dataset: str, n_train: int, n_test: int = 300, n_valid: int = 150, seed: int = 0) -> MuData:
    """The pictures of a data set, split at random: `n_test`, `n_valid`, and at most `n_train` to train on.

    Only modality `image` is kept. Raises ValueError
    for data without pictures, or with too few of them. Introduced in notebook 05.
    """
    mdata = datasets.load(dataset)
    if "image" not in mdata.mod or "image_shape" not in mdata["image"].uns:
        raise ValueError(f"'{dataset}' has no modality 'image' with pictures; it has {', '.join(mdata.mod)}")
    mdata = datasets.only(mdata, ["image"])
    left = mdata.n_obs - n_test - n_valid
    if left < 2:
        raise ValueError(f"'{dataset}' has {mdata.n_obs} pictures: too few for {n_test} test and {n_valid} valid ones")
    order = np.random.default_rng(seed).permutation(mdata.n_obs)[: n_test + n_valid + min(n_train, left)]
    mdata = mdata[order].copy()
    counts = [n_test, n_valid, mdata.n_obs - n_test - n_valid]
    names = ["train", "valid", "test"]
    mdata.obs["split"] = pd.Categorical(np.repeat(names[::-1], counts), names)
    return mdata


def pixels(mdata: MuData, split: str) -> np.ndarray:
    """Flat pictures [n, height * width * channels] of a split. Introduced in notebook 05."""
    return np.asarray(mdata["image"].X)[(mdata.obs["split"] == split).to_numpy()]


# ---------------------------------------------------------------- models


def with_codes(recipe: Callable[..., Model], samples: Samples, studio: Studio, mdata: MuData, **options) -> Model:
    """A model of learned codes that start at a PCA of the training pictures, of unit variance; a mixture at their
    clusters. Introduced in notebook 05.
    """
    kept = {"n_latent": studio.n_latent, "width": studio.width, "shapes": samples.shapes}
    model = recipe(samples.n_vars, len(samples), heads={"image": BernoulliHead}, **kept, **options)
    control = controls.pca(pixels(mdata, "train"), studio.n_latent)
    z = control.embed(np.asarray(mdata["image"].X))
    if hasattr(model.prior, "softball"):
        return start_at(model, z, samples.rows("train"))
    model.encoders[0].start_at(torch.as_tensor(z / control.spread, dtype=torch.float32))
    return model


def with_encoder(samples: Samples, studio: Studio, stochastic: bool) -> Model:
    """The same decoder behind its mirror image: a VAE, or a plain autoencoder. Introduced in notebook 05."""
    shape, (n_latent, width) = samples.shapes["image"], (studio.n_latent, studio.width)
    if stochastic:
        return models.imagix(shape, n_latent, width, head=BernoulliHead)
    encoders = [ImageEncoder("image", shape, n_latent, width, stochastic=False)]
    decoders = [image_decoder("image", shape, n_latent, width, BernoulliHead)]
    return Model(encoders, fusion.mixture, StandardNormal(n_latent), decoders, {}, reconstruct=own)


def recipes(ks: Sequence[int]) -> dict[str, tuple[Callable[..., Model], bool]]:
    """Name -> (function of samples, studio and data, whether codes are learned), with a DGD per number of components.

    Introduced in notebook 05.
    """

    def coded(recipe: Callable[..., Model], **options) -> Callable[..., Model]:
        return lambda samples, studio, mdata: with_codes(recipe, samples, studio, mdata, **options)

    def encoded(stochastic: bool) -> Callable[..., Model]:
        return lambda samples, studio, mdata: with_encoder(samples, studio, stochastic)

    found = {"decoder": (coded(models.decoder), True), "autoencoder": (encoded(False), False)}
    found |= {f"DGD, K = {k}": (coded(partial(models.dgd, n_components=k)), True) for k in ks}
    return found | {"VAD": (coded(models.vad), True), "VAE": (encoded(True), False)}


def drawn(model: Model) -> bool:
    """Whether draws from the model's prior mean anything: not for a decoder or autoencoder without one. Introduced in
    notebook 05.
    """
    return bool(model.penalties)


def paint(name: str, mdata: MuData, studio: Studio, ks: Sequence[int], seed: int = 0) -> tuple[Model, Samples]:
    """Train one of `recipes`; codes of test pictures are found too. The model and the samples that it knows.

    Introduced in notebook 05.
    """
    make, learned = recipes(ks)[name]
    samples = Samples(mdata)
    torch.manual_seed(seed)
    model = make(samples, studio, mdata)
    training.fit(model, samples, **studio.pace.options(len(samples.rows("train")), studio.lr, seed))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* codes still improved")  # by next to nothing, over hundreds of pixels
        return inference.infer(model, samples, "test", **SEARCH) if learned else model, samples


def fitted_draws(model: Model, samples: Samples, n: int, n_components: int, seed: int = 0) -> np.ndarray:
    """Pictures [n, n_vars] decoded from draws of a mixture that is fitted to the codes of training pictures afterwards.

    Every model can be drawn from in this way, with or without a prior. Source: Ghosh et al. 2020, ex-post density
    estimation. Introduced in notebook 05.
    """
    from sklearn.mixture import GaussianMixture

    z = tasks.embed(model, samples, "train").astype(float)
    n_components = min(n_components, len(z) // 4)
    floor = 1e-6 * float(z.var())
    mixture = GaussianMixture(n_components, covariance_type="diag", reg_covar=floor, random_state=seed).fit(z)
    return tasks.decode(model, mixture.sample(n)[0])["image"]


def per_component(model: Model, n: int = 8, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Pictures drawn from every component of a DGD, [n_components, n, n_vars]; the first of each is its mean.

    `spread` scales the standard deviations. Components come by falling weight. Introduced in notebook 05.
    """
    prior, noise = model.prior, torch.Generator().manual_seed(seed)
    order = prior.logits.detach().argsort(descending=True).cpu()
    sd = torch.exp(-0.5 * prior.neg_log_var.detach()).expand(prior.n_components, prior.n_latent).cpu()
    draws = torch.randn(prior.n_components, n, prior.n_latent, generator=noise)
    draws[:, 0] = 0
    z = prior.mean.detach().cpu()[:, None] + spread * sd[:, None] * draws
    x = tasks.decode(model, z[order].flatten(0, 1).numpy())["image"]
    return x.reshape(prior.n_components, n, -1)


@torch.no_grad()
def cells(model: Model, component: int, n: int, library: float = 1e4, seed: int = 0) -> np.ndarray:
    """Counts [n, n_vars] of cells drawn from one component of a scDGD: a code from its Gaussian, counts from the
    likelihood with `library` expected counts in all. Introduced in notebook 05.
    """
    prior, modality = model.prior, next(iter(model.likelihoods))
    sd = torch.exp(-0.5 * prior.neg_log_var).expand(prior.n_components, prior.n_latent)[component]
    noise = torch.randn(n, prior.n_latent, generator=torch.Generator().manual_seed(seed)).to(sd.device)
    depth = {modality: torch.full((n, 1), float(library), device=sd.device)}
    found = model.eval().decode(prior.mean[component] + sd * noise, depth)[modality]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return found.sample().cpu().numpy()


def portraits(
    model: Model, samples: Samples, table: pd.DataFrame, names: Sequence[str], n: int = 40, seed: int = 0
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, pd.DataFrame]]]:
    """Marker genes of every component, and cells drawn from it beside measured ones: what `explore.components` shows.

    `table` is `components.component_table` of the train split; components come by falling size, named by number and
    main class. At most `n` cells each; drawn ones have the mean library size of the measured.

    Introduced in notebook 05.
    """
    modality, rows = next(iter(model.likelihoods)), samples.rows("train")
    own = components.component_of(model.prior, tasks.embed(model, samples, "train"))
    markers, beside = {}, {}
    for c in sorted(table.index, key=lambda k: -table.attrs["n"][k]):
        measured = samples[rows[torch.from_numpy(np.flatnonzero(own == c)[:n])]].x[modality].cpu().numpy()
        made = cells(model, c, len(measured), measured.sum(1).mean(), seed)
        name = f"{c}: {table.loc[c].idxmax()}"
        markers[name] = components.markers(model, c, names, 12, modality)
        each = {"drawn": made, "measured": measured}
        beside[name] = {what: pd.DataFrame(x, columns=list(names)) for what, x in each.items()}
    return markers, beside


# ---------------------------------------------------------------- how good are they?


def pixel_scores(x: np.ndarray, x_hat: np.ndarray) -> dict[str, float]:
    """ "BCE", nats per pixel; "excess", the part of it above a perfect reconstruction of these grey values; "mse".

    Introduced in notebook 05.
    """
    p = np.clip(np.asarray(x_hat, float), EDGE, 1 - EDGE)
    x = np.asarray(x, float)
    bce = -(x * np.log(p) + (1 - x) * np.log(1 - p)).mean()
    q = np.clip(x, EDGE, 1 - EDGE)
    floor = -(x * np.log(q) + (1 - x) * np.log(1 - q)).mean()
    return {"BCE": float(bce), "excess": float(bce - floor), "mse": float(np.square(x - x_hat).mean())}


@dataclass(frozen=True)
class Eyes:
    """What a small classifier has learned to see in training pictures. Introduced in notebook 05.

    `features`: flat pictures [n, n_vars] -> activations of its last hidden layer, in units of their standard deviation
    over training pictures; `predict`: -> class names [n].
    """

    features: Callable[[np.ndarray], np.ndarray]
    predict: Callable[[np.ndarray], np.ndarray]


def eyes(mdata: MuData, seed: int = 0) -> Eyes:
    """Train a dense classifier of two hidden layers on the training pictures and their classes.

    Fréchet distances on its features say whether drawn pictures show the right things, as FID does with a network
    trained on photographs, which is of no use for handwriting. Raises ValueError for pictures without classes.
    Introduced in notebook 05.
    """
    from sklearn.neural_network import MLPClassifier

    settings = {"max_iter": 300, "learning_rate_init": 3e-3, "n_iter_no_change": 5, "tol": 1e-3}
    network = MLPClassifier(WIDTHS, random_state=seed, alpha=1e-3, **settings)
    if not (column := mdata.uns["dataset"]["label_key"]):
        raise ValueError("the pictures have no classes to learn: load them with label_key=")
    x_train = pixels(mdata, "train")
    network.fit(x_train.astype(float), mdata.obs.loc[mdata.obs["split"] == "train", column].astype(str).to_numpy())

    def seen(x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            x = np.maximum(np.asarray(x, float) @ weight + bias, 0)
        return x

    sd = seen(x_train).std(0)
    alive = sd > 0
    return Eyes(lambda x: seen(x)[:, alive] / sd[alive], network.predict)


def frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance of two sets of features [n, d] taken for Gaussians: |μ − μ'|² + tr(Σ + Σ' − 2 (Σ Σ')^½).

    0 for equal means and covariances. Raises ValueError for fewer than two samples or other widths. Source: Dowson and
    Landau 1982; Heusel et al. 2017 (FID). Introduced in notebook 05.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"frechet: two sets of samples of one width are needed, got {a.shape} and {b.shape}")
    s, t = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.linalg.eigvalsh(root @ t @ root).clip(0)  # eigenvalues of Σ Σ'
    off = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(off + np.trace(s) + np.trace(t) - 2 * np.sqrt(between).sum(), 0.0))


def simple(mdata: MuData, studio: Studio, n: int, seed: int = 0) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    """Controls: name -> (reconstructed test pictures, drawn pictures): PCA and a Gaussian in its space, the mean
    picture, and for the drawn ones the training pictures themselves (the best that can be hoped for).

    Introduced in notebook 05.
    """
    train, test = pixels(mdata, "train"), pixels(mdata, "test")
    control = controls.pca(train, min(studio.n_latent, len(train) - 1))
    gaussian = control.sample(n, seed).clip(0, 1)
    mean = train.mean(0)
    return {
        "PCA": (control.decode(control.embed(test)).clip(0, 1), gaussian),
        "mean picture": (np.tile(mean, (len(test), 1)), np.tile(mean, (n, 1))),
        "training pictures": (None, train),
    }


def gallery(mdata: MuData, studio: Studio, ks: Sequence[int], n: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures drawn from the components of a DGD for each of `ks`, as `per_component` gives them: `n`
    of each, ten of a single one. Introduced in notebook 05.
    """
    found = {}
    for k in ks:
        model, _ = paint(f"DGD, K = {k}", mdata, studio, ks, seed)
        found[f"DGD, K = {k}"] = per_component(model, 10 if k == 1 else n, seed)
    return found


def experiment(
    mdata: MuData,
    seen_by: Eyes,
    n_train: int,
    names: Sequence[str],
    ks: Sequence[int] = (20,),
    studio: Studio | None = None,
    seed: int = 0,
    n_drawn: int = 1000,
) -> pd.DataFrame:
    """Models and controls on `n_train` pictures: a row each with reconstruction and quality of what they draw.

    `names` of `recipes(ks)`. Columns: n_train, seed, model, kind ("model" or "control"), the `pixel_scores` of
    test pictures, "train BCE", and two distances between features of `n_drawn` drawn and of all test pictures:
    "Fréchet" with draws from the prior (NaN for a model without one) and "Fréchet, fitted" with `fitted_draws` of as
    many components as the model has, or the largest of `ks`. The same arguments give the same table.
    Introduced in notebook 05.
    """
    studio, part = studio or Studio(), subset(mdata, n_train, seed)
    test, rows = pixels(part, "test"), []
    target = seen_by.features(test)
    for name in names:
        model, samples = paint(name, part, studio, ks, seed)
        k = getattr(model.prior, "n_components", max(ks))
        seen = {"Fréchet": tasks.sample(model, n_drawn, seed)["image"]} if drawn(model) else {}
        seen["Fréchet, fitted"] = fitted_draws(model, samples, n_drawn, k, seed)
        again = {s: tasks.reconstruct(model, samples, s)["image"] for s in ("train", "test")}
        found = pixel_scores(test, again["test"])
        found["train BCE"] = pixel_scores(pixels(part, "train"), again["train"])["BCE"]
        found |= {column: frechet(seen_by.features(x), target) for column, x in seen.items()}
        rows.append({"model": name, "kind": "model"} | found)
    for name, (x_hat, x) in simple(part, studio, n_drawn, seed).items():
        found = {} if x_hat is None else pixel_scores(test, x_hat)
        rows.append({"model": name, "kind": "control"} | found | {"Fréchet": frechet(seen_by.features(x), target)})
    return pd.DataFrame([{"n_train": n_train, "seed": seed} | row for row in rows])


def verdicts(made: pd.DataFrame) -> list[dict[str, str]]:
    """Claims D3 and D4 from tables of `experiment` (column `dataset` too) that have all of `recipes`.

    D3: with the fewest pictures, the autoencoder's squared error on test pictures is at least twice the decoder's. D4:
    the DGD with most components has a BCE of at most the VAD's, and below the VAE's, and draws better pictures than the
    one with fewest: from the prior, and from a mixture fitted afterwards. Introduced in notebook 05.
    """
    made = made[made["kind"] == "model"]
    by = made.pivot_table(["BCE", "Fréchet", "Fréchet, fitted"], ["dataset", "n_train", "seed"], "model")
    few = made[made["n_train"] == made.groupby("dataset")["n_train"].transform("min")]
    few = few.pivot_table("mse", ["dataset", "seed"], "model")
    ratio = few["autoencoder"] / few["decoder"]
    names = sorted((name for name in by["BCE"] if name.startswith("DGD")), key=lambda name: int(name.split()[-1]))
    most, least = names[-1], names[0]
    cases = {
        "BCE at most the VAD's": by["BCE", most] <= by["BCE", "VAD"],
        "below the VAE's": by["BCE", most] < by["BCE", "VAE"],
        f"draws from the prior better than with {least}": by["Fréchet", most] < by["Fréchet", least],
        "from a fitted mixture too": by["Fréchet, fitted", most] < by["Fréchet, fitted", least],
    }
    said = ", ".join(f"{name} {each.sum()} of {len(each)}" for name, each in cases.items())
    twice = f"autoencoder's squared error at least twice the decoder's (mean ratio {ratio.mean():.1f})"
    return [
        claims.share("D3", ratio >= 2, twice),
        claims.share("D4", np.concatenate([*cases.values()]), f"{most}: {said}"),
    ]
