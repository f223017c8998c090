"""Can one trust the terms? An ontology-constrained autoencoder, trained again and again, and what stays the same.

Every repetition (new weights, new split) gives term activities of the same samples: [n_rep, n_obs, n_terms]. What two
repetitions agree on is reproducible; whether it is right needs known truth, or attributions (`helpers.attribution`).
Introduced in notebook 03.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from helpers.wording import few

FLAT = 1e-6  # spread relative to size below which float32 activities count as constant

# ---------------------------------------------------------------- what to train


def plan(
    base: Mapping[str, Any],
    grid: Mapping[str, Sequence],
    beside: Mapping[str, Mapping[str, Mapping]],
    n: int,
    n_of: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Repetitions of a baseline with one hyperparameter changed at a time: panel, value, repetition, and the settings.

    `grid`: hyperparameter, which is also the panel, -> values; `beside`: further panels, name -> {value: changes to
    `base`}. Each gets `n` repetitions, or as many as `n_of` says for its value. The baseline may occur in several
    panels: drop duplicates before training. Introduced in notebook 03.
    """
    panels = {key: {v: {key: v} for v in values} for key, values in grid.items()} | beside
    return [
        {"panel": panel, "value": value, "repetition": i, **base, **change}
        for panel, changes in panels.items()
        for value, change in changes.items()
        for i in range((n_of or {}).get(value, n))
    ]


# ---------------------------------------------------------------- agreement of repetitions


def correlations(activities: ArrayLike) -> np.ndarray:
    """Pearson's r of each term between each pair of repetitions: [n_pairs, n_terms].

    `activities` [n_rep, n_obs, n_terms]; pairs run (0, 1), (0, 2), ..., as in `itertools.combinations`. A term that is
    constant in a repetition (its latent dimension collapsed) has no correlation: NaN, and a warning counts them.
    Raises ValueError for NaN, fewer than two repetitions or three samples. Introduced in notebook 03.
    """
    r = _matrices(_checked(activities))  # [n_terms, n_rep, n_rep]
    first, second = np.triu_indices(r.shape[1], 1)
    return r[:, first, second].T


def robustness(activities: ArrayLike) -> np.ndarray:
    """Mean |r| over all pairs of repetitions, per term: [n_terms]; 0 = nothing in common, 1 = the same up to sign.

    Pairs without a correlation are left out; NaN where there is no other pair. By chance about 0.8 / sqrt(n_obs).
    Source: AUTOENCODIX, Methods, "Experiments", and figure 4. Raises as `correlations`. Introduced in notebook 03.
    """
    return _mean(np.abs(correlations(activities)))


def table(activities: ArrayLike, names: Sequence[str], sizes: Sequence[float] | None = None) -> pd.DataFrame:
    """One row per term, in the order given: term, robustness, low, high, n_constant, size.

    `low` and `high` are a 95 % interval from the jackknife over repetitions, with Student's t (n_rep - 1): pairs share
    repetitions, so a standard error over pairs would be too small. NaN for two repetitions, which leave one pair.
    `n_constant` counts repetitions in which the term collapsed. `sizes`: features per term, NaN unless given.
    Source: Arvesen, Ann. Math. Statist. 40 (1969) 2076. Raises ValueError where names or sizes do not fit.
    Introduced in notebook 03.
    """
    activities = _checked(activities)
    n_terms = activities.shape[2]
    names = _fitting(names, n_terms, "names")
    sizes = [np.nan] * n_terms if sizes is None else _fitting(sizes, n_terms, "sizes")
    r = np.abs(_matrices(activities))
    middle, error = _jackknife(r)
    reach = _student(len(activities) - 1) * error
    columns = {
        "term": names,
        "robustness": middle,
        "low": (middle - reach).clip(0),
        "high": (middle + reach).clip(max=1),
    }
    return pd.DataFrame(columns | {"n_constant": _constant(activities).sum(0), "size": sizes})


