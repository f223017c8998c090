"""What every comparison needs beside it: PCA, a random projection, and nothing at all, fitted on train only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


def pca(x_train: np.ndarray, n_latent: int) -> LinearControl:
    """Principal components of x_train [n_obs, n_vars]: the best linear code. Introduced in notebook 01."""
    from sklearn.decomposition import PCA

    fitted = PCA(n_latent, random_state=0).fit(x_train)
    return _control("PCA", x_train, fitted.components_.T, fitted.components_)


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


def _control(name: str, x_train: np.ndarray, encode: np.ndarray, decode: np.ndarray) -> LinearControl:
    centre = x_train.mean(0)
    return LinearControl(name, centre, encode, decode, ((x_train - centre) @ encode).std(0))
