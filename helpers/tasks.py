"""What one does with a fitted model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import annotation, outcomes
from helpers.batches import Batch, Samples
from helpers.models import Model
from helpers.models.stackix import Stack


@torch.inference_mode()
def embed(
    model: Model,
    data: Samples | mudata.MuData,
    split: str | None = None,
    key: str | None = None,
    batch_size: int = 4096,
) -> np.ndarray:
    """Posterior means [n_obs, n_latent] of all samples, or of one split; deterministic.

    `key` writes them to `data.obsm[key]`, where `data` is a MuData and no split is asked for, and the names of the
    dimensions, where the model has names for them, to `data.uns[key]["names"]`. Candidates of a mixture are averaged
    by their weights. Introduced in notebook 01.
    """
    if key is not None and (split is not None or isinstance(data, Samples)):
        raise ValueError("key= writes to a MuData's obsm and needs all of its samples: pass the MuData, without split")
    means = []
    for batch in passes(model, data, split, batch_size):
        q, weight = model.encode(batch)
        means.append((weight[..., None] * q.mean).sum(0).cpu())
    z = torch.cat(means).numpy()
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
        q, weight = model.encode(batch)
        for m, p in model.decode((weight[..., None] * q.mean).sum(0), batch.library).items():
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


def passes(model: Model, data: Samples | mudata.MuData, split: str | None, batch_size: int) -> Iterator[Batch]:
    """The samples of a split (None: all) in order, batch by batch, with the model in evaluation mode."""
    model.eval()
    samples = data if isinstance(data, Samples) else Samples(data, next(model.parameters()).device)
    rows = torch.arange(len(samples)) if split is None else samples.rows(split)
    for index in rows.split(batch_size):
        yield samples[index]


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
