"""What one does with a fitted model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from helpers import annotation, outcomes
from helpers.batches import Batch, Samples
from helpers.links import link
from helpers.models import Model
from helpers.models.stackix import Stack
from helpers.perturbation import perturb
from helpers.priors import BASAL, parts_of
from helpers.wording import closest, few

__all__ = [
    "cluster",
    "codes",
    "decode",
    "embed",
    "impute",
    "link",
    "perturb",
    "predict_labels",
    "reconstruct",
    "sample",
    "translate",
    "uncertainty",
]


@torch.inference_mode()
def embed(
    model: Model,
    data: Samples | mudata.MuData,
    split: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
    modality: str | None = None,
) -> np.ndarray:
    """Posterior means [n_obs, n_latent] of all samples, or of one split; deterministic.

    `modality` shows the model that one alone, as for X-modalix' latent spaces; samples without it are NaN.

    `key` writes them to `data.obsm[key]`, where `data` is a MuData and no split is asked for, and the names of the
    dimensions, where the model has names for them, to `data.uns[key]["names"]`. Candidates of a mixture are averaged
    by their weights. Introduced in notebook 01.
    """
    if key is not None and (split is not None or isinstance(data, Samples)):
        raise ValueError("key= writes to a MuData's obsm and needs all of its samples: pass the MuData, without split")
    if modality is not None:
        check_known(modality, model.likelihoods, "model has")
    shown = passes(model, data, split, batch_size)
    if modality is None:
        z = torch.cat([z_of(model, batch).cpu() for batch in shown]).numpy()
    else:
        alone = ((batch.showing(modality), batch.mask[modality]) for batch in shown)
        z = torch.cat([torch.where(seen[:, None], z_of(model, b), torch.nan).cpu() for b, seen in alone]).numpy()
    if key is not None:
        data.obsm[key] = z
        data.uns.update({key: {"names": np.array(model.latent_names)}} if model.latent_names else {})
    return z


@torch.inference_mode()
def reconstruct(
    model: Model, data: Samples | mudata.MuData, split: str | None = None, batch_size: int = 4096
) -> dict[str, np.ndarray]:
    """Expected values per modality [n_obs, n_vars], decoded from posterior means, of all samples or of one split.

    Introduced in notebook 01.
    """
    means: dict[str, list[Tensor]] = {}
    for batch in passes(model, data, split, batch_size):
        depth = {m: torch.where(total > 0, total, 1e4) for m, total in batch.library.items()}
        for m, p in model.decode(z_of(model, batch), depth).items():
            means.setdefault(m, []).append(p.mean.cpu())
    return {m: torch.cat(parts).numpy() for m, parts in means.items()}


@torch.inference_mode()
def codes(model: Stack, data: Samples | mudata.MuData, split: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a stack's ground floor [n_obs, n_codes], and what its top makes of them: the published measure of how
    well Stackix reconstructs, beside `reconstruct`, which goes down to the features. Introduced in notebook 02.
    """
    given, found = [], []
    for batch in passes(model, data, split, 4096):
        below = model.codes(batch)
        q, weight = model.top.encode(below)
        decoded = model.top.decode((weight[..., None] * q.mean).sum(0))
        given.append(torch.cat([below.x[m] for m in decoded], -1).cpu())
        found.append(torch.cat([p.mean for p in decoded.values()], -1).cpu())
    return torch.cat(given).numpy(), torch.cat(found).numpy()


@torch.inference_mode()
def decode(model: Model, z: np.ndarray, library: Mapping[str, Tensor] | None = None) -> dict[str, np.ndarray]:
    """Expected values per modality [n, n_vars] at latent positions [n, n_latent]. Introduced in notebook 01."""
    model.eval()
    device = next(model.parameters()).device
    decoded = model.decode(torch.as_tensor(z, dtype=torch.float32, device=device), library)
    return {m: p.mean.cpu().numpy() for m, p in decoded.items()}