def _jackknife(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over pairs of |r| [n_terms, n_rep, n_rep] and its standard error over repetitions, [n_terms] each."""
    n = r.shape[1]
    off = np.where(np.eye(n, dtype=bool), np.nan, r)
    total, count = np.nansum(off, (1, 2)), np.isfinite(off).sum((1, 2))
    own, n_own = np.nansum(off, 2), np.isfinite(off).sum(2)  # [n_terms, n_rep], each pair in two of them
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (total[:, None] - 2 * own) / (count[:, None] - 2 * n_own)
        error = np.sqrt((n - 1) / n * ((without - without.mean(1, keepdims=True)) ** 2).sum(1))
        return total / count, error


def _student(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


# ---------------------------------------------------------------- one activity from many


def align(activities: ArrayLike, reference: ArrayLike | None = None) -> np.ndarray:
    """Activities [n_rep, n_obs, n_terms] standardised over samples, with signs that agree.

    The sign of a latent dimension is arbitrary. Per term, a repetition is flipped where its loading on the first
    principal component of the repetitions is negative. That component's own sign follows `reference` [n_obs, n_terms],
    for example the mean expression of a term's genes; without one, most repetitions keep their sign, and the first
    does in a tie. Constant terms are NaN. Raises as `correlations`. Introduced in notebook 03.
    """
    activities = _checked(activities)
    z = _standardised(activities)
    aligned = z * _signs(np.nan_to_num(_matrices(activities)))[:, None, :]
    if reference is not None:
        reference = _matrix(reference, activities.shape[1:], "reference")
        with np.errstate(invalid="ignore"):
            agrees = (_mean(aligned) * (reference - reference.mean(0))).sum(0)
        aligned *= np.where(agrees < 0, -1, 1)
    return aligned


def _signs(r: np.ndarray) -> np.ndarray:
    """r [n_terms, n_rep, n_rep] -> ±1 [n_rep, n_terms]: signs of the leading eigenvector, most of them +1."""
    leading = np.linalg.eigh(r)[1][:, :, -1].T
    signs = np.where(leading < 0, -1.0, 1.0)
    votes = signs.sum(0)
    return signs * np.where((votes < 0) | ((votes == 0) & (signs[0] < 0)), -1, 1)


class Consensus(NamedTuple):
    """Consensus activities and their interval over repetitions, [n_obs, n_terms] each. Introduced in notebook 03."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def consensus(activities: ArrayLike, reference: ArrayLike | None = None) -> Consensus:
    """Mean activity over aligned, standardised repetitions, with the 95 % t interval of that mean.

    Units: standard deviations of the term over samples within a repetition. The interval tells how far the mean could
    move with other repetitions of the same training on the same data; it knows nothing of other cohorts. Terms on
    which repetitions disagree shrink towards zero. Raises as `align`. Introduced in notebook 03.
    """
    aligned = align(activities, reference)
    n = np.isfinite(aligned).sum(0)
    mean = _mean(aligned)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.nansum((aligned - mean) ** 2, 0) / (n - 1) / n)
    reach = error * np.vectorize(_student, otypes=[float])(np.maximum(n.min(0), 2) - 1)
    return Consensus(mean, mean - reach, mean + reach)


class Stability(NamedTuple):
    """What `repetitions_needed` finds. Introduced in notebook 03."""

    table: pd.DataFrame  # ranking, n, spearman, low, high, draws
    needed: dict[str, int | None]  # "terms" and "samples" -> repetitions
    words: dict[str, str]  # the same in a sentence


def repetitions_needed(
    activities: ArrayLike, k_max: int | None = None, target: float = 0.9, draws: int = 50, seed: int = 0
) -> Stability:
    """How many repetitions until a ranking no longer depends on which repetitions one happened to train?

    Two disjoint random subsets of n = 1 ... `k_max` repetitions (at most half of them) are ranked each on its own:
    the terms by robustness (n of 2 and more), and the samples within each term by consensus activity (|Spearman's
    rho|, since signs are arbitrary, averaged over terms). `table` holds the mean rho over `draws` random pairs of
    subsets and its 5th and 95th percentile; `needed` the smallest n with a mean of `target` or more, else None, with a
    rough guess in `words` by the formula of Spearman and Brown (Br. J. Psychol. 3 (1910) 271, 296).
    Raises ValueError for fewer than four repetitions or a `k_max` above half of them. Introduced in notebook 03.
    """
    activities = _checked(activities)
    half = len(activities) // 2
    k_max = half if k_max is None else k_max
    if not 2 <= k_max <= half:
        raise ValueError(f"k_max must lie between 2 and half of the {len(activities)} repetitions, got {k_max}")
    r, z = np.nan_to_num(_matrices(activities, warn=False)), np.nan_to_num(_standardised(activities))
    rng = np.random.default_rng(seed)
    rows = [row for k in range(1, k_max + 1) for row in _compared(r, z, k, draws, rng)]
    found = pd.DataFrame(rows, columns=["ranking", "n", "spearman", "low", "high", "draws"])
    parts = {ranking: found[found.ranking == ranking] for ranking in ("terms", "samples")}
    needed = {ranking: _first(rows, target) for ranking, rows in parts.items()}
    return Stability(found, needed, {name: _in_words(name, parts[name], needed[name], target) for name in needed})


