"""The six published annealing curves and their constants (AUTOENCODIX, equation 4 and its code)."""

import pytest

from helpers import schedules


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("logistic-mid", 4.5e-5, 0.99995),
        ("logistic-early", 6.7e-3, 0.9999997),
        ("logistic-late", 3.1e-7, 0.9933),
    ],
)
def test_logistic_ends(name, start, end):
    w = schedules.curve(name)
    assert w(0, 1000) == pytest.approx(start, rel=0.02)
    assert w(1000, 1000) == pytest.approx(end, rel=1e-4)


def test_logistic_is_half_at_its_midpoint():
    for midpoint in (0.25, 0.5, 0.75):
        assert schedules.logistic(midpoint)(midpoint * 400, 400) == pytest.approx(0.5)


def test_five_phases():
    assert [schedules.five_phase_constant(t, 10) for t in range(0, 10, 2)] == [0, 0.001, 0.01, 0.1, 1]


def test_three_phases():
    assert [schedules.three_phase_linear(t, 9) for t in (0, 2, 3, 4.5, 6, 8)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert schedules.three_phase_log(2, 9) == 0 and schedules.three_phase_log(6, 9) == 1
    assert schedules.three_phase_log(4.5, 9) == pytest.approx(0.5)


@pytest.mark.parametrize("name", schedules.CURVES)
def test_curves_rise_within_zero_and_one(name):
    values = [schedules.curve(name)(t, 200) for t in range(201)]
    assert all(0 <= a <= b <= 1 for a, b in zip(values, values[1:], strict=False))
    assert schedules.scaled(3.0, name)(200, 200) == 3.0 * values[-1]


def test_unknown_curve_lists_the_known_ones():
    with pytest.raises(ValueError, match="choose one of logistic-mid"):
        schedules.curve("logistic")
