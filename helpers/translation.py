"""How good is a translation? Scores of pictures and of profiles, and a reader that never saw a translated picture.

Pictures are flat, [n_obs, height * width * channels] in this order. All scores are for held-out samples; the mean that
they are measured against is that of the train split. Introduced in notebook 04.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mudata
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import metrics
from helpers.batches import Batch
from helpers.checks import part
from helpers.layers import Convolution, linear
from helpers.training import fit, seeded

FLAT = 1e-6  # spread relative to size below which predictions count as constant
DARK = 0.05  # share of the usual brightness below which a picture counts as dark, and its noise is not blown up
N_NETWORKS = 3  # readers whose answers are averaged: one alone depends on its starting weights
WINDOW = 7  # pixels to a side over which SSIM compares, as in scikit-image

# ---------------------------------------------------------------- scores


def image_scores(x: ArrayLike, x_hat: ArrayLike, train_mean: ArrayLike, shape: Sequence[int]) -> dict[str, float]:
    """Translated pictures against the true ones, x and x_hat [n_obs, height * width * channels], on a scale of 0 to 1.

    - "mse": squared error per pixel.
    - "R2 per image": median over pictures of 1 - SSE / SST around the picture's own mean. The median, since a nearly
      blank picture has next to no SST and would rule a mean. Blank pictures have none and are left out.
    - "R2 over mean": 1 - SSE / SSE of `train_mean` [n_vars], pooled over pictures: what is gained over saying the
      mean picture of the train split. Negative where that would have been better.
    - "SSIM": structural similarity, mean over pictures, in windows of 7 x 7 pixels (smaller for smaller pictures; NaN
      below 3 x 3). Source: Wang et al., IEEE Transactions on Image Processing 13 (2004) 600.

    Raises ValueError where shapes differ, `shape` (height, width, channels) does not fit, or values are not finite.
    Introduced in notebook 04.
    """
    x, x_hat, train_mean = _checked(x, x_hat, train_mean)
    if len(shape) != 3 or np.prod(shape) != x.shape[1]:
        raise ValueError(f"image_scores: pictures of {x.shape[1]} values cannot have the shape {tuple(shape)}")
    if not np.isfinite(x).all():
        raise ValueError("image_scores: the true pictures hold NaN or infinite values; leave those pictures out")
    r2 = metrics.r2_per_sample(x, x_hat)
    return {
        "mse": metrics.reconstruction_error(x, x_hat),
        "R2 per image": float(np.nanmedian(r2)) if np.isfinite(r2).any() else float("nan"),
        "R2 over mean": metrics.explained_variance(x, x_hat, train_mean),
        "SSIM": _ssim(x, x_hat, shape),
    }


def profile_scores(x: ArrayLike, x_hat: ArrayLike, train_mean: ArrayLike) -> dict[str, float]:
    """Translated profiles against the measured ones, x and x_hat [n_obs, n_vars]; NaN in x is "not measured".

    - "mse": squared error per measured value.
    - "Pearson r": median over features of the correlation across samples. 0 for a feature whose prediction does not
      vary; a feature that is constant, or measured in fewer than three samples, has none and is left out.
    - "R2 over mean": 1 - SSE / SSE of `train_mean` [n_vars], pooled over measured values.
    - "R2 per sample": median over samples of 1 - SSE / SST around the sample's own mean.

    Raises ValueError where shapes differ, nothing was measured, or a prediction is not finite.
    Introduced in notebook 04.
    """
    x, x_hat, train_mean = _checked(x, x_hat, train_mean)
    x = np.where(np.isfinite(x), x, np.nan)
    if np.isnan(x).all():
        raise ValueError("profile_scores: x holds no measured value; give samples that have the target")
    error, around = (x - x_hat) ** 2, (x - train_mean) ** 2
    total = np.nansum((x - _mean(x, 1)) ** 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(total > 0, 1 - np.nansum(error, axis=1) / total, np.nan)
    return {
        "mse": float(np.nanmean(error)),
        "Pearson r": _median(_pearson(x, x_hat)),
        "R2 over mean": float(1 - np.nansum(error) / np.nansum(around)) if np.nansum(around) > 0 else float("nan"),
        "R2 per sample": _median(r2),
    }


def _pearson(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Correlation per feature [n_vars] over measured samples; 0 where only the prediction is constant, else NaN."""
    x_hat = np.where(np.isnan(x), np.nan, x_hat)
    a, b = x - _mean(x, 0), x_hat - _mean(x_hat, 0)
    norm_a, norm_b = np.sqrt(np.nansum(a**2, axis=0)), np.sqrt(np.nansum(b**2, axis=0))
    says_nothing = norm_b <= FLAT * np.sqrt(np.nansum(x_hat**2, axis=0))
    has_one = (norm_a > FLAT * np.sqrt(np.nansum(x**2, axis=0))) & (np.isfinite(x).sum(0) >= 3)
    r = np.nansum(a * b, axis=0) / np.where(says_nothing | ~has_one, 1, norm_a * norm_b)
    return np.where(has_one, np.where(says_nothing, 0.0, r), np.nan)


