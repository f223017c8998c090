"""What a term is made of and what it tells: features that drive it, what they say without a model, and of whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from numpy.typing import ArrayLike
from torch import Tensor

from helpers import robustness
from helpers.batches import Batch, Samples
from helpers.models import Model
from helpers.ontology import Ontology
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


def drivers(model: Model, samples: Samples, split: str = "test", steps: int = 8) -> np.ndarray:
    """`attributions` on a split with the modalities side by side: [n_terms, n_vars]. Introduced in notebook 03."""
    return np.hstack(list(attributions(model, samples, samples.rows(split), steps=steps).values()))


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


def explained(drivers: Mapping[str, ArrayLike], members: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """`agreement` of several kinds of models, each with members of its own: a row per term, kind, AUC of attribution.

    `drivers`: kind -> [n_terms, n_vars]; `members`: kind -> [n_vars, n_terms]. Introduced in notebook 03.
    """
    found = {kind: agreement(each, np.asarray(members[kind]).T) for kind, each in drivers.items()}
    return pd.DataFrame(found).melt(var_name="kind", value_name="AUC of attribution")


# ---------------------------------------------------------------- controls, and what terms tell


def first_components(samples: Samples, members: ArrayLike) -> np.ndarray:
    """The simplest rival of a learned term, the first principal component of its own features: [n_obs, n_terms].

    `members` [n_vars, n_terms], the modalities below each other, as `stacked` gives them. Components and
    centres are fitted on the train split; signs are arbitrary. Raises ValueError for a term without features.
    Introduced in notebook 03.
    """
    members = np.asarray(members) != 0
    if (n := int((~members.any(0)).sum())) > 0:
        raise ValueError(f"{n} terms have no feature, and so no component: leave them out")
    x, train = _side_by_side(samples), samples.rows("train").cpu().numpy()
    found = []
    for own in (x[:, column] for column in members.T):
        centred = own - own[train].mean(0)
        found.append(centred @ np.linalg.svd(centred[train], full_matrices=False)[2][0])
    return np.column_stack(found)


def stacked(ontology: Ontology) -> np.ndarray:
    """Which features the latent terms reach, the modalities below each other: bool [n_vars, n_terms].

    Introduced in notebook 03.
    """
    return np.vstack([ontology.reach(m) for m in ontology.features])


def shuffled(ontology: Ontology, seed: int = 0) -> Ontology:
    """The negative control: the same terms, sizes and overlaps over features drawn at random in each modality.

    Introduced in notebook 03.
    """
    rng = np.random.default_rng(seed)
    return replace(ontology, members={m: rng.permutation(mask) for m, mask in ontology.members.items()})


def reconstruction(model: Model, samples: Samples, members: ArrayLike, split: str = "test") -> np.ndarray:
    """Share of the variance of each term's own features that a model reconstructs, 1 - SSE / SST: [n_terms].

    `members` [n_vars, n_terms] as for `first_components`; a column of ones gives the share over all features.
    NaN for terms whose features do not vary there. Introduced in notebook 03.
    """
    members = np.asarray(members, float)
    x = _side_by_side(samples)[samples.rows(split).cpu().numpy()]
    batch = samples[samples.rows(split)]
    with torch.inference_mode():
        p = model.decode(_code(model, batch), batch.library)
    x_hat = np.hstack([p[m].mean.cpu().numpy() for m in samples.modalities])
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - members.T @ ((x - x_hat) ** 2).sum(0) / (members.T @ ((x - x.mean(0)) ** 2).sum(0))


def separation(z: ArrayLike, labels: Sequence, within: Sequence | None = None) -> np.ndarray:
    """AUROC with which each term tells two classes such as the sexes, whatever its sign: [..., n_terms], 0.5 to 1.

    `z` [..., n_obs, n_terms]; samples whose label is missing are left out. With groups `within` [n_obs], such as
    tissues, only samples of one group are compared: sex may go with tissue, and tissue shows on every term. NaN where
    no group has both classes. Raises ValueError unless there are two. Introduced in notebook 03.
    """
    from scipy.stats import rankdata

    z, labels = np.asarray(z, float), pd.Series(np.asarray(labels, object))
    if (n := labels.nunique()) != 2 or len(labels) != z.shape[-2]:
        raise ValueError(f"separation needs labels of two classes, found {n}, for {z.shape[-2]} samples")
    positive = (labels == labels.dropna().max()).to_numpy()
    groups = pd.Series(0 if within is None else np.asarray(within, object), labels.index)[labels.notna()]
    above, pairs = np.zeros((*z.shape[:-2], z.shape[-1])), 0
    for rows in (groups.index[places].to_numpy() for places in groups.groupby(groups).indices.values()):
        n = positive[rows].sum()
        above += (rankdata(z[..., rows, :], axis=-2) * positive[rows, None]).sum(-2) - n * (n + 1) / 2
        pairs += n * (len(rows) - n)
    share = above / pairs if pairs else np.full(above.shape, np.nan)
    return np.maximum(share, 1 - share)


def between_classes(z: ArrayLike, labels: Sequence) -> np.ndarray:
    """Share of each term's variance that lies between classes, [n_terms]; 0 on average by chance, 1 = nothing else.

    `z` [n_obs, n_terms]; samples without a label are left out. Adjusted for the number of classes (Kelley's epsilon
    squared, PNAS 21 (1935) 554), so that it may fall below 0. NaN for constant terms. Introduced in notebook 03.
    """
    table = pd.DataFrame(np.asarray(z, float))
    labels = pd.Series(np.asarray(labels, object))
    table, labels = table[labels.notna()], labels.dropna()
    inside = ((table - table.groupby(labels).transform("mean")) ** 2).sum() / (len(table) - labels.nunique())
    return (1 - inside / table.var().replace(0, np.nan)).to_numpy()


def class_means_follow(z: ArrayLike, should: ArrayLike, labels: Sequence) -> np.ndarray:
    """Pearson's r over classes between the class means of each term and what they should be: [n_terms].

    `z`, `should` [n_obs, n_terms] with the same signs; samples without a label are left out. Empty for fewer than
    three classes. Introduced in notebook 03.
    """
    labels = np.asarray(labels, object)
    ours, theirs = (pd.DataFrame(np.asarray(each, float)).groupby(labels).mean() for each in (z, should))
    return ours.corrwith(theirs).to_numpy() if len(ours) > 2 else np.empty(0)


def compare(
    activities: Mapping[str, ArrayLike], names: Sequence[str], right: ArrayLike, labels: Sequence | None = None
) -> pd.DataFrame:
    """Terms of a model and of its controls: a row per kind and term, with robustness, right, between classes.

    `activities`: kind -> [n_rep, n_obs, n_terms]; `right`: what the terms should be, [n_obs, n_terms], for
    `robustness.right_terms`; `labels` [n_obs] for `between_classes`, mean over repetitions, NaN without.
    Introduced in notebook 03.
    """
    rows = []
    for kind, each in activities.items():
        found = {
            "robustness": robustness.robustness(each),
            "right": robustness.right_terms(each, right),
            "between classes": np.nan,
        }
        if labels is not None:
            found["between classes"] = np.mean([between_classes(z, labels) for z in each], 0)
        rows.append(pd.DataFrame({"kind": kind, "term": list(names), **found}))
    return pd.concat(rows, ignore_index=True)


def yardstick(mdata: MuData, names: Sequence[str], components: ArrayLike) -> pd.DataFrame:
    """What terms should be: their planted activities where the data are simulated, else consensus first components.

    Samples x terms; `.attrs["what"]` says which. `components` [n_rep, n_obs, n_terms]: `first_components` of some
    repetitions. Introduced in notebook 03.
    """
    planted = list(mdata.uns.get("truth", {}).get("pathways", []))
    known = set(names) <= set(planted)
    z = np.nan_to_num(robustness.align(components).mean(0))
    z = mdata.obsm["truth_pathways"][:, [planted.index(name) for name in names]] if known else z
    found = pd.DataFrame(z, mdata.obs_names, list(names))
    found.attrs["what"] = "planted activity" if known else "first component"
    return found


def outcome(model: Model, samples: Samples, members: ArrayLike) -> dict[str, np.ndarray | float]:
    """What a sweep over Ontix keeps of a model: z [n_obs, n_terms] of all samples, and on the test split R² of terms
    [n_terms] and R² over all features. `members` as for `first_components`. Introduced in notebook 03.
    """
    share = reconstruction(model, samples, np.column_stack([members, np.ones(len(members))]))
    return {
        "z": _code(model, samples[torch.arange(len(samples))]).cpu().numpy(),
        "R² of terms": share[:-1],
        "R²": float(share[-1]),
    }


def _side_by_side(samples: Samples) -> np.ndarray:
    """All samples and modalities as one matrix [n_obs, n_vars]."""
    return torch.cat(list(samples[torch.arange(len(samples))].x.values()), 1).cpu().numpy()


@torch.inference_mode()
def _code(model: Model, batch: Batch) -> Tensor:
    """Posterior means [batch, n_latent]."""
    q, weight = model.eval().encode(batch)
    return (weight[..., None] * q.mean).sum(0)


def _n_latent(model: Model, batch: Batch) -> int:
    return _code(model, batch).shape[-1]


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
