"""Data sets that come with installed libraries, and those put together from others: omics beside pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import simulate, sources
from helpers.checks import Parts, part, parts_of
from helpers.pictures import Size, resized

PAM50 = ("LumA", "LumB", "Basal", "Her2", "Normal")  # from the most to the least frequent in TCGA


def digits() -> Parts:
    """scikit-learn's handwritten digits: `image`, 1,797 x 8 x 8 grey values in 0..1; obs: digit.

    Introduced in notebook 04.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    names = [f"digit{i:04d}" for i in range(len(bunch.data))]
    obs = pd.DataFrame({"digit": pd.Categorical(bunch.target.astype(str))}, index=names)
    image = part(bunch.data / 16, names, bunch.feature_names, image_shape=np.array([8, 8, 1]))
    return Parts({"image": image}, obs, "digits")


def bulk_digits(n_obs: int = 1000, size: Size = 32, seed: int = 0) -> Parts:
    """Simulated tumours of five types (`rna` of `simulate.bulk`) and real pictures of the digits 0 to 4 (`image`).

    `obs["cancer_type"]` is known for all; see `with_digits`. The synthetic setting of AUTOENCODIX.
    Introduced in notebook 04.
    """
    tumours = parts_of(simulate.bulk(n_obs=n_obs, n_types=5, seed=seed))
    tumours = replace(tumours, modalities={"rna": tumours.modalities["rna"]}, obsm={}, uns={})  # truth of tumours only
    return with_digits(tumours, "cancer_type", digits(), size)


def brca_mnist(files: Mapping[str, Path], size: Size | None = None, clip: float = 5.0) -> Parts:
    """Breast cancers with a PAM50 class (`rna` and `cnv` of `sources.tcga_brca`) and MNIST's digits 0 to 4 (`image`).

    `obs["pam50"]` is known for all; see `with_digits`. The setting of AUTOENCODIX with real tumours.
    Introduced in notebook 04.
    """
    tables = {name: path for name, path in files.items() if name.endswith((".zip", ".tsv"))}
    cohort = sources.tcga_brca(tables, clip)
    obs = cohort.obs[cohort.obs["pam50"].isin(PAM50)].copy()
    obs["pam50"] = obs["pam50"].cat.set_categories(PAM50)
    omics = {name: cohort.modalities[name][obs.index].copy() for name in ("rna", "cnv")}
    return with_digits(replace(cohort, modalities=omics, obs=obs), "pam50", sources.mnist(files), size)


def with_digits(parts: Parts, key: str, pictures: Parts, size: Size | None = None) -> Parts:
    """`parts` and, as samples of their own, the pictures of digit k for the k-th category of `parts.obs[key]`.

    No sample is in both (`unpaired`): only the class ties them. `key` is filled in for pictures, everything else of
    obs is missing for them, and digit is missing for the samples of `parts`. `size` resizes the pictures.
    Introduced in notebook 04.
    """
    classes = parts.obs[key].cat.categories
    number = pictures.obs["digit"].astype(int)
    number = number[number < len(classes)]
    image = resized(pictures.modalities["image"][number.index].copy(), size)
    names = parts.obs.index.append(number.index)
    obs = parts.obs.reindex(names)
    obs.loc[number.index, key] = classes[number]
    obs["digit"] = pd.Categorical(number.astype(str).reindex(names))
    return replace(parts, modalities={**parts.modalities, "image": image}, obs=obs, unpaired=True)


def pbmc68k_reduced() -> Parts:
    """scanpy's 700 blood cells x 765 genes, log-normalised and scaled as they ship; obs as published.

    Introduced in notebook 01.
    """
    import importlib.util
    import warnings

    import anndata

    scanpy = importlib.util.find_spec("scanpy").origin  # found, not imported: that would cost seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the old AnnData format of the file
        cells = anndata.read_h5ad(Path(scanpy).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    return Parts({"rna": part(cells.X, cells.obs_names, cells.var)}, cells.obs, "pbmc68k-reduced")