def _compared(r: np.ndarray, z: np.ndarray, k: int, draws: int, rng: np.random.Generator) -> list[tuple]:
    """Rows of the table for subsets of k: (ranking, k, mean rho, 5th and 95th percentile, draws)."""
    subsets = [np.split(rng.permutation(len(z))[: 2 * k], 2) for _ in range(draws)]
    rho = {"samples": [_spearman(*(_ranked(r, z, s) for s in pair)) for pair in subsets]}
    if k > 1 and len(r) > 2:
        rho["terms"] = [_spearman(*(_jackknife(np.abs(r[:, s][:, :, s]))[0] for s in pair)) for pair in subsets]
    return [(name, k, np.mean(v), *np.percentile(v, [5, 95]), draws) for name, v in rho.items()]


def _ranked(r: np.ndarray, z: np.ndarray, subset: np.ndarray) -> np.ndarray:
    """Consensus of a subset of repetitions, aligned on its own: [n_obs, n_terms]."""
    return np.einsum("kt,kot->ot", _signs(r[:, subset][:, :, subset]), z[subset])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho of two rankings [n], or the mean of its size over the columns of two matrices [n, n_terms]."""
    from scipy.stats import rankdata

    rho = _columnwise(rankdata(a, axis=0), rankdata(b, axis=0))
    return float(_mean(np.abs(rho)) if a.ndim == 2 else rho)


def _first(rows: pd.DataFrame, target: float) -> int | None:
    reached = rows.n[rows.spearman >= target]
    return int(reached.min()) if len(reached) else None


def _in_words(name: str, rows: pd.DataFrame, needed: int | None, target: float) -> str:
    if not len(rows):
        return "terms cannot be ranked: there are fewer than three"
    if needed is not None:
        return f"the ranking of {name} is stable (Spearman >= {target:g}) from n = {needed} repetitions on"
    n, rho = rows.iloc[-1][["n", "spearman"]]
    guess = (
        f"about {int(np.ceil(n * target * (1 - rho) / (rho * (1 - target))))}" if 0.1 < rho and target < 1 else "many"
    )
    return (
        f"the ranking of {name} is not stable with {n} repetitions (Spearman {rho:.2f}, not {target:g}): needs {guess}"
    )


# ---------------------------------------------------------------- robust and right


def right_terms(z: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """|Pearson's r| of each term with its planted activity, for simulated data: [n_terms].

    `z` is a consensus or one repetition [n_obs, n_terms], or all repetitions [n_rep, n_obs, n_terms], of which the mean
    |r| is taken; `truth` [n_obs, n_terms]. NaN for constant columns. Raises ValueError where shapes differ.
    Introduced in notebook 03.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim not in (2, 3):
        raise ValueError(f"z has shape {z.shape}; it must be [n_obs, n_terms] or [n_rep, n_obs, n_terms]")
    truth = _matrix(truth, z.shape[-2:], "truth")
    return _mean(np.abs([_columnwise(one, truth) for one in z.reshape(-1, *truth.shape)]))


def are_robust_terms_right(robust: ArrayLike, right: ArrayLike) -> dict[str, float]:
    """Spearman's rho over terms between robustness and being right, with a 95 % interval: spearman, low, high, n.

    Terms with a NaN are left out. The interval is Fisher's z with the standard error sqrt((1 + rho^2 / 2) / (n - 3)),
    so wide for a dozen terms. Source: Bonett and Wright, Psychometrika 65 (2000) 23.
    Raises ValueError for fewer than four terms. Introduced in notebook 03.
    """
    robust, right = np.asarray(robust, float), np.asarray(right, float)
    if robust.shape != right.shape or robust.ndim != 1:
        raise ValueError(f"robust has shape {robust.shape} and right {right.shape}; both must be [n_terms]")
    known = np.isfinite(robust) & np.isfinite(right)
    n = int(known.sum())
    if n < 4:
        raise ValueError(f"an interval needs at least 4 terms with both numbers, found {n}")
    rho = _spearman(robust[known], right[known])
    z, reach = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)), 1.959964 * np.sqrt((1 + rho**2 / 2) / (n - 3))
    return {"spearman": rho, "low": float(np.tanh(z - reach)), "high": float(np.tanh(z + reach)), "n": n}


