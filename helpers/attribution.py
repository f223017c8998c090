"""What a latent dimension is made of: which input features drive it, and whether they are the ones of its term."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from helpers.batches import Batch, Samples
from helpers.models import Model
from helpers.wording import few


def integrated_gradients(
    model: Model, batch: Batch, term: int, steps: int = 32, baseline: Mapping[str, ArrayLike] | None = None
) -> dict[str, Tensor]:
    """What each feature adds to the mean of one latent dimension: modality -> [batch, n_vars], in units of z.

    Integrated gradients on the straight line from `baseline` (modality -> [n_vars]; zeros unless given, the train mean
    of standardised data) to the sample. Their sum over all features is f(x) - f(baseline) up to the error of `steps`
    points of integration. An unmeasured modality gets zeros. Source: Sundararajan, Taly and Yan, ICML 2017.
    Introduced in notebook 03.
    """
    from captum.attr import IntegratedGradients

    model.eval()
    forward, extra = _from_tensors(model, batch)
    start = {m: torch.zeros_like(x[0]) for m, x in batch.x.items()}
    start |= {
        m: torch.as_tensor(v, dtype=x.dtype, device=x.device) for m, v in (baseline or {}).items() for x in [batch.x[m]]
    }
    starts = tuple(torch.where(batch.mask[m][:, None], start[m], x) for m, x in batch.x.items())
    given = {"baselines": starts, "target": term, "additional_forward_args": extra, "n_steps": steps}
    return dict(zip(batch.x, IntegratedGradients(forward).attribute(tuple(batch.x.values()), **given), strict=True))


def attributions(
    model: Model,
    samples: Samples,
    rows: Tensor,
    terms: Sequence[int] | None = None,
    steps: int = 32,
    baseline: Mapping[str, ArrayLike] | None = None,
    batch_size: int = 256,
) -> dict[str, np.ndarray]:
    """Mean |attribution| of every feature to every term: modality -> [n_terms, n_vars], in units of z.

    The mean runs over those of `rows` (for example `samples.rows("test")`) in which the modality was measured. `terms`
    are latent dimensions, all unless given. Leaves the model in evaluation mode. `steps`, `baseline` and source as in
    `integrated_gradients`. Raises ValueError for no rows or unknown modalities. Introduced in notebook 03.
    """
    if len(rows) == 0:
        raise ValueError("attributions need at least one sample, and rows is empty: check obs['split']")
    if unknown := set(baseline or {}) - set(samples.modalities):
        raise ValueError(f"baseline names {few(sorted(unknown))}; the modalities are {few(samples.modalities)}")
    terms = range(_n_latent(model.eval(), samples[rows[:1]])) if terms is None else terms
    sums = {m: np.zeros((len(terms), n)) for m, n in samples.n_vars.items()}
    counts = dict.fromkeys(sums, 0)
    for batch in (samples[index] for index in rows.split(batch_size)):
        counts = {m: n + int(batch.mask[m].sum()) for m, n in counts.items()}
        for i, term in enumerate(terms):
            for m, part in integrated_gradients(model, batch, term, steps, baseline).items():
                sums[m][i] += part.abs().sum(0).double().cpu().numpy()
    return {m: total / max(counts[m], 1) for m, total in sums.items()}


def agreement(attribution: ArrayLike, membership: ArrayLike) -> np.ndarray:
    """Do the features that drive a term belong to it? AUROC of membership by attribution, per term: [n_terms].

    Both [n_terms, n_vars] of one modality, for example `ontology.reach("rna").T`; 0.5 = chance, 1 = all members above
    all others, ties count half. NaN where a term has all features or none. Raises ValueError where shapes differ.
    Introduced in notebook 03.
    """
    from scipy.stats import rankdata

    attribution = np.asarray(attribution, float)
    member = np.asarray(membership) != 0
    if member.shape != attribution.shape or member.ndim != 2:
        shapes = f"{attribution.shape} and membership {member.shape}"
        raise ValueError(f"attribution has shape {shapes}; both must be [n_terms, n_vars] of one modality")
    n = member.sum(1)
    ranks = (rankdata(attribution, axis=1) * member).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - n * (n + 1) / 2) / (n * (member.shape[1] - n))


def _n_latent(model: Model, batch: Batch) -> int:
    with torch.no_grad():
        return model.encode(batch)[0].mean.shape[-1]


def _from_tensors(model: Model, batch: Batch) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """What captum calls: (x per modality, all else of the batch) -> means [batch, n_latent], and that "all else".

    Captum repeats every tensor once per point of integration, so masks and the like must be arguments.
    """
    parts = {"mask": batch.mask, "library": batch.library, "covariates": batch.covariates}
    keys = [(part, name) for part, values in parts.items() for name in values]

    def forward(*tensors: Tensor) -> Tensor:
        x, rest, index = tensors[: len(batch.x)], tensors[len(batch.x) : -1], tensors[-1]
        fields: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for (part, name), value in zip(keys, rest, strict=True):
            fields[part][name] = value
        q, weight = model.encode(Batch(x=dict(zip(batch.x, x, strict=True)), index=index, **fields))
        return (weight[..., None] * q.mean).sum(0)

    return forward, (*(parts[part][name] for part, name in keys), batch.index)
