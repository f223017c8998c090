"""Small data that several tests share."""

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

md.set_options(pull_on_update=False)
torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other


def build(matrices: dict, split=(0.7, 0.15), kinds=None, names=None, seed=0) -> md.MuData:
    """A MuData from matrices; `names` gives each modality's samples where they differ."""
    mods = {}
    for m, x in matrices.items():
        obs = (names or {}).get(m, [f"s{i}" for i in range(x.shape[0])])
        var = pd.DataFrame(index=[f"{m}{j}" for j in range(x.shape[1])])
        mods[m] = ad.AnnData(x.astype(np.float32), obs=pd.DataFrame(index=obs), var=var)
    mdata = md.MuData(mods)
    kinds = kinds or {m: "continuous" for m in matrices}
    mdata.uns["dataset"] = {
        "name": "test",
        "sha256": "",
        "label_key": "",
        "batch_key": "",
        "modalities": kinds,
    }
    u = np.random.default_rng(seed).random(mdata.n_obs)
    labels = np.where(u < split[0], "train", np.where(u < sum(split), "valid", "test"))
    mdata.obs["split"] = pd.Categorical(labels, ["train", "valid", "test"])
    return mdata


@pytest.fixture
def two_modalities() -> md.MuData:
    """200 samples of a three-dimensional signal seen through two dense modalities of 30 and 20 features."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 3))
    x = {
        m: z @ rng.normal(size=(3, n)) + 0.1 * rng.normal(size=(200, n)) for m, n in {"rna": 30, "protein": 20}.items()
    }
    return build(x)


@pytest.fixture
def counts() -> md.MuData:
    """150 cells × 40 genes of overdispersed counts in CSR."""
    rng = np.random.default_rng(1)
    mean = rng.gamma(1.0, 2.0, size=40) * rng.lognormal(0, 0.3, size=(150, 1))
    x = rng.poisson(rng.gamma(2.0, mean / 2.0))
    return build({"rna": sp.csr_matrix(x)}, kinds={"rna": "counts"})
