"""Published ways to one map of several modalities and batches, beside our own models: one call each, one interface.

Every method is `method(mdata, batch_key, n_latent=20, seed=0, ...) -> np.ndarray [n_obs, n_latent]`, with NaN in the
rows of samples that it cannot embed because they lack a modality. All are unsupervised embeddings of all samples given:
they are fitted on those samples, whatever their split, and never see a label. Give them the raw data: linear methods
take `views.inputs`, methods for counts take X itself. Prepared data do as well where no method asks for counts.

`METHODS` has them by name and `run` runs several. What is not installed, does not suit the data or fails is named in
`Runs.skipped`. Introduced in notebook 07.
"""

from __future__ import annotations

import importlib.util
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData

from helpers.foreign import INSTALL, isolated
from helpers.splits import check_unique
from helpers.views import (
    GENES,
    PEAKS,
    PROTEINS,
    Unsuited,
    batch_of,
    called,
    chosen,
    counts_of,
    inputs,
    kind_of,
    measured,
    modality_of,
    placed,
    two_batches,
)
from helpers.wording import closest, few


@dataclass(frozen=True)
class Method:
    """One way to integrate. Introduced in notebook 07."""

    run: Callable[..., np.ndarray]  # (mdata, batch_key, n_latent=, seed=, ...) -> [n_obs, n_latent]
    needs: str  # of the data, in words; `run` raises `Unsuited` where they do not have it
    package: str = ""  # to import; not all come with the workbook

    def on(self, **options: object) -> Method:
        """The same method with options of its own set: `METHODS["PCA"].on(modality="protein")`."""
        return replace(self, run=partial(self.run, **options))

    @property
    def command(self) -> str:
        """What installs the package, to be typed in a shell."""
        return INSTALL.get(self.package, "")

    @property
    def is_installed(self) -> bool:
        """Whether the package can be found (nothing is imported)."""
        return not self.package or importlib.util.find_spec(self.package) is not None


@dataclass
class Runs:
    """What `run` gives. Introduced in notebook 07."""

    embeddings: dict[str, np.ndarray] = field(default_factory=dict)  # method -> [n_obs, n_latent], rows may be NaN
    seconds: dict[str, float] = field(default_factory=dict)  # method -> wall time
    skipped: pd.DataFrame = field(default_factory=pd.DataFrame)  # method, status, reason, command


# ---------------------------------------------------------------- linear methods


def pca(mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0, modality: str | None = None) -> np.ndarray:
    """Principal components of one modality's `inputs` (by default of genes, else the first): [n_obs, n_latent].

    Knows nothing of batches. Raises `Unsuited` for more components than samples or features. Introduced in notebook 07.
    """
    return _components(inputs(mdata, [chosen(mdata, modality)]), n_latent, seed)


def concatenated_pca(mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0) -> np.ndarray:
    """Principal components of all modalities' `inputs` side by side, each divided by the root of its number of
    features, so that each has a total variance of one: [n_obs, n_latent]. For samples that have all modalities.

    Raises `Unsuited` with one modality, without such samples, and as `pca`. Introduced in notebook 07.
    """
    if len(mdata.mod) < 2:
        raise Unsuited(f"concatenated PCA needs two modalities, and there is only {few(mdata.mod)}")
    return _components(inputs(mdata), n_latent, seed)


def harmony(
    mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0, modality: str | None = None
) -> np.ndarray:
    """Harmony on `concatenated_pca`, or on `pca` of one modality where it is named or there is only one.

    Raises `Unsuited` where the samples it can take are of one batch, and as these. Source: Korsunsky et al. 2019,
    harmonypy with its defaults. Introduced in notebook 07.
    """
    whole = modality is None and len(mdata.mod) > 1
    z = (concatenated_pca if whole else partial(pca, modality=modality))(mdata, batch_key, n_latent, seed)
    rows = np.isfinite(z).all(axis=1)
    batch = batch_of(mdata, batch_key)[rows]
    two_batches(batch, batch_key, "Harmony")
    clusters = int(np.clip(round(rows.sum() / 30), 2, 100))  # its own rule, which comes to none for few samples
    with isolated(seed, "harmonypy"):
        import harmonypy

        options = {"nclust": clusters, "random_state": seed, "verbose": False, "ncores": torch.get_num_threads()}
        corrected = harmonypy.run_harmony(z[rows], {"batch": batch}, ["batch"], **options).Z_corr
    return placed(np.asarray(corrected).reshape(rows.sum(), -1), rows, mdata.n_obs)


