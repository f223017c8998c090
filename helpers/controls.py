"""What every comparison needs beside it: PCA, a random projection, and nothing at all, fitted on train only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from helpers.models import Model

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
    nn.init.zeros_(encoder.head.weight)
    encoder.head.weight[:n, -n_vars:] = torch.from_numpy((control.encode / width).T)
    encoder.head.bias[n:] = SURE
    encoder.head.bias[:n] = torch.from_numpy(-(control.centre @ control.encode) / width)
    loadings = torch.from_numpy((control.decode_by * width[:, None]).T).split(sizes)
    centres = torch.from_numpy(np.asarray(control.centre)).split(sizes)
    for head, loading, centre in zip(decoder.heads.values(), loadings, centres, strict=True):
        nn.init.zeros_(head.mean.weight)
        head.mean.weight[:, -n:], head.mean.bias[:] = loading, centre
    return model


def _control(name: str, x_train: np.ndarray, encode: np.ndarray, decode: np.ndarray) -> LinearControl:
    centre = x_train.mean(0)
    return LinearControl(name, centre, encode, decode, ((x_train - centre) @ encode).std(0))
