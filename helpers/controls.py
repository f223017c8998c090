"""What every comparison needs beside it: PCA, a random projection, and nothing at all, fitted on train only.

For codes `LinearControl`s, for the way from one modality to another `Translator`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from helpers.models import Model
from helpers.wording import few

ALPHAS = tuple(np.logspace(-2, 6, 17))  # ridge penalties to choose from, for standardised sources
N_PLS = (2, 5, 10, 15, 20, 30)  # numbers of PLS components to choose from
SURE = -3.0  # log-variance at which a variational model starts: sd 0.22, where train codes have 1


@dataclass(frozen=True)
class LinearControl:
    """An affine code and its least-squares decoder, with the calls of a fitted model. Introduced in notebook 01."""

    name: str
    centre: np.ndarray  # [n_vars] train mean
    encode: np.ndarray  # [n_vars, n_latent]
    decode_by: np.ndarray  # [n_latent, n_vars]
    spread: np.ndarray  # [n_latent] sd of the train codes

    def embed(self, x: np.ndarray) -> np.ndarray:
        """x [n_obs, n_vars] -> codes [n_obs, n_latent]."""
        return (x - self.centre) @ self.encode

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Codes [n, n_latent] -> expected values [n, n_vars]."""
        return self.centre + z @ self.decode_by

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """Expected values [n, n_vars] at codes drawn from independent Gaussians with the train codes' spread."""
        return self.decode(np.random.default_rng(seed).normal(size=(n, len(self.spread))) * self.spread)


def pca(x_train: np.ndarray, n_latent: int, weight: Sequence[float] | None = None) -> LinearControl:
    """Principal components of x_train [n_obs, n_vars]: the best linear code. Introduced in notebook 01.

    `weight` [n_vars] counts the squared errors of a feature so many times (`balance`); codes and decoded values stay
    those of unweighted data.
    """
    from sklearn.decomposition import PCA

    root = np.ones(x_train.shape[1]) if weight is None else np.sqrt(np.asarray(weight))
    axes = PCA(n_latent, random_state=0).fit(x_train * root).components_
    return _control("PCA" if weight is None else "balanced PCA", x_train, (axes * root).T, axes / root)


def balance(x_train: Mapping[str, np.ndarray], strength: float = 0.5) -> dict[str, float]:
    """Weight per modality, at most 1, that keeps one from ruling the first dimensions of a joint code.

    With `strength` 1 each modality's leading eigenvalue (of the covariance of x_train[m], [n_obs, n_vars]) is held
    down to that of the modality with the largest total variance, as multiple factor analysis does (Escofier and Pagès
    1994), but without raising the weak ones, whose noise it would raise too; 0 leaves all as they are, 0.5 goes half
    the way (on a log scale). Neighbouring genes share their copy number, so that `cnv` repeats one number many times.
    Use as weights of the terms `nll/<modality>` or of `pca`. Introduced in notebook 02.
    """
    variance = {m: np.var(x, axis=0).sum() for m, x in x_train.items()}
    leading = {m: np.linalg.norm(x - x.mean(0), 2) ** 2 / len(x) for m, x in x_train.items()}
    bar = leading[max(variance, key=variance.get)]
    return {m: float(min(1.0, bar / value) ** strength) if value > 0 else 1.0 for m, value in leading.items()}


def random_projection(x_train: np.ndarray, n_latent: int, seed: int = 0) -> LinearControl:
    """A Gaussian random projection, decoded by least squares on train. Introduced in notebook 01."""
    n_vars = x_train.shape[1]
    encode = np.random.default_rng(seed).normal(size=(n_vars, n_latent)) / np.sqrt(n_vars)
    codes = (x_train - x_train.mean(0)) @ encode
    return _control("random", x_train, encode, np.linalg.lstsq(codes, x_train - x_train.mean(0), rcond=None)[0])


def zeros(x_train: np.ndarray, n_latent: int) -> LinearControl:
    """A code that says nothing: every sample is the train mean. Introduced in notebook 01."""
    n_vars = x_train.shape[1]
    return _control("zeros", x_train, np.zeros((n_vars, n_latent)), np.zeros((n_latent, n_vars)))


