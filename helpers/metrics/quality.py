"""Numbers that judge a model: reconstruction, use of the latent space, generated samples, labels.

Arrays in (numpy, CSR or torch), plain numbers out, computed in float64. Scores are meant for the held-out test
split and embeddings for posterior means. Introduced in notebook 01.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

# ---------------------------------------------------------------- reconstruction


def r2_per_sample(x: ArrayLike, x_hat: ArrayLike) -> np.ndarray:
    """R2 of each sample over its features, 1 - SSE / SST around the sample's own mean: [n_obs].

    NaN for a sample whose values are all equal. The paper's measure of reconstruction (Methods, Experiments).
    Raises ValueError where the shapes differ. Introduced in notebook 01.
    """
    x, x_hat = _pair(x, x_hat)
    total = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    error = ((x - x_hat) ** 2).sum(axis=1)
    constant = x.max(axis=1) == x.min(axis=1)
    return np.where(constant, np.nan, 1 - error / np.where(constant, 1, total))


def r2(x: ArrayLike, x_hat: ArrayLike) -> float:
    """Mean of `r2_per_sample` over the samples [n_obs, n_vars] given.

    Constant samples have no R2: they are left out, and a warning counts them.
    Raises ValueError where no sample has one. Introduced in notebook 01.
    """
    values = r2_per_sample(x, x_hat)
    n_missing = int(np.isnan(values).sum())
    if n_missing == values.size:
        raise ValueError(f"r2: no R2 exists, since each of the {values.size} samples is constant or NaN")
    if n_missing:
        warnings.warn(f"r2: {n_missing} of {values.size} samples are constant or NaN; left out", stacklevel=2)
    return float(np.nanmean(values))


def explained_variance(x: ArrayLike, x_hat: ArrayLike, centre: ArrayLike | None = None) -> float:
    """1 - SSE / SST over the whole matrix [n_obs, n_vars], with SST around `centre` [n_vars].

    `centre` should be the means of the train split, the best constant guess made without the held-out data;
    without it the means of `x` are used. 0 = as good as that constant, 1 = perfect; negative is possible.
    Raises ValueError where `x` equals `centre` everywhere. Introduced in notebook 01.
    """
    x, x_hat = _pair(x, x_hat)
    centre = x.mean(axis=0) if centre is None else _array(centre)
    total = ((x - centre) ** 2).sum()
    if total == 0:
        raise ValueError("explained_variance: x does not vary around the centre, so no variance can be explained")
    return float(1 - ((x - x_hat) ** 2).sum() / total)


def reconstruction_error(
    x: ArrayLike | Mapping[str, ArrayLike], x_hat: ArrayLike | Mapping[str, ArrayLike]
) -> float | dict[str, float]:
    """Mean squared error per entry, in squared units of `x`; for dicts modality -> matrix, a dict.

    Raises ValueError where shapes or modalities differ. Introduced in notebook 01.
    """
    if isinstance(x, Mapping):
        if set(x) != set(x_hat):
            raise ValueError(f"reconstruction_error: x has {sorted(x)}, x_hat has {sorted(x_hat)}")
        return {name: reconstruction_error(values, x_hat[name]) for name, values in x.items()}
    x, x_hat = _pair(x, x_hat)
    return float(((x - x_hat) ** 2).mean())


# ---------------------------------------------------------------- latent space


def coverage_per_dimension(z: ArrayLike) -> float:
    """Latent coverage as the paper's text defines it: the share of occupied bins, averaged over dimensions.

    `z` [n_obs, n_latent] is binned in each dimension into b = floor(n_obs^(1/n_latent)) bins of equal width
    between the minimum and the maximum there; b is n_obs for one latent dimension. Left open by the text and
    decided here: the root is exact in whole numbers (1,000 samples in 3 dimensions give 10 bins, not the 9 of
    int(9.999)); the last bin contains the maximum; a dimension with one value occupies one bin, 1/b; b < 2
    returns NaN, since one bin is always full.

    A number to read with care: for two dimensions each of only sqrt(n) bins is met by n samples, so 1,000
    Gaussian samples score 0.95 (uniform ones 1.00). The text's "0.5 for Gaussian distributions" holds for one
    dimension (1,000 samples: 0.49), not for two, where only the joint grid comes near it.
    Source: Methods, "Experiments", latent space coverage. Raises ValueError for NaN, infinity, or no samples.
    Introduced in notebook 01.
    """
    cells, b = _cells(z)
    if b < 2:
        return float("nan")
    return float(np.mean([np.unique(column).size / b for column in cells.T]))


def coverage_joint(z: ArrayLike) -> float:
    """Latent coverage as the paper's code computes it: occupied cells of the joint grid over all b^n_latent.

    Bins as in `coverage_per_dimension`. As many cells as samples at most, so that independent uniform samples
    reach 1 - 1/e = 0.63, Gaussian ones in two dimensions 0.51 (100 samples), 0.38 (1,000), 0.30 (10,000).
    NaN where b < 2 (n_obs < 2^n_latent): the grid has one cell then. Compare only equal n_obs and n_latent.
    Raises ValueError for NaN, infinity, or no samples. Introduced in notebook 01.
    """
    cells, b = _cells(z)
    if b < 2:
        return float("nan")
    return float(np.unique(np.ravel_multi_index(cells.T, (b,) * cells.shape[1])).size / b ** cells.shape[1])


def _cells(z) -> tuple[np.ndarray, int]:
    """The bin of each sample in each dimension [n_obs, n_latent], and the number of bins per dimension."""
    z = _latent(z)
    n, n_latent = z.shape
    b = round(n ** (1 / n_latent))
    b -= b**n_latent > n
    low, width = z.min(axis=0), np.ptp(z, axis=0)
    return np.minimum((z - low) / np.where(width > 0, width, 1) * b, b - 1).astype(int), b


def total_correlation(z: ArrayLike, tolerance: float = 1e-10) -> float:
    """Total correlation of a Gaussian with the covariance of `z` [n_obs, n_latent], in nats: 0 = independent.

    0.5 (sum_i log var_i - log det Cov) = -0.5 log det R, with R the correlation matrix. The paper's text says
    that zero means complete dependence; it is the other way round. Dimensions with a variance of `tolerance`
    or less are collapsed and left out; fewer than two left give 0. Infinite where one dimension is a linear
    function of others, as it must be for n_obs <= n_latent. Independent dimensions score about
    n_latent (n_latent - 1) / (4 n_obs) by chance.
    Source: Rowe and Day, Entropy 21 (2019) 921. Raises ValueError for NaN, infinity, or no samples.
    Introduced in notebook 01.
    """
    z = _latent(z)
    z = z[:, z.var(axis=0) > tolerance]
    if z.shape[1] < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(z.T))
    if eigenvalues[0] <= z.shape[1] * np.finfo(float).eps:
        return float("inf")
    return float(max(0.0, -0.5 * np.log(eigenvalues).sum()))


def active_units(means: ArrayLike, threshold: float = 0.01) -> int:
    """Number of latent dimensions whose posterior mean [n_obs, n_latent] varies over the data by > `threshold`.

    Source: Burda, Grosse and Salakhutdinov, ICLR 2016, section 5.2. Introduced in notebook 01.
    """
    return int((_latent(means).var(axis=0) > threshold).sum())


# ---------------------------------------------------------------- generated samples


def principal_axes(x_train: ArrayLike, n_components: int = 50) -> np.ndarray:
    """Principal axes [n_vars, n_components] of the train split, the fixed projection for `two_sample_nn`.

    Fewer where the data have fewer. Introduced in notebook 01.
    """
    from sklearn.decomposition import PCA

    x_train = _array(x_train)
    n_components = min(n_components, *x_train.shape)
    return PCA(n_components, random_state=0).fit(x_train).components_.T


def two_sample_nn(
    real: ArrayLike, generated: ArrayLike, n_permutations: int = 200, seed: int = 0, projection: ArrayLike | None = None
) -> dict[str, float]:
    """Are generated samples like real ones? Leave-one-out nearest-neighbour test on the pooled sets.

    `real` (held out, never trained on) and `generated` are [n_obs, n_vars] on the scale of training; the larger
    set is subsampled. Every sample is given the label of its nearest neighbour among the others: `accuracy` is
    0.5 where the two cannot be told apart, 1 where they lie apart, below 0.5 where generated samples copy real
    ones. Read it with its halves: `accuracy_real` low and `accuracy_generated` high means generated samples that
    are too central, e.g. decoded means without the noise of the likelihood, which leaves `accuracy` near 0.5.
    `p_value` counts permutations of the labels over the fixed neighbour graph whose two halves together depart
    from chance as far as these: exact for "one distribution", against every departure above.

    Nothing is standardised and no projection fitted here, because anything fitted on one of the two sets, or on
    the pool, would make them differ or alike; pass data scaled on train, and as `projection` [n_vars, k] e.g.
    `principal_axes(x_train)`, since distances in thousands of dimensions are mostly noise.
    Returns accuracy, accuracy_real, accuracy_generated, p_value and n (samples per set).
    Source: Lopez-Paz and Oquab, ICLR 2017; Xu et al., arXiv:1806.07755; Schilling, JASA 81 (1986) 799.
    Raises ValueError for different n_vars or fewer than two samples. Introduced in notebook 01.
    """
    sets = [
        _array(values) @ _array(projection) if projection is not None else _array(values)
        for values in (real, generated)
    ]
    n, rng = min(len(values) for values in sets), np.random.default_rng(seed)
    if n < 2 or sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"two_sample_nn: cannot compare sets of shape {sets[0].shape} and {sets[1].shape}")
    label = np.repeat([0, 1], n)
    order = rng.permutation(2 * n)  # so that ties between equally near neighbours favour neither set
    pool = np.concatenate([values[rng.choice(len(values), n, replace=False)] for values in sets])[order]
    neighbour, label = _nearest(pool), label[order]
    observed = _halves(label, neighbour)
    permuted = np.array([_halves(rng.permutation(label), neighbour) for _ in range(n_permutations)])
    chance = (n - 1) / (2 * n - 1)
    extreme = ((permuted - chance) ** 2).sum(axis=1) >= ((observed - chance) ** 2).sum() - 1e-12
    return {
        "accuracy": float(observed.mean()),
        "accuracy_real": float(observed[0]),
        "accuracy_generated": float(observed[1]),
        "p_value": float((1 + extreme.sum()) / (1 + n_permutations)),
        "n": n,
    }


def _nearest(pool: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(pool).kneighbors(return_distance=False)[:, 0]


def _halves(label: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    """Share of samples of label 0 and of label 1 whose neighbour has the same label."""
    same = label == label[neighbour]
    return np.array([same[label == 0].mean(), same[label == 1].mean()])


# ---------------------------------------------------------------- labels


def knn_label_accuracy(
    z_train: ArrayLike, y_train: ArrayLike, z_test: ArrayLike, y_test: ArrayLike, k: int = 15
) -> dict[str, float]:
    """How well the `k` nearest train samples in the embedding tell the label of a test sample.

    Distances are taken in `z` [n_obs, n_latent] as it is: a collapsed dimension has no say. `k` is cut to the
    number of train samples. Returns balanced_accuracy (mean recall over the classes of the test split), auc
    (macro average over pairs of classes that train and test share, NaN where there are fewer than two) and
    n_missing (samples without a label, left out).
    Raises ValueError for a single class or none. Introduced in notebook 01.
    """
    from sklearn.neighbors import KNeighborsClassifier

    return _score(lambda n: KNeighborsClassifier(min(k, n)), z_train, y_train, z_test, y_test)


def logistic_accuracy(z_train: ArrayLike, y_train: ArrayLike, z_test: ArrayLike, y_test: ArrayLike) -> dict[str, float]:
    """How well a logistic regression on the standardised embedding, classes weighted equally, tells the label.

    Returns and raises as `knn_label_accuracy`. Introduced in notebook 01.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def make(n: int):
        return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))

    return _score(make, z_train, y_train, z_test, y_test)