# ---------------------------------------------------------------- all of it


def report(
    activities: ArrayLike,
    names: Sequence[str],
    sizes: Sequence[float] | None = None,
    reference: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    trust: float = 0.8,
) -> pd.DataFrame:
    """Which terms may be interpreted? One row per term, the most robust first.

    Columns of `table`, and reliability (expected r between this consensus and one of as many new repetitions, after
    Spearman and Brown), width (mean width of the consensus interval, standard deviations), with `truth` right (|r| of
    the consensus with it), and trust: "yes" where all of the interval of robustness lies above `trust`, "no" where all
    of it lies below, else "unclear". With four repetitions or more, `.attrs["stability"]` says in words whether there
    were enough. Raises as `table` and `align`. Introduced in notebook 03.
    """
    activities = _checked(activities)
    found = table(activities, names, sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant terms were told by `table`
        middle = consensus(activities, reference)
    n, r = len(activities), _aligned_r(activities)
    found["reliability"] = n * r / (1 + (n - 1) * r)
    found["width"] = (middle.high - middle.low).mean(0)
    if truth is not None:
        found["right"] = right_terms(middle.mean, truth)
    sure = [found.low.to_numpy() >= trust, found.high.to_numpy() < trust]
    found["trust"] = np.select(sure, ["yes", "no"], "unclear")
    found = found.sort_values("robustness", ascending=False, kind="stable", ignore_index=True)
    found.attrs["stability"] = repetitions_needed(activities).words if n >= 4 else {}
    return found


def _aligned_r(activities: np.ndarray) -> np.ndarray:
    """Mean r over pairs after alignment, [n_terms]."""
    r = _matrices(activities, warn=False)
    signs = _signs(np.nan_to_num(r)).T
    aligned = r * signs[:, :, None] * signs[:, None, :]
    first, second = np.triu_indices(r.shape[1], 1)
    return _mean(aligned[:, first, second].T)


# ---------------------------------------------------------------- arrays


def _checked(activities: ArrayLike) -> np.ndarray:
    activities = np.asarray(activities, dtype=np.float64)
    if activities.ndim != 3 or activities.shape[0] < 2 or activities.shape[1] < 3 or activities.shape[2] < 1:
        raise ValueError(
            f"activities have shape {activities.shape}; they must be [n_rep, n_obs, n_terms] with at least "
            "two repetitions and three samples, the same samples in the same order"
        )
    if not np.isfinite(activities).all():
        raise ValueError(
            f"activities hold {(~np.isfinite(activities)).sum()} NaN or infinite values: leave out failed trainings"
        )
    return activities


def _matrix(values: ArrayLike, shape: tuple[int, ...], what: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"{what} has shape {values.shape}, but must have {tuple(shape)}")
    return values


def _fitting(values: Sequence, n_terms: int, what: str) -> list:
    if len(values) != n_terms:
        raise ValueError(f"there are {len(values)} {what} for {n_terms} terms: {few(values)}")
    return list(values)


def _constant(activities: np.ndarray) -> np.ndarray:
    """[n_rep, n_terms], True where a term does not vary beyond rounding."""
    return np.ptp(activities, axis=1) <= FLAT * np.abs(activities).max(axis=1)


def _standardised(activities: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over samples; NaN where constant."""
    centred = activities - activities.mean(1, keepdims=True)
    return centred / np.where(_constant(activities), np.nan, centred.std(1))[:, None, :]


def _matrices(activities: np.ndarray, warn: bool = True) -> np.ndarray:
    """Correlation matrices of repetitions [n_terms, n_rep, n_rep]; NaN for constant terms, with a warning."""
    if warn and (n := int(_constant(activities).any(0).sum())):
        of = activities.shape[2]
        warnings.warn(f"{n} of {of} terms are constant in some repetition; these have no correlation", stacklevel=4)
    z = _standardised(activities).transpose(2, 0, 1)
    return (z @ z.transpose(0, 2, 1) / z.shape[2]).clip(-1, 1)


def _columnwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of two vectors [n], or of the columns of two matrices; NaN where one is constant."""
    a, b = (v - v.mean(0) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