@torch.no_grad()
def start_at(model: Model, control: LinearControl) -> Model:
    """Let a model with linear paths (`models.varix(..., skip=True)`) begin as `control`, and return it.

    The linear paths become the control's code, scaled to unit variance on train, and its decoder; what the dense
    blocks add begins at zero. Training can then only improve on the control, on the train split at least. The
    control must have been fitted on the model's modalities side by side. Raises ValueError for a model without such
    paths, other sizes, or heads that are not Gaussian. Introduced in notebook 02.
    """
    encoder, decoder = model.encoders[0], model.decoders[0]
    if not (getattr(encoder, "skip", False) and getattr(decoder, "skip", False)):
        raise ValueError("start_at needs linear paths in encoder and decoder: make the model with skip=True")
    n, (n_vars, n_latent) = encoder.n_latent, control.encode.shape
    if any(not hasattr(head, "mean") for head in decoder.heads.values()):
        raise ValueError("start_at needs Gaussian heads, whose mean a linear control can give")
    sizes = [head.mean.out_features for head in decoder.heads.values()]
    if (sum(sizes), n) != (n_vars, n_latent):
        raise ValueError(f"the control has {n_vars} features and {n_latent} dimensions, the model {sum(sizes)} and {n}")
    width = np.where(control.spread > 0, control.spread, 1)
    _place_encoder(encoder, control.encode / width, -(control.centre @ control.encode) / width)
    loadings = np.split(control.decode_by * width[:, None], np.cumsum(sizes)[:-1], axis=1)
    centres = np.split(np.asarray(control.centre), np.cumsum(sizes)[:-1])
    for head, loading, centre in zip(decoder.heads.values(), loadings, centres, strict=True):
        _place_decoder(head.mean, loading, centre)
    return model


@torch.no_grad()
def start_aligned(model: Model, x_train: Mapping[str, np.ndarray], around: str, folds: object | None = None) -> Model:
    """Let an X-modalix with linear paths (`skip=True`) begin as principal components, and return it.

    The latent space becomes the components of modality `around`, scaled to unit variance on train; every other
    modality's encoder becomes the ridge regression to them (`folds` as in `ridge_to_pca`), its decoder the one back.
    Translation to `around` thus begins as `ridge_to_pca`, and what convolutions and dense blocks add begins at zero.
    x_train: modality -> values [n_train, n_vars] of the same samples. Raises ValueError for a model without linear
    paths, modalities that are missing or of other sizes, and more dimensions than the samples allow.
    Introduced in notebook 04.
    """
    parts = {e.modalities[0]: (e, d) for e, d in zip(model.encoders, model.decoders, strict=True)}
    if around not in parts or set(parts) != set(x_train):
        raise ValueError(f"the model has {few(parts)}, x_train {few(x_train)}, and around is {around!r}: they must fit")
    if not all(encoder.skip for encoder, _ in parts.values()):
        raise ValueError("start_aligned needs linear paths in encoders and decoders: make the model with skip=True")
    n_latent, target = model.prior.n_latent, np.asarray(x_train[around], float)
    if any(not hasattr(head, "mean") for _, decoder in parts.values() for head in decoder.heads.values()):
        raise ValueError("start_aligned needs Gaussian heads, whose mean a linear control can give")
    if n_latent >= min(target.shape):
        raise ValueError(
            f"{n_latent} dimensions are too many for {target.shape[0]} samples of {target.shape[1]} features"
        )
    axes = pca(target, n_latent)
    width = np.where(axes.spread > 0, axes.spread, 1)
    codes = axes.embed(target) / width  # [n_train, n_latent]
    for m, (encoder, decoder) in parts.items():
        if m == around:
            there, back = (axes.encode / width, -(axes.centre @ axes.encode) / width), axes.decode_by * width[:, None]
        else:
            there, back = _ridge(x_train[m], codes, folds), _ridge(codes, x_train[m], folds)[0]
        _place_encoder(encoder, *there)
        head = decoder.heads[m]
        _place_decoder(getattr(head.mean, "path", head.mean), back, np.mean(x_train[m], axis=0))
    return model


def _ridge(x: np.ndarray, y: np.ndarray, folds: object | None) -> tuple[np.ndarray, np.ndarray]:
    """Slopes [n_x, n_y] and intercepts [n_y] of a ridge regression on the standardised x, for x as it is."""
    from sklearn.linear_model import RidgeCV

    standardise = _standardiser(np.asarray(x, float))
    scoring = None if folds is None else "neg_mean_squared_error"
    fitted = RidgeCV(ALPHAS, cv=folds, scoring=scoring).fit(standardise(x), y)
    origin = standardise(np.zeros((1, np.shape(x)[1])))
    slopes = (standardise(np.eye(np.shape(x)[1])) - origin) @ fitted.coef_.reshape(np.shape(y)[1], -1).T
    return slopes, fitted.intercept_ + (origin @ fitted.coef_.reshape(np.shape(y)[1], -1).T)[0]


