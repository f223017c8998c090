"""Verdicts follow the numbers and their spread over seeds."""

import pandas as pd
import pytest

from helpers import claims


def table(*series):
    return pd.DataFrame([{"seed": s, "x": i, "y": y} for s, ys in enumerate(series) for i, y in enumerate(ys)])


@pytest.mark.parametrize(
    ("series", "rising", "verdict"),
    [
        (([1, 2, 3, 4], [0, 1, 5, 9]), True, "holds"),
        (([4, 3, 2, 1], [9, 5, 1, 0]), False, "holds"),
        (([1, 2, 3, 4], [1, 2, 4, 3], [1, 3, 2, 4], [2, 1, 4, 3]), True, "holds in part"),
        (([1, 2, 3, 4], [4, 3, 2, 1]), True, "does not hold here"),
        (([2, 2, 2, 2], [2, 2, 2, 2]), True, "does not hold here"),
    ],
)
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_trend(series, rising, verdict):
    found = claims.trend("A1", table(*series), "x", "y", rising)
    assert found["verdict"] == verdict and found["id"] == "A1"
    assert f"over {len(series)} seeds" in found["evidence"]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1.0, 1.1, 1.2], [0.0, 0.1, 0.1], "holds"),
        ([1.0, 0.0, 1.0], [0.0, 0.5, 0.0], "holds in part"),
        ([0.0, 0.0], [0.0, 0.0], "does not hold here"),
        ([0.0, 0.1], [1.0, 1.0], "does not hold here"),
    ],
)
def test_difference(ours, theirs, verdict):
    assert claims.difference("A4", ours, theirs, "units")["verdict"] == verdict


def test_table_shows_every_claim():
    shown = claims.table([claims.difference("A4", [1.0], [0.0], "units")])
    assert list(shown.index) == ["A4"] and list(shown.columns) == ["verdict", "evidence"]


def test_share_counts_cases():
    assert claims.share("A9", [True] * 20, "beats random")["verdict"] == "holds"
    found = claims.share("A9", [True] * 3 + [False], "beats random")
    assert found == {"id": "A9", "verdict": "holds in part", "evidence": "beats random: 3 of 4 cases"}
    assert claims.share("A9", [True, False], "x")["verdict"] == "does not hold here"
    assert claims.share("A9", [], "x")["verdict"] == "cannot be tested"
    assert claims.untested("A14", "no Y genes")["verdict"] == "cannot be tested"