def scanorama(
    mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0, modality: str | None = None
) -> np.ndarray:
    """Scanorama on one modality (by default genes, else the first): counts normalised but not standardised.

    Raises `Unsuited` for one batch and for more dimensions than samples or features. Source: Hie, Bryson and Berger
    2019, with its defaults. Introduced in notebook 07.
    """
    name = chosen(mdata, modality)
    x = inputs(mdata, [name], standardise=False)[name]
    rows = np.flatnonzero(np.isfinite(x).all(axis=1))
    _check_size(n_latent, len(rows), x.shape[1])
    batch = batch_of(mdata, batch_key)[rows]
    two_batches(batch, batch_key, "Scanorama")
    parts = [rows[batch == label] for label in np.unique(batch)]
    with isolated(seed, "scanorama"):
        from scanorama import integrate

        genes = [np.arange(x.shape[1]).astype(str)] * len(parts)
        fewest = min(map(len, parts))  # it cannot look for more neighbours than a batch has
        given = [sp.csr_matrix(x[part]) for part in parts]
        z, _ = integrate(given, genes, dimred=n_latent, knn=min(20, fewest), seed=seed, verbose=0)
    return placed(np.vstack(z), np.concatenate(parts), mdata.n_obs)


def mofa(
    mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0, groups: bool = False, iterations: int = 1000
) -> np.ndarray:
    """Factors of MOFA+ with Gaussian likelihoods on `inputs`: [n_obs, n_latent]. Samples may lack modalities.

    Factors that it finds no use for stay, near zero. `groups`: batches as its groups, each centred by itself and with
    its own sparsity of factors. Raises `Unsuited` for more factors than samples or features. Source: Argelaguet et al.
    2020, mofapy2 with its defaults. Introduced in notebook 07.
    """
    x = inputs(mdata)
    seen = np.any([np.isfinite(values).all(axis=1) for values in x.values()], axis=0)
    _check_size(n_latent, seen.sum(), sum(values.shape[1] for values in x.values()))
    batch = batch_of(mdata, batch_key) if groups else np.full(mdata.n_obs, "all")
    parts = [np.flatnonzero(seen & (batch == label)) for label in np.unique(batch[seen])]
    with isolated(seed, "mofapy2"):
        from mofapy2.run.entry_point import entry_point

        work = entry_point()
        work.set_data_options()
        data = [[values[part].astype(np.float64) for part in parts] for values in x.values()]
        work.set_data_matrix(data, likelihoods=["gaussian"] * len(x), views_names=list(x))
        work.set_model_options(factors=n_latent, ard_factors=groups, ard_weights=True)
        work.set_train_options(iter=iterations, seed=seed, quiet=True)
        work.build()
        work.run()
        z = np.asarray(work.model.getNodes()["Z"].getExpectation())
    return placed(z, np.concatenate(parts), mdata.n_obs)