def _place_encoder(encoder: nn.Module, slopes: np.ndarray, intercept: np.ndarray) -> None:
    """Means on the linear path, [n_vars, n_latent] and [n_latent]; everything else says nothing, with sd of `SURE`."""
    n_vars, n = slopes.shape
    if encoder.head.in_features < n_vars or encoder.n_latent != n:
        raise ValueError(f"the encoder of {few(encoder.modalities)} cannot hold {n_vars} features and {n} dimensions")
    nn.init.zeros_(encoder.head.weight)
    encoder.head.weight[:n, -n_vars:] = torch.from_numpy(slopes.T)
    encoder.head.bias[:n], encoder.head.bias[n:] = torch.from_numpy(intercept), SURE


def _place_decoder(layer: nn.Linear, loading: np.ndarray, centre: np.ndarray) -> None:
    """Expected values on the linear path, [n_latent, n_vars] and [n_vars]."""
    nn.init.zeros_(layer.weight)
    layer.weight[:, -len(loading) :], layer.bias[:] = torch.from_numpy(loading.T), torch.from_numpy(centre)


def _control(name: str, x_train: np.ndarray, encode: np.ndarray, decode: np.ndarray) -> LinearControl:
    centre = x_train.mean(0)
    return LinearControl(name, centre, encode, decode, ((x_train - centre) @ encode).std(0))


# ---------------------------------------------------------------- from one modality to another


@dataclass(frozen=True)
class Translator:
    """A fitted way from a source to a target: `predict` takes [n, n_source] and gives [n, n_target].

    Introduced in notebook 04.
    """

    name: str
    predict: Callable[[np.ndarray], np.ndarray]


def mean_target(y_train: np.ndarray) -> Translator:
    """Says the mean of y_train [n_train, n_target] whatever the source shows. Introduced in notebook 04."""
    mean = np.asarray(y_train, float).mean(0)
    return Translator("mean", lambda x: np.tile(mean, (len(x), 1)))


def nearest(x_train: np.ndarray, y_train: np.ndarray, k: int = 1) -> Translator:
    """The target of the train sample whose source is nearest, or the mean over the `k` nearest.

    Distances are taken between standardised sources. `k` is cut to the number of train samples. Raises ValueError
    for unequal numbers of samples, NaN, and where no column of the source varies. Introduced in notebook 04.
    """
    from sklearn.neighbors import NearestNeighbors

    x_train, y_train = _paired(x_train, y_train)
    standardise = _standardiser(x_train)
    index = NearestNeighbors(n_neighbors=min(k, len(x_train))).fit(standardise(x_train))

    def predict(x: np.ndarray) -> np.ndarray:
        return y_train[index.kneighbors(standardise(x), return_distance=False)].mean(1)

    return Translator("nearest neighbour" if k == 1 else f"{k} nearest", predict)


def ridge_to_pca(
    x_train: np.ndarray,
    y_train: np.ndarray,
    n_components: int | None = 20,
    alphas: Sequence[float] = ALPHAS,
    folds: object | None = None,
) -> Translator:
    """Ridge regression from the standardised source to the first principal components of the target.

    `n_components=None` predicts the target itself. One penalty of `alphas` serves all components, chosen on train by
    the squared error of leaving one sample out, or over `folds`, a splitter of scikit-learn: a time course, where the
    sample left out has near copies to both sides, asks for `KFold(5)`, whose folds are runs of samples.
    Raises as `nearest`. Introduced in notebook 04.
    """
    from sklearn.linear_model import RidgeCV

    scoring = None if folds is None else "neg_mean_squared_error"
    return _to_pca("ridge", RidgeCV(alphas, cv=folds, scoring=scoring), x_train, y_train, n_components)