def _score(make: Callable, z_train, y_train, z_test, y_test) -> dict[str, float]:
    from sklearn.metrics import recall_score

    z_train, y_train, lost_train = _labelled(z_train, y_train, "train")
    z_test, y_test, lost_test = _labelled(z_test, y_test, "test")
    model = make(len(z_train)).fit(z_train, y_train)
    recalls = recall_score(y_test, model.predict(z_test), labels=np.unique(y_test), average="macro")
    auc = _pairwise_auc(y_test, model.predict_proba(z_test), model.classes_)
    return {"balanced_accuracy": float(recalls), "auc": auc, "n_missing": lost_train + lost_test}


def _pairwise_auc(y: np.ndarray, probability: np.ndarray, classes: np.ndarray) -> float:
    """Macro average of the AUC over ordered pairs of classes, by rank sums (scikit-learn takes seconds for 33)."""
    rows = {i: np.flatnonzero(y == name) for i, name in enumerate(classes) if (y == name).any()}
    pairs = [(i, j) for i in rows for j in rows if i != j]
    scores = [_auc(probability[rows[i], i], probability[rows[j], i]) for i, j in pairs]
    return float(np.mean(scores)) if scores else float("nan")


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    from scipy.stats import rankdata

    ranks, n = rankdata(np.concatenate([positive, negative]))[: positive.size], positive.size
    return (ranks.sum() - n * (n + 1) / 2) / (n * negative.size)