@torch.inference_mode()
def translate(
    model: Model,
    data: Samples | mudata.MuData,
    source: str,
    target: str,
    split: str | None = None,
    batch_size: int = 4096,
) -> np.ndarray:
    """What `target` would look like, from `source` alone: expected values [n_obs, n_vars of the target], decoded from
    posterior means, so that the answer is always the same. Rows of samples without `source` are NaN.

    All samples, or those of one split, on the scale the model was trained on (`prepare.inverse` leads back). Counts
    are for the observed library size of the target, 10,000 where it was not measured. `source == target` is the
    reconstruction. Works with every model that has an encoder per modality or a fusion that can miss some. Raises
    ValueError for unknown modalities. Introduced in notebook 04.
    """
    parts = [
        decoded(model, z_of(model, batch), batch, target).cpu()
        for batch in seen_from(model, data, source, target, split, batch_size)
    ]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def uncertainty(
    model: Model,
    data: Samples | mudata.MuData,
    source: str,
    target: str,
    split: str | None = None,
    draws: int = 50,
    seed: int = 0,
    batch_size: int = 1024,
) -> np.ndarray:
    """Standard deviation [n_obs, n_vars of the target] of what `translate` says, over `draws` from the posterior.

    It holds what the source leaves open in the latent space, not the noise of a measurement. NaN as in `translate`.
    Introduced in notebook 04.
    """
    if draws < 2:
        raise ValueError(f"draws is {draws}; a standard deviation needs two or more")
    noise, parts = torch.Generator(next(model.parameters()).device).manual_seed(seed), []
    for batch in seen_from(model, data, source, target, split, batch_size):
        q, weight = model.encode(batch)
        mean, squares = torch.zeros(()), torch.zeros(())
        for k in range(draws):  # running moments: only two arrays at a time
            x = decoded(model, (weight[..., None] * q.sample(noise)).sum(0), batch, target).cpu()
            off = x - mean
            mean = mean + off / (k + 1)
            squares = squares + off * (x - mean)
        parts.append((squares / (draws - 1)).sqrt())
    return torch.cat(parts).numpy()


def impute(model: Model, mdata: mudata.MuData, batch_size: int = 4096) -> mudata.MuData:
    """A copy in which every sample has every modality: measured values stay, missing ones are translated from what
    the sample has (mean of the posteriors of its modalities). Of modalities that had gaps, obs["imputed"] says which
    rows they are.

    Modalities where nothing is missing, or that the model does not know, stay as they are; where rows are filled in,
    X becomes dense, and layers and obsm of that modality are left behind. Pictures are cut to 0 … 1. A modality that
    `mdata` lacks altogether is not added: see `translate`. Raises ValueError for samples of which no modality that the
    model knows was measured. Introduced in notebook 04.
    """
    samples = Samples(mdata, next(model.parameters()).device)
    model.check_features(samples)
    known = [m for m in model.likelihoods if m in mdata.mod]
    has = np.any([mdata.obs_names.isin(mdata[m].obs_names) for m in known], axis=0)
    if not has.all():
        lost = mdata.obs_names[~has]
        raise ValueError(f"{len(lost)} samples have no modality that the model reads: {few(lost)}; leave them out")
    gaps = [m for m in known if mdata[m].n_obs < mdata.n_obs]
    parts: dict[str, list[Tensor]] = {m: [] for m in gaps}
    with torch.inference_mode():
        for batch in passes(model, samples, None, batch_size) if gaps else ():
            z = z_of(model, batch)
            for m in gaps:
                parts[m].append(decoded(model, z, batch, m).cpu())
    full = {m: completed(mdata, m, torch.cat(parts[m]).numpy()) if m in gaps else mdata[m].copy() for m in mdata.mod}
    filled = mudata.MuData(full)
    filled = filled if filled.obs_names.equals(mdata.obs_names) else filled[mdata.obs_names].copy()
    filled.obs = mdata.obs.copy()
    for key in mdata.obsm:
        if key not in mdata.mod:
            filled.obsm[key] = mdata.obsm[key]
    filled.uns.update(mdata.uns)
    return filled


def completed(mdata: mudata.MuData, modality: str, expected: np.ndarray) -> AnnData:
    """A modality with a row for every sample, `expected` [n_obs, n_vars] where there was none."""
    measured = mdata[modality]
    position = measured.obs_names.get_indexer(mdata.obs_names)
    x = measured.X.toarray() if sp.issparse(measured.X) else np.asarray(measured.X)
    expected = expected.clip(0, 1) if "image_shape" in measured.uns else expected
    values = np.where((position < 0)[:, None], expected, x[position] if len(x) else expected)
    obs = measured.obs.reindex(mdata.obs_names).assign(imputed=position < 0)
    return AnnData(values.astype(np.float32), obs=obs, var=measured.var.copy(), uns=dict(measured.uns))


def seen_from(
    model: Model, data: Samples | mudata.MuData, source: str, target: str, split: str | None, batch_size: int
) -> Iterator[Batch]:
    """Batches that show the source alone; ValueError where data or model do not know a modality."""
    samples = data if isinstance(data, Samples) else Samples(data, next(model.parameters()).device)
    check_known(source, samples.modalities, "data have")
    for name in (source, target):
        check_known(name, model.likelihoods, "model has")
    for batch in passes(model, samples, split, batch_size):
        yield batch.showing(source)


def check_known(name: str, known: Iterable[str], who: str) -> None:
    """Raise ValueError for a modality that is not there."""
    if name not in known:
        raise ValueError(f"the {who} no modality {name!r}{closest(name, known)}; there are {few(known)}")


