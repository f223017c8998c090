"""Where the spots of a tissue lie: coordinates of any data set, and a lymph node measured by its proteins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from mudata import MuData

from helpers import tables
from helpers.checks import Parts, part
from helpers.singlecell import AGAIN, some
from helpers.wording import few

SLICES = ("s1", "s2")
SAME = {"medulla vessel": "medulla vessels"}  # one region, named differently in the two slices
VISIUM = np.array([50.0, np.sqrt(0.75) * 100.0])  # micrometres from one column, and one row, of the grid to the next


def coordinates(mdata: MuData) -> np.ndarray:
    """Where the spots lie, `obsm["spatial"]` as [n_obs, 2] (right and down), for maps of the tissue.

    Raises ValueError where there are none, where they are not two numbers a spot, and where some are missing.
    Introduced in notebook 07.
    """
    if "spatial" not in mdata.obsm:
        raise ValueError(
            "tissue maps need mdata.obsm['spatial'], two numbers a spot; without it there are none to draw"
        )
    place = np.asarray(mdata.obsm["spatial"])
    if place.ndim != 2 or place.shape[1] != 2 or place.dtype.kind not in "fiu":
        shape = " x ".join(map(str, place.shape))
        raise ValueError(f"mdata.obsm['spatial'] is {shape} of {place.dtype}; it must be two numbers for each spot")
    place = place.astype(np.float64)
    if (lost := ~np.isfinite(place).all(1)).any():
        names = few(mdata.obs_names[lost])
        raise ValueError(f"{lost.sum()} spots have no place in mdata.obsm['spatial']: {names}; leave them out")
    return place


def lymph_node(files: Mapping[str, Path], n_obs: int | None = None, seed: int = 0) -> Parts:
    """Spots of two neighbouring slices of a human lymph node: `protein`, raw counts of 31 antibodies (Visium).

    `obs`: region (ten, as annotated), slice ("s1", "s2"; the batch). `obsm["spatial"]` [n_obs, 2]: right and down in
    micrometres, of each slice from the corner of its own grid; the files give row and column. `n_obs` keeps some spots
    at random. Raises ValueError for damaged files and for slices that do not belong together. Source: the data of
    SpaMosaic, see `registry.toml`. Introduced in notebook 07.
    """
    slices = {name: _slice(files[f"{name}_adata_adt.h5ad"]) for name in SLICES}
    first, *others = slices.values()
    if any(not other.modalities["protein"].var_names.equals(first.modalities["protein"].var_names) for other in others):
        raise ValueError(f"the proteins of the slices {few(SLICES)} differ; {AGAIN}")
    region = pd.concat([one.obs["final_annot"].astype(str).replace(SAME) for one in slices.values()])
    obs = pd.DataFrame({"region": pd.Categorical(region)}, index=region.index)
    obs["slice"] = pd.Categorical(np.repeat(SLICES, [len(one.obs) for one in slices.values()]))
    proteins = [one.modalities["protein"] for one in slices.values()]
    protein = part(np.concatenate([adata.X for adata in proteins]), obs.index, proteins[0].var_names)
    parts = some(Parts({"protein": protein}, obs, "lymphnode-spatial"), n_obs, seed)
    grid = np.concatenate([one.obsm["spatial"] for one in slices.values()])[obs.index.get_indexer(parts.obs.index)]
    return replace(parts, obsm={"spatial": grid[:, ::-1] * VISIUM})


def _slice(path: Path) -> Parts:
    """One slice as published, its counts dense."""
    found = tables.from_h5ad(path, modality="protein")
    if "final_annot" not in found.obs or "spatial" not in found.obsm:
        raise ValueError(f"{path} lacks the column final_annot or the coordinates obsm['spatial']; {AGAIN}")
    x = found.modalities["protein"].X
    found.modalities["protein"].X = x.toarray() if hasattr(x, "toarray") else x
    return found