def pls_to_pca(
    x_train: np.ndarray,
    y_train: np.ndarray,
    n_components: int | None = 20,
    n_pls: int | None = None,
    folds: object | None = None,
) -> Translator:
    """Partial least squares from the standardised source to the first principal components of the target.

    The number of its own components is `n_pls`, or the one of `N_PLS` with the smallest squared error over `folds`
    (see `ridge_to_pca`; five folds drawn with a fixed seed unless given). `n_components=None` predicts the target
    itself. Raises as `nearest`. Introduced in notebook 04.
    """
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.model_selection import GridSearchCV, KFold

    most = min(len(x_train) * 4 // 5 - 1, np.shape(x_train)[1])
    if n_pls is not None:
        return _to_pca("PLS", PLSRegression(n_pls), x_train, y_train, n_components)
    sizes = sorted({max(1, min(size, most)) for size in N_PLS})
    folds = KFold(5, shuffle=True, random_state=0) if folds is None else folds
    search = GridSearchCV(PLSRegression(), {"n_components": sizes}, scoring="neg_mean_squared_error", cv=folds)
    return _to_pca("PLS", search, x_train, y_train, n_components)


def by_class(
    x_train: np.ndarray, labels_x: Iterable, y_train: np.ndarray, labels_y: Iterable, name: str = "class mean"
) -> Translator:
    """The mean target of the class that a logistic regression reads from the standardised source.

    Source [n_x, n_source] and target [n_y, n_target] need not share samples, only classes: the control for data
    without pairs. Raises ValueError for classes known in one modality only, fewer than two classes, labels that do
    not fit, and as `nearest`. Introduced in notebook 04.
    """
    from sklearn.linear_model import LogisticRegression

    x_train, labels_x = _paired(x_train, _classes(labels_x))
    y_train, labels_y = _paired(y_train, _classes(labels_y))
    if len(set(labels_x)) < 2:
        raise ValueError(f"all samples are of class {few(set(labels_x))}: by_class needs two or more")
    if alone := set(labels_x) ^ set(labels_y):
        raise ValueError(f"class {few(sorted(alone))} is present in one modality only: leave it out, or give both")
    standardise = _standardiser(x_train)
    reader = LogisticRegression(max_iter=1000, class_weight="balanced").fit(standardise(x_train), labels_x)
    means = np.stack([y_train[labels_y == label].mean(0) for label in reader.classes_])

    def predict(x: np.ndarray) -> np.ndarray:
        return means[np.searchsorted(reader.classes_, reader.predict(standardise(x)))]

    return Translator(name, predict)


def translators(x_train: np.ndarray, y_train: np.ndarray, folds: object | None = None) -> dict[str, Translator]:
    """The usual controls for paired data, fitted: mean, nearest neighbour, 15 nearest, ridge and PLS to 20 components.

    `folds` as in `ridge_to_pca`. Introduced in notebook 04.
    """
    fitted = [
        mean_target(y_train),
        nearest(x_train, y_train),
        nearest(x_train, y_train, k=15),
        ridge_to_pca(x_train, y_train, folds=folds),
        pls_to_pca(x_train, y_train, folds=folds),
    ]
    return {translator.name: translator for translator in fitted}


def _to_pca(name: str, regression, x_train, y_train, n_components: int | None) -> Translator:
    """Fit `regression` from the standardised source to the target's components, and come back from there."""
    from sklearn.decomposition import PCA

    x_train, y_train = _paired(x_train, y_train)
    standardise, centre = _standardiser(x_train), y_train.mean(0)
    if n_components is None:
        regression.fit(standardise(x_train), y_train - centre)
        return Translator(name, lambda x: centre + regression.predict(standardise(x)).reshape(len(x), -1))
    axes = PCA(min(n_components, *y_train.shape), random_state=0).fit(y_train).components_
    regression.fit(standardise(x_train), (y_train - centre) @ axes.T)
    return Translator(name, lambda x: centre + regression.predict(standardise(x)).reshape(len(x), -1) @ axes)


def _standardiser(x_train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Columns to mean 0 and variance 1 on train. One that is constant there is silenced: its changes say nothing."""
    varies = np.ptp(x_train, axis=0) > 0
    if not varies.any():
        raise ValueError("the source has no column that varies over the train samples: nothing can be read from it")
    centre = x_train.mean(0)
    scale = np.where(varies, 1 / np.where(varies, x_train.std(0), 1), 0)

    def standardise(x: np.ndarray) -> np.ndarray:
        if np.shape(x)[1] != len(centre):
            raise ValueError(f"the source has {np.shape(x)[1]} features, but {len(centre)} were fitted: give the same")
        return (np.asarray(x, float) - centre) * scale

    return standardise


def _classes(labels: Iterable) -> np.ndarray:
    labels = np.asarray(list(labels), dtype=object)
    if missing := int(sum(label is None or label != label for label in labels)):  # NaN differs from itself
        raise ValueError(f"{missing} of {len(labels)} samples have no class: leave them out")
    return labels.astype(str)


def _paired(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, float)
    y = np.asarray(y) if np.asarray(y).dtype.kind in "US" else np.asarray(y, float)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"a control got {len(x)} samples beside {len(y)}: give the same two or more, in one order")
    if any(values.dtype.kind == "f" and not np.isfinite(values).all() for values in (x, y)):
        raise ValueError("a control got NaN or infinite values: fill them first, e.g. by prepare.fit_transform")
    return x, y
