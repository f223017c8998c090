"""Simulated matrices that every program in this folder trains on. Needs numpy only.

The same seed gives the same matrix in every environment with the same numpy, so that the peers, which live in
environments of their own, see exactly the data that we see.
"""

import numpy as np


def counts(
    n_obs: int = 8000,
    n_vars: int = 2000,
    density: float = 0.47,
    seed: int = 0,
    n_types: int = 8,
) -> np.ndarray:
    """Overdispersed counts of `n_types` cell types, float32 [n_obs, n_vars].

    Negative binomial with gene-wise means (log-normal, so that few genes carry most of the counts),
    gene-wise inverse dispersion, library sizes that vary log-normally, and for each type a tenth of the genes
    four-fold up or down. One factor on all means is chosen so that `density` of the entries is expected to be
    non-zero. No cell is empty at the default sizes.

    Raises ValueError if `density` is not strictly between 0 and 0.95.
    """
    if not 0 < density < 0.95:
        raise ValueError(f"density must lie strictly between 0 and 0.95, got {density}.")
    rng = np.random.default_rng(seed)
    theta = rng.gamma(2.0, 1.0, n_vars) + 0.3
    types = _type_profiles(n_types, n_vars, rng)
    label = rng.integers(n_types, size=n_obs)
    library = rng.lognormal(0.0, 0.35, n_obs)
    spread = np.argsort(library)[:: max(1, n_obs // 200)]  # about 200 cells, evenly from small to large
    relative = library[spread, None] * types[label[spread]]
    scale = _scale_for_density(relative, theta, density)
    x = np.empty((n_obs, n_vars), dtype=np.float32)
    for start in range(0, n_obs, 500):  # in blocks: the float64 intermediates stay small
        rows = slice(start, start + 500)
        mean = scale * library[rows, None] * types[label[rows]]
        x[rows] = rng.poisson(rng.gamma(theta, mean / theta))
    return x


def gaussian(n_obs: int = 5000, n_vars: int = 2000, seed: int = 0, rank: int = 16) -> np.ndarray:
    """Continuous matrix of the given rank plus noise of the same variance, float32 [n_obs, n_vars].

    Columns have mean 0 and standard deviation 1; about half of the variance can be reconstructed.
    """
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n_obs, rank), dtype=np.float32)
    loadings = rng.standard_normal((rank, n_vars), dtype=np.float32) / np.float32(np.sqrt(rank))
    x = factors @ loadings + rng.standard_normal((n_obs, n_vars), dtype=np.float32)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _type_profiles(n_types: int, n_vars: int, rng: np.random.Generator) -> np.ndarray:
    """Mean per type and gene before scaling, [n_types, n_vars]."""
    genes = rng.lognormal(0.0, 1.3, n_vars)
    changed = rng.random((n_types, n_vars)) < 0.1
    fold = 4.0 ** rng.choice([-1.0, 1.0], size=(n_types, n_vars))
    return genes * np.where(changed, fold, 1.0)


def _scale_for_density(relative: np.ndarray, theta: np.ndarray, density: float) -> float:
    """Factor on the means [n_obs, n_vars] that makes the expected share of non-zeros `density`; bisection."""
    low, high = np.log(1e-4), np.log(1e4)
    for _ in range(30):
        middle = (low + high) / 2
        zero = (theta / (theta + np.exp(middle) * relative)) ** theta
        low, high = (middle, high) if (1 - zero).mean() < density else (low, middle)
    return float(np.exp(low))
