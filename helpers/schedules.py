"""Annealing curves: the weight of a loss term at epoch t of T. Each curve is a function (t, T) -> [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Curve = Callable[[float, float], float]
STEEPNESS = 20.0  # B = 20 / T of AUTOENCODIX, equation 4


def logistic(midpoint: float = 0.5) -> Curve:
    """w(t) = 1 / (1 + exp(−B (t − M T))) with B = 20 / T (AUTOENCODIX, equation 4). Introduced in notebook 01."""
    return lambda t, T: 1.0 / (1.0 + math.exp(-STEEPNESS * (t / T - midpoint)))


def five_phase_constant(t: float, T: float) -> float:
    """0, 0.001, 0.01, 0.1, 1, a fifth of the epochs each. Introduced in notebook 01."""
    return (0.0, 0.001, 0.01, 0.1, 1.0)[min(int(5 * t / T), 4)]


def three_phase_linear(t: float, T: float) -> float:
    """0 for a third of the epochs, a ramp for a third, then 1. Introduced in notebook 01."""
    return min(max(3 * t / T - 1, 0.0), 1.0)


def three_phase_log(t: float, T: float) -> float:
    """0 for a third of the epochs, a logistic curve over the middle third, then 1. Introduced in notebook 01."""
    third = T / 3
    if t < third:
        return 0.0
    return logistic()(t - third, third) if t < 2 * third else 1.0


def constant(t: float, T: float) -> float:
    """Full weight from the start: no annealing. Introduced in notebook 01."""
    return 1.0


CURVES: dict[str, Curve] = {
    "logistic-mid": logistic(0.5),
    "logistic-early": logistic(0.25),
    "logistic-late": logistic(0.75),
    "5phase-constant": five_phase_constant,
    "3phase-linear": three_phase_linear,
    "3phase-log": three_phase_log,
    "no-annealing": constant,
}


def cosine(t: float, T: float) -> float:
    """From 1 to 0.02 along half a cosine: a learning rate that comes to rest. Introduced in notebook 04."""
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(t / max(T - 1, 1), 1)))


DECAYS: dict[str, Curve] = {"none": constant, "cosine": cosine}


def curve(name: str) -> Curve:
    """The annealing curve of that name; an unknown name is a `ValueError`. Introduced in notebook 01."""
    if name not in CURVES:
        raise ValueError(f"unknown annealing curve {name!r}; choose one of {', '.join(CURVES)}")
    return CURVES[name]


def scaled(weight: float, shape: Curve | str = constant) -> Curve:
    """A weight that follows a curve: `scaled(beta, "logistic-mid")(t, T)`. Introduced in notebook 01."""
    shape = curve(shape) if isinstance(shape, str) else shape
    return lambda t, T: weight * shape(t, T)
