"""An embryo that grows, seen twice: its transcription factors and its picture, with the planted relation known."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from mudata import MuData

from helpers.checks import Parts, assemble, part
from helpers.pictures import Size, height_width, pixel_names

HOURS = 7.0
STAGES = {"cleavage": 0.0, "gastrulation": 1.6, "bean": 3.6, "comma": 4.8, "fold": 5.9}  # first hour of each
FACTORS = ("time", "brightness", "tilt")  # shared by both modalities; brightness and tilt in standard deviations
DIVISIONS = np.array([0.1, 0.8, 1.5, 2.2, 2.9, 3.6])  # hours at which 1, 2, 4, ... 32 cells divide
DIVIDING = 0.4  # hours that two daughters take to move apart
FOLDING = (3.4, 7.4)  # hours between which the body bends, a little beyond the last picture
DEGREES = 6.0  # per standard deviation of tilt, counter-clockwise
EGG = np.array([27.0, 19.0])  # half axes of the egg, in pixels of a picture of 64 x 64
ROLES = {"time": 0.5, "brightness": 0.2, "tilt": 0.15, "none": 0.15}  # what moves a factor beside time: shares
CHUNK = 128  # pictures drawn together


def embryo(n_obs: int = 300, n_protein: int = 120, size: Size = 64, noise: float = 1.0, seed: int = 0) -> MuData:
    """Embryos of 0 to 7 hours, each measured once: transcription factors (`protein`) and a picture (`image`).

    Modalities: `protein` [n_obs, n_protein] >= 0, over three orders of magnitude; `image` [n_obs, height * width] 0..1,
    with `uns["image_shape"]`. Both follow three factors: time, brightness (level of the reporter that the picture
    shows) and tilt (of the long axis). The picture also has a small shift and camera noise, and the transcription
    factors have measurement noise, which no translation can know. Samples are independent, so that a random split
    leaks nothing. `noise` scales shift and noise; with 0 the image is `picture` of the factors.

    `obs`: time (hours), stage (five, in order). `protein.var`: role (what moves it beside time; "none" of the factors
    at all), peak (hours, for those that follow time). Truth: `obsm["truth_factors"]` [n_obs, 3], named in
    `uns["truth"]`. The same arguments give identical arrays. Raises ValueError for sizes it cannot fill.
    Introduced in notebook 04.
    """
    if n_obs < 10 or n_protein < 10 or noise < 0 or min(height_width(size)) < 16:
        raise ValueError(
            f"n_obs={n_obs} and n_protein={n_protein} must be at least 10, size={size} 16 pixels, noise={noise} >= 0"
        )
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    factors = _factors(streams[0], n_obs)
    names = [f"embryo{i + 1:04d}" for i in range(n_obs)]
    starts = list(STAGES.values())
    stage = pd.Categorical.from_codes(np.digitize(factors[:, 0], starts) - 1, list(STAGES), ordered=True)
    obs = pd.DataFrame({"time": factors[:, 0], "stage": stage}, index=names)
    shape = np.array([*height_width(size), 1])
    x, var = _profiles(streams[1], factors, n_protein, noise)
    image = _photographed(streams[2], factors, size, noise)
    modalities = {
        "protein": part(x, names, var),
        "image": part(image, names, pixel_names(shape), image_shape=shape),
    }
    kinds, truth = {"protein": "continuous", "image": "image"}, {"factors": np.array(FACTORS)}
    found = {"kinds": kinds, "obsm": {"truth_factors": factors}, "uns": {"truth": truth}}
    return assemble(Parts(modalities, obs, "sim-embryo", label_key="stage", **found))


def picture(time: np.ndarray, brightness: np.ndarray, tilt: np.ndarray, size: Size = 64) -> np.ndarray:
    """Pictures without shift and camera noise, [n, height * width] in 0..1: what a translation could know at best.

    `time` in hours (0..7), `brightness` and `tilt` in standard deviations; numbers, or arrays [n].
    Introduced in notebook 04.
    """
    factors = np.stack(np.broadcast_arrays(*map(np.atleast_1d, (time, brightness, tilt))), 1).astype(float)
    return _drawn(factors, np.zeros((len(factors), 2)), size)


def _factors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Time, brightness and tilt [n, 3]; the last two are cut at two standard deviations."""
    return np.column_stack([rng.uniform(0, HOURS, n), np.clip(rng.normal(size=(n, 2)), -2, 2)])


