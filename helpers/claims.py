"""Verdicts on published claims, computed from numbers and their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

CLEAR = 0.7  # rank correlation from which a trend over a handful of settings counts as one


def trend(claim: str, table: pd.DataFrame, x: str, y: str, rising: bool, seed: str = "seed") -> dict[str, str]:
    """Does `y` rise (or fall) with `x`? Spearman's ρ within each seed, judged over seeds.

    "holds" where every seed shows ρ beyond ±0.7 in the claimed direction, "holds in part" where the mean over
    seeds does, else "does not hold here". Returns {"id", "verdict", "evidence"} for `Run.save_results`.
    Introduced in notebook 01.
    """
    from scipy.stats import spearmanr

    sign = 1 if rising else -1
    rho = np.array([spearmanr(rows[x], rows[y]).statistic for _, rows in table.groupby(seed)])
    rho = np.nan_to_num(sign * rho)  # no variation at all is no trend
    verdict = "holds" if (rho > CLEAR).all() else "holds in part" if rho.mean() > CLEAR else "does not hold here"
    evidence = f"Spearman rho of {y} with {x} over {len(rho)} seeds: {_numbers(sign * rho)}"
    return {"id": claim, "verdict": verdict, "evidence": evidence}


def difference(claim: str, ours: Sequence[float], theirs: Sequence[float], what: str) -> dict[str, str]:
    """Is `ours` above `theirs`, pair by pair? "holds" where the mean gain exceeds two standard errors and every
    pair agrees, "holds in part" where only the mean is above zero, else "does not hold here".

    Introduced in notebook 01.
    """
    gain = np.asarray(ours, float) - np.asarray(theirs, float)
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    clear = gain.mean() > 2 * error and (gain > 0).all()
    verdict = "holds" if clear else "holds in part" if gain.mean() > 0 else "does not hold here"
    return {"id": claim, "verdict": verdict, "evidence": f"{what}, gain per pair: {_numbers(gain)}"}


def share(claim: str, cases: Sequence[bool], what: str) -> dict[str, str]:
    """In how many cases is it so? "holds" from 95 % on, "holds in part" where in more than half of them.

    Introduced in notebook 02.
    """
    cases = np.asarray(cases, bool)
    if not len(cases):
        return untested(claim, f"{what}: nothing to compare in this run")
    so = cases.mean()
    verdict = "holds" if so >= 0.95 else "holds in part" if so > 0.5 else "does not hold here"
    return {"id": claim, "verdict": verdict, "evidence": f"{what}: {cases.sum()} of {len(cases)} cases"}


def untested(claim: str, why: str) -> dict[str, str]:
    """The verdict where the data at hand cannot tell. Introduced in notebook 02."""
    return {"id": claim, "verdict": "cannot be tested", "evidence": why}


def table(claims: Sequence[dict[str, str]]) -> pd.DataFrame:
    """The verdicts as a table to show. Introduced in notebook 01."""
    return pd.DataFrame(claims, columns=["id", "verdict", "evidence"]).set_index("id")


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{v:+.2f}" for v in values)