def z_of(model: Model, batch: Batch) -> Tensor:
    """Posterior means [batch, n_latent], averaged over candidates by their weights."""
    q, weight = model.encode(batch)
    return (weight[..., None] * q.mean).sum(0)


def decoded(model: Model, z: Tensor, batch: Batch, target: str) -> Tensor:
    """Expected values of one modality; NaN where the batch shows nothing of a sample that the model knows."""
    depth = batch.library.get(target)
    library = {} if depth is None else {target: torch.where(depth > 0, depth, 1e4)}
    seen = torch.stack([seen for m, seen in batch.mask.items() if m in model.likelihoods]).any(0)
    return torch.where(seen[:, None], model.decode(z, library)[target].mean, torch.nan)


@torch.inference_mode()
def sample(model: Model, n: int, seed: int = 0, noise: bool = False) -> dict[str, np.ndarray]:
    """Data per modality [n, n_vars] for draws from the prior: expected values, or draws from the likelihood.

    Introduced in notebook 01.
    """
    model.eval()
    device = next(model.parameters()).device
    z = model.prior.sample(n, torch.Generator(device).manual_seed(seed), device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {m: (p.sample() if noise else p.mean).cpu().numpy() for m, p in model.decode(z).items()}


def cluster(
    model: Model, data: Samples | mudata.MuData, split: str | None = None, key: str | None = None
) -> np.ndarray:
    """The component of highest posterior probability, [n_obs] whole numbers from 0, of all samples or of a split.

    `key` writes them to `data.obs[key]` as categories, where `data` is a MuData and no split is asked for. The model
    needs codes of these samples (`inference.infer`); of several parts of a prior, the basal one counts. Raises
    `ValueError` where its prior has no components. Introduced in notebook 05.
    """
    parts = parts_of(model.prior)
    if not parts:
        raise ValueError("the model's prior has no components to cluster by: use models.dgd or models.scdgd")
    if key is not None and (split is not None or isinstance(data, Samples)):
        raise ValueError("key= writes to a MuData's obs and needs all of its samples: pass the MuData, without split")
    place, mixture = parts[BASAL]
    z = torch.from_numpy(embed(model, data, split)[:, place]).to(mixture.mean.device)
    with torch.no_grad():
        component = mixture.responsibilities(z).argmax(-1).cpu().numpy()
    if key is not None:
        data.obs[key] = pd.Categorical(component, categories=range(mixture.n_components))
    return component


def passes(model: Model, data: Samples | mudata.MuData, split: str | None, batch_size: int) -> Iterator[Batch]:
    """The samples of a split (None: all) in order, batch by batch, with the model in evaluation mode."""
    model.eval()
    samples = data if isinstance(data, Samples) else Samples(data, next(model.parameters()).device)
    if hasattr(model, "check_features"):
        model.check_features(samples)
    for index in rows_of(samples, split).split(batch_size):
        yield samples[index]


def rows_of(samples: Samples, split: str | None) -> Tensor:
    """Rows of a split, of all samples without one; ValueError where it has none. Introduced in notebook 05."""
    rows = torch.arange(len(samples)) if split is None else samples.rows(split)
    if not len(rows):
        known = sorted({*map(str, samples.split)})
        raise ValueError(f"no sample is in split {split!r}{closest(str(split), known)}; there are {few(known)}")
    return rows


def predict_labels(
    embeddings: Mapping[str, np.ndarray],
    data: mudata.MuData | pd.DataFrame,
    columns: Iterable[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    survival: Mapping[str, Sequence[str]] | None = None,
    learners: Iterable[str] = ("linear", "forest", "svm"),
    scored_on: str = "test",
    n_bootstrap: int = 200,
    jobs: int = 1,
    folder: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How well embeddings (method -> [n_obs, n_dimensions]) predict the annotation: a row per method × task × learner
    × metric, with `value` and its bootstrap interval `low`, `high` (`outcomes.COLUMNS`).

    The samples are those of `data` (a MuData, or its obs), in that order; learners are trained on its train split and
    scored on `scored_on`. `columns`, `kinds` and `survival` say what is predicted (`annotation.find_tasks`).
    Classification is scored by macro one-vs-one AUC and balanced accuracy, regression by R2, survival by the C-index
    of a Cox model. `jobs` processes run at a time; `folder` keeps results, so that a stopped call can go on.
    Compare with random features by `outcomes.over_random`. Raises ValueError for tasks that cannot be scored,
    unknown names and embeddings of other shapes. The paper's downstream tasks. Introduced in notebook 02.
    """
    obs = data if isinstance(data, pd.DataFrame) else data.obs
    chosen = (learners,) if isinstance(learners, str) else tuple(learners)
    settings = outcomes.Settings(chosen, scored_on, n_bootstrap, seed)
    found = annotation.find_tasks(obs, columns, kinds, survival, scored_on)
    return outcomes.score_all(embeddings, obs, found, settings, jobs, folder)