# --- transcription factors ---


def _profiles(rng: np.random.Generator, factors: np.ndarray, n: int, noise: float) -> tuple[np.ndarray, pd.DataFrame]:
    """Transcription factors [n_obs, n]: bumps and switches over time, some with a second cause, some with none."""
    time, brightness, tilt = factors.T[:, :, None]
    role = rng.permutation(np.repeat(list(ROLES), _whole_shares(list(ROLES.values()), n)))
    peak, width, sign = rng.uniform(-0.5, HOURS + 0.5, n), rng.uniform(0.5, 1.8, n), rng.choice([-1, 1], n)
    bump = np.exp(-0.5 * ((time - peak) / width) ** 2)
    switch = 1 / (1 + np.exp(-sign * 2.5 * (time - peak) / width))
    level = 0.05 + np.where(rng.random(n) < 0.6, bump, switch)
    slope = rng.choice([-1, 1], n) * rng.uniform(0.3, 0.6, n)  # of the logarithm, per standard deviation
    level *= np.exp(slope * ((role == "brightness") * brightness + (role == "tilt") * tilt))
    alone = rng.gamma(2.0, 0.2, size=level.shape)  # follows nothing that the picture shows
    level = np.where(role == "none", alone, level)
    error = level * 0.15 * rng.normal(size=level.shape) + 0.04 * rng.normal(size=level.shape)
    x = np.geomspace(3e-4, 0.3, n)[rng.permutation(n)] * np.maximum(level + noise * error, 0)
    var = pd.DataFrame({"role": role, "peak": np.where(role == "none", np.nan, peak)})
    return x, var.set_index(pd.Index([f"TF{i + 1:03d}" for i in range(n)]))


def _whole_shares(shares: list[float], n: int) -> np.ndarray:
    """Whole numbers in proportion to `shares` that add up to n."""
    return np.diff(np.round(np.cumsum([0.0, *shares]) * n)).astype(int)


# --- the picture ---


def _photographed(rng: np.random.Generator, factors: np.ndarray, size: Size, noise: float) -> np.ndarray:
    """Pictures [n, height * width] through a camera: the embryo not quite in the middle, grain where there is light."""
    shift = noise * rng.uniform(-0.8, 0.8, size=(len(factors), 2))
    clean = _drawn(factors, shift, size)
    grain = rng.normal(size=clean.shape).astype(np.float32) * np.sqrt(0.02**2 + 0.05**2 * clean)
    return np.clip(clean + np.float32(noise) * grain, 0, 1)


def _drawn(factors: np.ndarray, shift: np.ndarray, size: Size) -> np.ndarray:
    """Pictures [n, height * width] of factors [n, 3], moved by `shift` [n, 2] (right and down, in 64ths)."""
    blocks = range(0, len(factors), CHUNK)
    drawn = [_draw(factors[i : i + CHUNK], shift[i : i + CHUNK], *height_width(size)) for i in blocks]
    return np.concatenate(drawn) if drawn else np.zeros((0, np.prod(height_width(size))), np.float32)