def _components(x: Mapping[str, np.ndarray], n_latent: int, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    weighed = np.hstack([values / np.sqrt(max(1, values.shape[1])) for values in x.values()])
    rows = np.isfinite(weighed).all(axis=1)
    if not rows.any():
        raise Unsuited(f"no sample has all of {few(x)}")
    _check_size(n_latent, rows.sum(), weighed.shape[1])
    return placed(PCA(n_latent, random_state=seed).fit_transform(weighed[rows]), rows, len(rows))


def _check_size(n_latent: int, n_obs: int, n_vars: int) -> None:
    if n_latent > min(n_obs, n_vars):
        raise Unsuited(f"n_latent={n_latent} is more than {n_obs} samples with {n_vars} varying features allow")


# ---------------------------------------------------------------- methods for counts (scvi-tools)


def scvi(
    mdata: MuData,
    batch_key: str,
    n_latent: int = 20,
    seed: int = 0,
    modality: str | None = None,
    epochs: int | None = None,
) -> np.ndarray:
    """Latent means of scVI on the counts of one modality (by default of genes): [n_obs, n_latent].

    `epochs` None is its own rule. Raises `Unsuited` without such counts or where a sample has none.
    Source: Lopez et al. 2018, scvi-tools with its defaults. Introduced in notebook 07.
    """
    name = _wanted(mdata, modality, GENES, "scVI", "genes")
    return _variational("SCVI", mdata, batch_key, measured(mdata, name), {"": name}, n_latent, seed, epochs)


def totalvi(
    mdata: MuData,
    batch_key: str,
    n_latent: int = 20,
    seed: int = 0,
    genes: str | None = None,
    proteins: str | None = None,
    epochs: int | None = None,
) -> np.ndarray:
    """Latent means of totalVI on counts of genes and proteins: [n_obs, n_latent].

    For samples with genes that have proteins too, or whose whole batch has none (it then takes them as missing).
    Raises `Unsuited` without both kinds of counts. Source: Gayoso et al. 2021, scvi-tools with its defaults.
    Introduced in notebook 07.
    """
    rna = _wanted(mdata, genes, GENES, "totalVI", "genes")
    protein = _wanted(mdata, proteins, PROTEINS, "totalVI", "proteins")
    batch, has = batch_of(mdata, batch_key), measured(mdata, protein)
    rows = measured(mdata, rna) & (has | ~np.isin(batch, np.unique(batch[has])))
    layers = {"rna_layer": rna, "protein_layer": protein}
    return _variational("TOTALVI", mdata, batch_key, rows, layers, n_latent, seed, epochs)


def multivi(
    mdata: MuData,
    batch_key: str,
    n_latent: int = 20,
    seed: int = 0,
    genes: str | None = None,
    peaks: str | None = None,
    epochs: int | None = None,
) -> np.ndarray:
    """Latent means of MultiVI on counts of genes and peaks, of all samples with either: [n_obs, n_latent].

    Raises `Unsuited` without both. Source: Ashuach et al. 2023, scvi-tools, its defaults. Introduced in notebook 07.
    """
    rna, atac = _wanted(mdata, genes, GENES, "MultiVI", "genes"), _wanted(mdata, peaks, PEAKS, "MultiVI", "peaks")
    rows, layers = measured(mdata, rna) | measured(mdata, atac), {"rna_layer": rna, "atac_layer": atac}
    return _variational("MULTIVI", mdata, batch_key, rows, layers, n_latent, seed, epochs)


def _wanted(mdata: MuData, given: str | None, names: Iterable[str], method: str, what: str) -> str:
    """The modality of counts that a method asks for: the one given, else the first that is called so."""
    name = given or called(mdata, names)
    if name is None:
        raise Unsuited(f"{method} needs counts of {what}, and no modality is called so: there are {few(mdata.mod)}")
    kind = kind_of(mdata, name)
    if kind not in ("counts", "binary"):
        raise Unsuited(f"{method} needs counts of {what}, and '{name}' holds {kind} values; give the raw data")
    return name


def _variational(
    model: str,
    mdata: MuData,
    batch_key: str,
    rows: np.ndarray,
    layers: Mapping[str, str],
    n_latent: int,
    seed: int,
    epochs: int | None,
) -> np.ndarray:
    """Latent means of a model of scvi-tools for the samples in `rows` [n_obs]; `layers`: its word -> modality."""
    data = _aligned(mdata, rows, layers.values(), pd.Categorical(batch_of(mdata, batch_key)[rows]))
    if "protein_layer" in layers:
        data[layers["protein_layer"]].X = data[layers["protein_layer"]].X.toarray()  # totalVI reads these dense only
    with isolated(seed, "scvi"):
        from scvi import model as models
        from scvi import settings

        settings.seed = seed
        make = getattr(models, model)
        if len(layers) > 1:
            make.setup_mudata(data, batch_key="batch", modalities=dict(layers))
        else:
            ((_, data),) = data.mod.items()
            make.setup_anndata(data, batch_key="batch")
        made = make(data, n_latent=n_latent)
        device = "gpu" if torch.cuda.is_available() else "cpu"  # some of its layers are wrong or missing on MPS
        limit = {} if epochs is None else {"max_epochs": epochs}
        made.train(accelerator=device, enable_progress_bar=False, **limit)
        z = np.asarray(made.get_latent_representation())
    return placed(z, rows, mdata.n_obs)


def _aligned(mdata: MuData, rows: np.ndarray, names: Iterable[str], batch: pd.Categorical) -> MuData:
    """Raw counts of modalities for the samples in `rows` [n_obs], zeros where one lacks a modality."""
    obs_names, parts = mdata.obs_names[rows], {}
    obs = pd.DataFrame({"batch": batch}, index=obs_names)
    for name in names:
        adata = modality_of(mdata, name)
        at = adata.obs_names.get_indexer(obs_names)
        x = sp.vstack([counts_of(adata, name), sp.csr_matrix((1, adata.n_vars), dtype=np.float32)], "csr")[at]
        parts[name] = AnnData(x, obs=obs, var=pd.DataFrame(index=adata.var_names))
    total = sum(np.asarray(part.X.sum(axis=1)).ravel() for part in parts.values())
    if (total == 0).any():
        raise Unsuited(f"{(total == 0).sum()} samples have no counts: {few(obs_names[total == 0])}; leave them out")
    data = MuData(parts)
    data.obs = obs.copy()
    return data


# ---------------------------------------------------------------- several at once

METHODS: Mapping[str, Method] = {
    "PCA": Method(pca, "one modality"),
    "concatenated PCA": Method(concatenated_pca, "two modalities"),
    "Harmony": Method(harmony, "two batches", "harmonypy"),
    "Scanorama": Method(scanorama, "two batches", "scanorama"),
    "MOFA+": Method(mofa, "one modality", "mofapy2"),
    "scVI": Method(scvi, "counts of genes", "scvi"),
    "totalVI": Method(totalvi, "counts of genes and proteins", "scvi"),
    "MultiVI": Method(multivi, "counts of genes and peaks", "scvi"),
}


def run(
    methods: Sequence[str] | Mapping[str, Method],
    mdata: MuData,
    batch_key: str,
    n_latent: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Runs:
    """Embeddings of `mdata` by several methods, and what became of those that gave none.

    `methods`: names out of `METHODS`, or methods by names of one's own, for options:
    `METHODS | {"Harmony, rna": METHODS["Harmony"].on(modality="rna")}`. All get the same samples, which they see whole
    and without labels (see above).

    `Runs.embeddings`: name -> [n_obs, n_latent] float32, NaN in the rows that a method cannot embed; `seconds` of each;
    `skipped`: method, status ("skipped": not installed, or not for such data; "failed"), reason and the command that
    installs it. A method never prints, warns, or changes the random state. Deterministic given `seed`.
    Raises `ValueError` for unknown or repeated methods, repeated samples, a batch column that is not there or has gaps,
    and `n_latent` that is not a whole number from 1 to n_obs - 1. Introduced in notebook 07.
    """
    from tqdm.auto import tqdm

    asked, runs, lost = _asked(methods), Runs(), []
    check_unique(mdata.obs_names, "the data", "sample")
    batch_of(mdata, batch_key)
    if not isinstance(n_latent, int | np.integer) or not 1 <= n_latent < mdata.n_obs:
        raise ValueError(f"n_latent={n_latent!r} must be a whole number from 1 to n_obs - 1, here {mdata.n_obs - 1}")
    for name, method in (bar := tqdm(asked.items(), "integration", disable=not progress)):
        bar.set_postfix_str(name)
        began = time.perf_counter()
        try:
            runs.embeddings[name] = _embedding(method, mdata, batch_key, n_latent, seed)
            runs.seconds[name] = time.perf_counter() - began
        except Exception as error:  # one method's trouble must not cost the others' results
            lost.append(_reason(name, method, error))
    runs.skipped = pd.DataFrame(lost, columns=["method", "status", "reason", "command"])
    return runs


def _asked(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        return dict(methods)
    names = [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        if name not in METHODS:
            raise ValueError(f"there is no method '{name}'{closest(name, METHODS)}; there are {', '.join(METHODS)}")
        if names.count(name) > 1:
            raise ValueError(f"method '{name}' is named more than once; for a second run give it a name: see `run`")
    return {name: METHODS[name] for name in names}


def _embedding(method: Method, mdata: MuData, batch_key: str, n_latent: int, seed: int) -> np.ndarray:
    if not method.is_installed:
        raise ModuleNotFoundError(f"{method.package} is not installed", name=method.package)
    z = np.asarray(method.run(mdata, batch_key, n_latent=n_latent, seed=seed), dtype=np.float32)
    if z.shape != (mdata.n_obs, n_latent):
        raise RuntimeError(f"its embedding has shape {list(z.shape)}, not [{mdata.n_obs}, {n_latent}]")
    broken = ~np.isfinite(z).all(axis=1) & ~np.isnan(z).all(axis=1)
    if broken.any() or np.isnan(z).all():
        raise RuntimeError(f"its embedding has no finite values for {few(mdata.obs_names[broken | np.isnan(z[:, 0])])}")
    return z


def _reason(name: str, method: Method, error: Exception) -> dict[str, str]:
    missing = isinstance(error, ModuleNotFoundError) and not method.is_installed
    status = "skipped" if missing or isinstance(error, Unsuited) else "failed"
    said = textwrap.shorten(str(error), 300, placeholder=" ...")
    reason = said if status == "skipped" else f"{type(error).__name__}: {said}"
    return {"method": name, "status": status, "reason": reason, "command": method.command if missing else ""}
