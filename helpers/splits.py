"""Deal samples to train, valid and test: labels for `prepare.split`. Introduced in notebook 01."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.wording import few

SPLITS = ("train", "valid", "test")


def from_column(obs: pd.DataFrame, column: str) -> np.ndarray:
    """The labels that a column of obs gives, "val" and "validation" read as valid: [n_obs]."""
    spelling = {**{name: name for name in SPLITS}, "val": "valid", "validation": "valid"}
    said = column_of(obs, column).astype("string").str.strip().str.lower()
    labels = said.map(spelling)
    if labels.isna().any():
        wrong = few(sorted(set(said[labels.isna()].fillna("missing"))))
        n_wrong = labels.isna().sum()
        raise ValueError(f"split: {n_wrong} values of '{column}' are not train, valid or test: {wrong}")
    return labels.to_numpy(dtype=object)


def from_ids(names: pd.Index, ids: Mapping[str, Iterable[str]]) -> np.ndarray:
    """The labels that lists of names give: [n_obs]. Every sample must be in exactly one list."""
    if set(ids) - set(SPLITS):
        raise ValueError(f"split: ids has the keys {', '.join(ids)}; they must be {', '.join(SPLITS)}")
    listed = [(name, part) for part, members in ids.items() for name in members]
    table = pd.Series(dict(enumerate(part for _, part in listed)), dtype=object)
    table.index = pd.Index([name for name, _ in listed], dtype=object)
    unknown, repeated = table.index.difference(names), table.index[table.index.duplicated()]
    unassigned = names.difference(table.index)
    for wrong, what in ((unknown, "are not in the data"), (repeated, "are listed twice")):
        if len(wrong):
            raise ValueError(f"split: {len(wrong)} names of ids {what}: {few(wrong)}")
    if len(unassigned):
        raise ValueError(f"split: {len(unassigned)} samples are in no list of ids: {few(unassigned)}")
    return table.loc[names].to_numpy()


def draw(
    obs: pd.DataFrame, fractions: Sequence[float], stratify: str | None, group: str | None, seed: int
) -> np.ndarray:
    """Train, valid and test at random, for `prepare.split`, which says what the arguments mean: [n_obs]."""
    fractions = _as_fractions(fractions)
    if len(obs) < len(SPLITS):
        raise ValueError(f"split: {len(obs)} samples cannot fill train, valid and test; give three or more")
    rng = np.random.default_rng(seed)
    strata = np.zeros(len(obs), int)
    if stratify is not None:
        strata = pd.factorize(column_of(obs, stratify), use_na_sentinel=False)[0]
    if group is not None:
        return np.take(SPLITS, _deal_groups(_group_codes(column_of(obs, group)), strata, fractions, rng))
    return np.take(SPLITS, _deal_strata(strata, fractions, rng, stratify))


def _as_fractions(fractions: Sequence[float]) -> np.ndarray:
    values = np.asarray(fractions, dtype=float)
    if values.shape != (3,) or not (values > 0).all() or not np.isclose(values.sum(), 1):
        raise ValueError(f"split: fractions must be three positive numbers summing to 1, not {fractions}")
    return values


def _deal_strata(strata: np.ndarray, fractions: np.ndarray, rng: np.random.Generator, column: str | None) -> np.ndarray:
    part = np.zeros(len(strata), int)
    sizes = np.bincount(strata)
    n_rare = sizes[sizes < len(SPLITS)].sum()
    if 2 * n_rare > len(strata):
        raise ValueError(f"split: most values of '{column}' occur once or twice; stratify by classes instead")
    if n_rare:
        text = f"split: {n_rare} samples in classes of '{column}' with fewer than 3 members all go to train"
        warnings.warn(text, stacklevel=4)
    done, given = n_rare, np.array([n_rare, 0, 0])  # rounding is carried over, so that the totals stay exact
    for stratum in np.flatnonzero(sizes >= len(SPLITS)):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        done += rows.size
        counts = _apportion(rows.size, fractions * done - given)
        part[rows] = np.repeat(np.arange(len(SPLITS)), counts)
        given = given + counts
    return part


def _apportion(size: int, share: np.ndarray) -> np.ndarray:
    """Whole numbers >= 1 that sum to `size` and lie as near to `share` as that allows."""
    counts = np.maximum(np.floor(share), 1).astype(int)
    while counts.sum() < size:
        counts[np.argmax(share - counts)] += 1
    while counts.sum() > size:
        counts[np.argmax(np.where(counts > 1, counts - share, -np.inf))] -= 1
    return counts


def _group_codes(labels: pd.Series) -> np.ndarray:
    codes = pd.factorize(labels)[0]
    alone = codes < 0
    codes[alone] = codes.max() + 1 + np.arange(alone.sum())
    return codes


def _deal_groups(groups: np.ndarray, strata: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    table = np.zeros((groups.max() + 1, strata.max() + 1))
    np.add.at(table, (groups, strata), 1)
    totals = table.sum(axis=0)
    lacking = fractions[:, None] * totals  # [3, n_strata]
    order = rng.permutation(len(table))
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    part = np.full(len(table), -1)
    for left, member in zip(range(len(order), 0, -1), order, strict=True):
        score = (lacking / totals) @ table[member]  # least squares over relative class counts
        empty = ~np.isin(np.arange(len(SPLITS)), part)
        if left <= empty.sum():
            score[~empty] = -np.inf
        part[member] = np.argmax(score)
        lacking[part[member]] -= table[member]
    return part[groups]


def column_of(obs: pd.DataFrame, column: str) -> pd.Series:
    """A column of obs; ValueError with the names there are where it is missing."""
    if column not in obs:
        raise ValueError(f"there is no column '{column}' in obs; there are: {few(obs.columns)}")
    return obs[column]


def check_unique(names: pd.Index, where: str, what: str) -> None:
    """Raise ValueError for repeated names."""
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise ValueError(f"{where}: {len(twice)} {what} names occur more than once: {few(twice)}; make them unique")