def _draw(factors: np.ndarray, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nuclei, the cells around them, and the egg, added as light; bright light saturates, so nothing passes 1."""
    time, brightness, tilt = factors.T
    unit = min(width, height / 0.75) / 64  # pixels of this picture per pixel of one of 64 x 64
    angle = np.deg2rad(DEGREES) * tilt
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # [2, 2, n]
    cells, radius, weight = _cells(time)
    cells = np.einsum("ijn,nkj->nki", turn, cells) + shift[:, None]
    down, across = ((np.arange(n) - (n - 1) / 2) / unit for n in (height, width))
    nuclei = _blobs(cells, radius, weight, down, across)
    bodies = _blobs(cells, 2 * radius, weight, down, across)
    reporter = np.exp(0.3 * brightness)[:, None, None]
    light = reporter * (0.9 * nuclei + 0.17 * bodies) + _egg(turn, shift, down, across)
    return (1 - np.exp(-light)).reshape(len(factors), -1).astype(np.float32)


def _blobs(cells: np.ndarray, radius: np.ndarray, weight: np.ndarray, down: np.ndarray, across: np.ndarray):
    """Sum of round soft blobs, [n, height, width]: a product of a row and a column for each, so one matrix product."""
    x, y = ((axis - cells[..., [i]]) / radius[..., None] for i, axis in enumerate((across, down)))
    rows, columns = (np.exp(-0.5 * np.square(v, dtype=np.float32)) for v in (y, x))
    return (rows * weight[..., None].astype(np.float32)).transpose(0, 2, 1) @ columns


def _egg(turn: np.ndarray, shift: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A faint filled ellipse with a brighter shell, [n, height, width]."""
    x, y = across - shift[:, 0, None, None], down[:, None] - shift[:, 1, None, None]
    along, aside = (turn[0, i][:, None, None] * x + turn[1, i][:, None, None] * y for i in (0, 1))
    out = np.hypot(along / EGG[0], aside / EGG[1]).astype(np.float32)  # 1 on the shell
    inside = 1 / (1 + np.exp((out - 1) * 25))
    return 0.07 * inside + 0.16 * np.exp(-0.5 * ((out - 1) / 0.045) ** 2)


def _cells(time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places [n, 64, 2] (right and down), radii and weights [n, 64] of the nuclei at `time` [n].

    All 64 descendants are drawn at any time: those that have not yet parted lie on one place and share its light.
    """
    steps, late = _lineage()
    parted = _smooth((time[:, None, None] - late) / DIVIDING)  # [n, 64, 6], one per division of its ancestors
    place = np.einsum("nkg,kgj->nkj", parted, steps)
    weight = np.prod(0.5 + 0.5 * parted, axis=2)
    radius = 1.2 + 4.4 * np.exp2(-0.55 * parted.sum(2))  # pixels; blobs shrink with every division,
    radius *= np.exp2(-time / 10)[:, None]  # and slowly between, so that any two hours look different
    return _bent(place, time), radius, weight


def _smooth(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 with level ends."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _bent(place: np.ndarray, time: np.ndarray) -> np.ndarray:
    """From the unit disc into the egg: at first an ellipse, then a longer and thinner body along a bending arc."""
    fold = _smooth((time - FOLDING[0]) / (FOLDING[1] - FOLDING[0]))[:, None]
    along, aside = place[..., 0], place[..., 1]
    half_length = 0.82 * EGG[0] * (1 + 0.42 * fold)
    half_width = 0.82 * EGG[1] * (1 - 0.5 * fold) * (1 - 0.3 * fold * along)  # the head stays thicker
    bend = 0.05 + 2.1 * fold  # half the angle of the arc; never quite straight, which spares a division by 0
    x = half_length * np.sin(bend * along) / bend
    y = half_length * (np.sin(bend) / bend - np.cos(bend * along)) / bend  # its mean is 0
    return np.stack([x + np.sin(bend * along) * half_width * aside, y - np.cos(bend * along) * half_width * aside], 2)


@functools.cache
def _lineage() -> tuple[np.ndarray, np.ndarray]:
    """Of 64 last cells: the step of each division of their ancestors [64, 6, 2], and its hour [64, 6].

    The last cells fill the unit disc evenly; halving their crowd again and again, across its longer side, gives the
    ancestors, each in the middle of its descendants.
    """
    n = 2 ** len(DIVISIONS)
    spiral = np.arange(n) + 0.5
    turn = np.pi * (3 - np.sqrt(5)) * spiral
    last = np.sqrt(spiral / n)[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    middle, hour = np.zeros((n, len(DIVISIONS) + 1, 2)), np.zeros((n, len(DIVISIONS)))
    groups = [np.arange(n)]
    for g, when in enumerate(DIVISIONS):
        for i, group in enumerate(groups):  # cells of a generation do not divide at quite the same time
            hour[group, g] = when + 0.25 * ((0.618 * i) % 1 - 0.5) * (g > 0)
        groups = [half for group in groups for half in _halves(last, group)]
        for group in groups:
            middle[group, g + 1] = last[group].mean(0)
    return np.diff(middle, axis=1), hour


def _halves(last: np.ndarray, group: np.ndarray) -> list[np.ndarray]:
    longer = np.argmax(np.ptp(last[group] * EGG, axis=0))
    return np.array_split(group[np.argsort(last[group, longer], kind="stable")], 2)