def _labelled(z, y, which: str) -> tuple[np.ndarray, np.ndarray, int]:
    import pandas as pd

    z, y = _latent(z), np.asarray(y, dtype=object)
    if y.shape != (len(z),):
        raise ValueError(f"labels: {len(z)} {which} samples have labels of shape {y.shape}")
    known = ~pd.isna(y)
    names = y[known].astype(str)
    if np.unique(names).size < 2:
        found = ", ".join(np.unique(names)) or "no label at all"
        raise ValueError(f"labels: the {which} split has a single class ({found}); choose a label with two or more")
    return z[known], names, int((~known).sum())


# ---------------------------------------------------------------- repetitions


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) over repetitions; NaN for the latter where there is one.

    Raises ValueError for none. Introduced in notebook 01.
    """
    values = np.asarray(list(values), dtype=float)
    if values.size == 0:
        raise ValueError("spread: there are no values")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else float("nan")


def _array(x) -> np.ndarray:
    if hasattr(x, "detach"):  # torch, on any device and of any precision
        x = x.detach().cpu().double().numpy()
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64)


def _pair(x, x_hat) -> tuple[np.ndarray, np.ndarray]:
    x, x_hat = _array(x), _array(x_hat)
    if x.shape != x_hat.shape or x.ndim != 2 or x.size == 0:
        raise ValueError(f"reconstruction: x has shape {x.shape} and x_hat {x_hat.shape}; both must be [n_obs, n_vars]")
    return x, x_hat


def _latent(z) -> np.ndarray:
    z = _array(z)
    if z.ndim != 2 or z.size == 0:
        raise ValueError(f"latent space: z has shape {z.shape}; it must be [n_obs, n_latent]")
    if not np.isfinite(z).all():
        raise ValueError(f"latent space: {(~np.isfinite(z)).sum()} values are NaN or infinite")
    return z