def _mean(x: np.ndarray, axis: int) -> np.ndarray:
    """Mean of measured values, with `axis` kept; 0 where there is none."""
    return np.nansum(x, axis=axis, keepdims=True) / np.maximum(np.isfinite(x).sum(axis=axis, keepdims=True), 1)


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _ssim(x: np.ndarray, x_hat: np.ndarray, shape: Sequence[int]) -> float:
    from skimage.metrics import structural_similarity

    side = min(WINDOW, *shape[:2])
    if side < 3:
        return float("nan")
    options = {"win_size": side - (side + 1) % 2, "data_range": 1.0, "channel_axis": -1}
    pairs = zip(x.reshape(-1, *shape), x_hat.reshape(-1, *shape), strict=True)
    return float(np.mean([structural_similarity(a, b, **options) for a, b in pairs]))


def _checked(x: ArrayLike, x_hat: ArrayLike, train_mean: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, x_hat, train_mean = (np.asarray(values, dtype=float) for values in (x, x_hat, train_mean))
    if x.shape != x_hat.shape or x.ndim != 2 or x.size == 0:
        raise ValueError(f"x has shape {x.shape} and the translation {x_hat.shape}; both must be [n_obs, n_vars]")
    if train_mean.shape != x.shape[1:]:
        raise ValueError(f"train_mean has shape {train_mean.shape}; it must be the train split's mean, [{x.shape[1]}]")
    if bad := int((~np.isfinite(x_hat)).sum()) + int((~np.isfinite(train_mean)).sum()):
        raise ValueError(f"the translation or the train mean holds {bad} NaN or infinite values; check the model")
    return x, x_hat, train_mean


# ---------------------------------------------------------------- a reader of pictures


@dataclass(frozen=True)
class Reader:
    """What small networks have learnt to read from true pictures, to be asked about translated ones.

    `predict` takes flat pictures [n, n_vars] and gives class names or numbers [n]; `scores(y, told)` judges them.
    Introduced in notebook 04.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    scores: Callable[[np.ndarray, np.ndarray], dict[str, float]]


class ReadingNetwork(nn.Module):
    """Strided convolutions and one linear layer, from pictures to `n_out` numbers [batch, n_out].

    A picture is seen relative to its own brightness, since frames of one film differ in exposure, and few pictures do
    not teach that; brightness itself can therefore not be read. `level` is the usual brightness; `criterion(told, y)`
    the loss term. Introduced in notebook 04.
    """

    def __init__(self, shape: Sequence[int], n_out: int, criterion: Callable, level: float, width: int):
        super().__init__()
        self.body, self.criterion, self.level = Convolution(shape, width), criterion, level
        self.head = linear(self.body.n_out, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, n_vars] -> [batch, n_out]."""
        own = x.mean(-1, keepdim=True).clamp(min=0)
        return self.head(self.body(x / (own + DARK * self.level) - 1))

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The one term that training needs: how far what is read is from the truth."""
        return {"error": self.criterion(self(batch.x["image"]), batch.x["truth"])}


def image_classifier(
    x_train: np.ndarray, y_train: Sequence, shape: Sequence[int], seed: int = 0, epochs: int = 10, width: int = 8
) -> Reader:
    """Learn to tell the class y_train [n_train] of true pictures x_train [n_train, n_vars].

    `shape` is (height, width, channels), 8 x 8 pixels at least; `width` the channels after the first convolution. Its
    scores are "accuracy" and "F1" (weighted by class size). Deterministic given `seed`, on a CPU.
    Raises ValueError for labels that are missing or do not fit, a single class, values outside 0 to 1, or a shape that
    does not fit. Introduced in notebook 04.
    """
    y_train = np.asarray(y_train, dtype=object)
    if pd.isna(y_train).any():
        raise ValueError("image_classifier: some pictures have no label; leave them out")
    names, code = np.unique(y_train.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"image_classifier: all pictures are of class '{names[0]}'; two or more classes are needed")
    network = _learn(x_train, np.eye(len(names))[code], shape, F.cross_entropy, seed, epochs, width)
    return Reader(lambda x: names[network(x).argmax(1)], _class_scores)


def image_regressor(
    x_train: np.ndarray, y_train: ArrayLike, shape: Sequence[int], seed: int = 0, epochs: int = 40, width: int = 8
) -> Reader:
    """Learn to tell a number, such as a time, y_train [n_train], of true pictures: as `image_classifier`.

    Its scores are "R2" and "MAE" (mean absolute error, in units of y). Introduced in notebook 04.
    """
    y = np.asarray(y_train, dtype=float)
    if not np.isfinite(y).all() or np.ptp(y) == 0:
        raise ValueError("image_regressor: y_train must be finite numbers that vary; leave out what has none")
    centre, scale = y.mean(), y.std()
    network = _learn(x_train, ((y - centre) / scale)[:, None], shape, F.mse_loss, seed, epochs, width)
    return Reader(lambda x: centre + scale * network(x)[:, 0], _number_scores)


def reader_scores(reader: Reader, x_true: np.ndarray, x_hat: np.ndarray, y: ArrayLike) -> dict[str, float]:
    """What `reader` gets right on translated pictures x_hat, and on the true ones of the same samples [n, n_vars].

    The names are those of the reader's scores, with " of true" behind those of the true pictures: what a perfect
    translation would reach. Others may exceed it: a nearest neighbour answers with train pictures, which the reader
    knows by heart, and blurred pictures lack what misleads. Raises ValueError for numbers of samples that differ.
    Introduced in notebook 04.
    """
    y = np.asarray(y)
    if not len(x_true) == len(x_hat) == len(y):
        raise ValueError(f"reader_scores: {len(x_true)} true, {len(x_hat)} translated pictures and {len(y)} answers")
    ceiling: Mapping[str, float] = reader.scores(y, reader.predict(x_true))
    return reader.scores(y, reader.predict(x_hat)) | {f"{name} of true": value for name, value in ceiling.items()}


def _learn(x_train, y: np.ndarray, shape, criterion: Callable, seed: int, epochs: int, width: int) -> Callable:
    """Train networks from pictures to y [n, n_out]; returns their mean answer as a function, arrays to arrays."""
    x = np.asarray(x_train, dtype=np.float32)
    if x.ndim != 2 or len(x) != len(y) or np.prod(shape) != x.shape[1]:
        raise ValueError(f"pictures {x.shape} do not fit the shape {tuple(shape)} and {len(y)} answers: give one each")
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1 and x.max() > 0):
        raise ValueError("the pictures to learn from must hold values from 0 to 1, and not 0 alone: scale them first")
    data, networks = _as_mudata(x, y), []
    for own_seed in range(N_NETWORKS * seed, N_NETWORKS * (seed + 1)):
        with seeded(own_seed, torch.device("cpu")):
            network = ReadingNetwork(shape, y.shape[1], criterion, float(x.mean()), width)
        fit(network, data, epochs=epochs, batch_size=min(16, len(x)), lr=3e-3, seed=own_seed, progress=False)
        networks.append(network.cpu().eval())
    return lambda pictures: np.mean([_answers(network, pictures) for network in networks], axis=0)


@torch.no_grad()
def _answers(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """[n, n_vars] -> [n, n_out], some hundred pictures at a time."""
    chunks = torch.from_numpy(np.ascontiguousarray(pictures, dtype=np.float32)).split(256)
    return np.concatenate([network(chunk).double().numpy() for chunk in chunks])


def _as_mudata(x: np.ndarray, y: np.ndarray) -> mudata.MuData:
    """Pictures and what they show as two modalities: what the training loop takes."""
    values = {"image": x, "truth": y}
    names = {m: [f"{m} {i}" for i in range(value.shape[1])] for m, value in values.items()}
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({m: part(value, range(len(x)), names[m]) for m, value in values.items()})


def _class_scores(y: np.ndarray, told: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score

    y = np.asarray(y).astype(str)
    return {
        "accuracy": float((y == told).mean()),
        "F1": float(f1_score(y, told, labels=np.unique(y), average="weighted")),
    }


def _number_scores(y: np.ndarray, told: np.ndarray) -> dict[str, float]:
    y = np.asarray(y, dtype=float)
    total = ((y - y.mean()) ** 2).sum()
    r2 = 1 - ((y - told) ** 2).sum() / total if total > 0 else float("nan")
    return {"R2": float(r2), "MAE": float(np.abs(y - told).mean())}
