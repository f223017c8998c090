"""Questions to a decoder: silence a gene and watch the other features, or ask which features answer to which gene.

Effects are perturbed − original: below zero, the feature falls with the change. The model must hold codes of the data,
from training or from `inference.infer`; any model with a latent space will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mudata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers.batches import Batch, Samples
from helpers.models import Model
from helpers.priors import BASAL, parts_of
from helpers.wording import closest, few

CHANGES = {"silence": 0.0, "activate": 2.0}  # as multiples of the expected value
HALVINGS = 6  # of a step that leads away from its aim


@dataclass(frozen=True)
class Wanted:
    """What a step should bring about in a batch of cells. Introduced in notebook 06."""

    modality: str
    columns: Tensor  # [k] features of the modality to be changed
    count: Tensor  # [batch, k] values to reach, for the library of the cell
    response: Tensor  # [batch, k] the same as log expected values (`response`); −inf for silence
    library: dict[str, Tensor]  # modality -> [batch, 1]
    covariance: Tensor  # [batch, d, d] of codes among cells like this one
    place: slice  # the d dimensions of the code that may move


Step = Callable[[Model, Tensor, Wanted], Tensor]  # model, codes [batch, n_latent], what is wanted -> new codes


# --- what the decoder says of a code -------------------------------------------------------------------------------


def response(p: Distribution) -> Tensor:
    """Log expected values, or the expected values themselves where they can be negative. Introduced in notebook 06."""
    if hasattr(p, "log_mean"):
        return p.log_mean
    return p.mean.clamp(min=1e-12).log() if positive(p) else p.mean


def positive(p: Distribution | type[Distribution]) -> bool:
    """Whether no value of this distribution is below zero."""
    return getattr(p.support, "lower_bound", None) == 0


def jacobian(model: Model, z: Tensor, modality: str, directions: Tensor | None = None) -> Tensor:
    """Derivatives of log expected values (`response`) with respect to the code, [batch, n_vars, n_directions].

    z [batch, n_latent]; `directions` [n_directions, n_latent], the latent axes unless given. One forward derivative per
    direction serves all features, hence all genes at once. Introduced in notebook 06.
    """
    return jacobians(model, z, [modality], directions)[modality]


def jacobians(
    model: Model, z: Tensor, modalities: Sequence[str], directions: Tensor | None = None
) -> dict[str, Tensor]:
    """`jacobian` of several modalities, whose decoders are passed once where they share one."""
    only = modalities[0] if len(set(modalities)) == 1 else None

    def responses(codes: Tensor) -> dict[str, Tensor]:
        found = model.decode(codes, only=only)
        return {m: response(found[m]) for m in modalities}

    def along(way: Tensor) -> dict[str, Tensor]:
        return torch.func.jvp(responses, (z,), (way.expand_as(z),))[1]

    ways = torch.eye(z.shape[1]).to(z) if directions is None else directions.to(z)
    return {m: each.detach() for m, each in torch.func.vmap(along, out_dims=-1)(ways).items()}


@torch.no_grad()
def expected(model: Model, z: Tensor, modality: str) -> Tensor:
    """Expected values [batch, n_vars]; of counts, their shares of a cell's total."""
    return model.decode(z, {modality: torch.ones_like(z[:, :1])}, only=modality)[modality].mean


# --- steps ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gradient_step(model: Model, z: Tensor, wanted: Wanted, reach: float = 1.0, ridge: float = 0.01) -> Tensor:
    """The most probable code among cells like this one in which the genes are expressed as wanted; codes, moved.

    Of all steps δ that change the log expected values of the genes by Δ, as the Jacobian J [k, d] has it, the one of
    least δᵀ S⁻¹ δ: δ = S Jᵀ (J S Jᵀ + ridge)⁻¹ Δ, which is also the mean of N(0, S) given J δ = Δ. S is the covariance
    of codes among cells of the same kind, so that the step follows what varies there and its size does not depend on
    how the latent space is scaled. `ridge` (nats²) keeps genes that codes hardly move from moving codes far.

    A decoder is bent, so one step changes a gene by at most `reach` (nats: 1 is a factor of e), more steps go on, and a
    step that leads away from the aim is halved, or not taken. Introduced in notebook 06.
    """
    slopes, now = gradients(model, z, wanted)
    shift = (wanted.response - now).clamp(-reach, reach)  # [batch, k]
    gain = wanted.covariance @ slopes.mT  # [batch, d, k]
    spread = slopes @ gain + ridge * torch.eye(slopes.shape[1]).to(z)
    move = (gain @ torch.linalg.solve(spread, shift[..., None]))[..., 0]  # [batch, d]
    for k in range(HALVINGS + 1):
        moved = placed(z, z[:, wanted.place] + move, wanted.place)
        reached = response(model.decode(moved, only=wanted.modality)[wanted.modality])[:, wanted.columns]
        off = (reached - now - shift).norm(dim=1) > shift.norm(dim=1)
        if not bool(off.any()):
            break
        move = torch.where(off[:, None], (0.5 if k < HALVINGS else 0.0) * move, move)
    return placed(z, z[:, wanted.place] + move, wanted.place)


def published_step(model: Model, z: Tensor, wanted: Wanted, lr: float = 0.01) -> Tensor:
    """One step of a fresh Adam on −log p of the genes' wanted counts, and of nothing else (gene2peak); codes, moved.

    A first step of Adam is −`lr` · sign of the gradient: of the same length in every dimension, for every cell and
    gene. Sizes therefore do not compare between genes, and it goes along a corner of a cube, not along the gradient.
    Source: multiDGD 0.0.1, betas (0.5, 0.7) and a weight decay of 10⁻⁴. Introduced in notebook 06.
    """
    moving = z[:, wanted.place].detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([moving], lr=lr, betas=(0.5, 0.7), weight_decay=1e-4)
    with torch.enable_grad():
        p = model.decode(placed(z, moving, wanted.place), wanted.library, only=wanted.modality)[wanted.modality]
        value = p.mean.detach().clone()
        value[:, wanted.columns] = wanted.count
        (-p.log_prob(value)[:, wanted.columns]).sum().backward(inputs=[moving])
    optimiser.step()
    return placed(z, moving.detach(), wanted.place)


def placed(z: Tensor, part: Tensor, place: slice) -> Tensor:
    """Codes with some dimensions replaced."""
    first, last, _ = place.indices(z.shape[1])
    return torch.cat([z[:, :first], part, z[:, last:]], 1)


def gradients(model: Model, z: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """Derivatives of the genes' log expected values [batch, k, d], and the values [batch, k]."""
    with torch.enable_grad():
        moving = z.detach().clone().requires_grad_()
        values = response(model.decode(moving, only=wanted.modality)[wanted.modality])[:, wanted.columns]
        each = [torch.autograd.grad(v.sum(), moving, retain_graph=True)[0][:, wanted.place] for v in values.T]
    return torch.stack(each, 1), values.detach()


# --- cells and what is like them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Cells with their codes, and the groups within which codes vary. Introduced in notebook 06."""

    samples: Samples
    rows: Tensor  # [n] of the data set
    z: Tensor  # [n, n_latent]
    group: Tensor  # [n] whole numbers
    names: list[str]  # of the groups
    covariance: Tensor  # [n_groups, d, d] of codes within them
    place: slice  # the d dimensions that vary: all of them, or those of the basal part

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Places [batch] in these cells, their codes, and their data."""
        for at in torch.arange(len(self.rows)).split(size):
            yield at, self.z[at], self.samples[self.rows[at]]

    @property
    def sizes(self) -> np.ndarray:
        return torch.bincount(self.group, minlength=len(self.names)).cpu().numpy()


@torch.no_grad()
def read(model: Model, data: mudata.MuData, modalities: Sequence[str], by: str | None, split: str | None) -> Cells:
    """Codes of the samples of a split (None: all), in groups: the classes of a column of obs, of which samples without
    one are left out, or else the components of the mixture. Raises ValueError for names that are not there."""
    check_names(model, data, modalities, by)
    model.eval()
    samples = Samples(data, next(model.parameters()).device)
    model.check_features(samples)
    rows = torch.arange(len(samples)) if split is None else samples.rows(split).cpu()
    if by is not None:
        rows = rows[torch.from_numpy(data.obs[by].notna().to_numpy())[rows]]
    if not len(rows):
        raise ValueError(f"no sample of split {split!r}" + (f" has a class in {by!r}" if by else " is there"))
    z = torch.cat([codes(model, samples[index]) for index in rows.split(1024)])
    check_sizes(model, data, modalities, z[:1])
    place, mixture = moving_part(model)
    group, names = kinds_of(data, rows, by) if by is not None else components_of(mixture, z[:, place])
    return Cells(samples, rows, z, group, names, within(z[:, place], group.to(z.device), len(names)), place)


def kinds_of(data: mudata.MuData, rows: Tensor, by: str) -> tuple[Tensor, list[str]]:
    """Classes of a column of obs that the rows have: a whole number for each row, and their names."""
    label = data.obs[by].iloc[rows.numpy()].astype("category").cat.remove_unused_categories().cat
    return torch.from_numpy(label.codes.to_numpy(np.int64, copy=True)), [*map(str, label.categories)]


def components_of(mixture: nn.Module, z: Tensor) -> tuple[Tensor, list[str]]:
    """Components of highest posterior; one group where the prior has none."""
    if not hasattr(mixture, "responsibilities"):
        return torch.zeros(len(z), dtype=torch.long), ["all"]
    found, group = mixture.responsibilities(z).argmax(1).cpu().unique(return_inverse=True)
    return group, [f"component {k}" for k in found.tolist()]


def codes(model: Model, batch: Batch) -> Tensor:
    """Posterior means [batch, n_latent], averaged over candidates."""
    q, weight = model.encode(batch)
    return (weight[..., None] * q.mean).sum(0)


def moving_part(model: Model) -> tuple[slice, nn.Module]:
    """The latent dimensions that are not a covariate's, and their prior."""
    return parts_of(model.prior).get(BASAL, (slice(None), model.prior))


def within(z: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Covariance of codes within each group [n_groups, d, d], drawn to that within all of them by as many cells as
    there are dimensions, so that small groups have one too."""
    if len(z) <= n_groups or float(z.var(0).max()) == 0:
        raise ValueError(
            f"the codes of {len(z)} cells in {n_groups} groups do not vary: give more cells, or fewer groups"
        )
    member = nn.functional.one_hot(group, n_groups).to(z.dtype)  # [n, n_groups]
    size = member.sum(0)
    off = z - (member.T @ z / size[:, None])[group]
    each = torch.einsum("ng,ni,nj->gij", member, off, off)
    pooled = each.sum(0) / max(len(z) - n_groups, 1)
    return (each + z.shape[1] * pooled) / (size + z.shape[1] - 1).clamp(min=1)[:, None, None]


def check_names(model: Model, data: mudata.MuData, modalities: Sequence[str], by: str | None) -> None:
    """Raise `ValueError` for names that model or data do not know. Introduced in notebook 06."""
    if not isinstance(data, mudata.MuData):
        raise ValueError("pass the MuData: names of features and annotation are needed, which Samples do not keep")
    for name in modalities:
        for known, who in ((model.likelihoods, "model has"), (data.mod, "data have")):
            if name not in known:
                raise ValueError(f"the {who} no modality {name!r}{closest(name, known)}; there are {few(known)}")
    if by is not None and by not in data.obs:
        raise ValueError(f"column {by!r} is not in obs{closest(by, data.obs.columns)}; there are {few(data.obs)}")


def check_sizes(model: Model, data: mudata.MuData, modalities: Sequence[str], z: Tensor) -> None:
    """Raise `ValueError` for data with other features than the model's. Introduced in notebook 06."""
    for name in modalities:
        n = model.decode(z, only=name)[name].mean.shape[1]
        if n != data[name].n_vars:
            raise ValueError(
                f"modality {name!r} has {data[name].n_vars} features and the model {n}: prepare.transform(new, fitted) "
                "brings data to the features of the training data"
            )


def columns_of(data: mudata.MuData, modality: str, genes: str | Sequence[str] | None) -> np.ndarray:
    """Columns of features by name (None: all); ValueError for names that are not there."""
    names = data[modality].var_names
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"modality {modality!r} has several features called {few(twice)}: make names unique")
    if genes is None:
        return np.arange(len(names))
    chosen = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    if lost := [name for name in chosen if name not in names]:
        raise ValueError(f"modality {modality!r} has no feature {few(lost)}{closest(lost[0], names)}")
    if not chosen:
        raise ValueError("name at least one gene")
    return names.get_indexer(chosen)


# --- perturb -------------------------------------------------------------------------------------------------------


def perturb(
    model: Model,
    data: mudata.MuData,
    genes: str | Sequence[str],
    source: str = "rna",
    target: str = "atac",
    change: str | float = "silence",
    step: Step = gradient_step,
    by: str | None = None,
    split: str | None = None,
    n_steps: int = 1,
    expressing: bool = False,
    batch_size: int = 256,
) -> AnnData:
    """What the model expects of all features of `target` once `genes` of `source` are changed; cells × features.

    `change`: "silence", "activate" (twice the expected value), or the multiple wanted. `step`: how codes move towards
    it, `n_steps` times: `gradient_step`, `published_step`, or any function like them. `by`, a column of obs, gives
    groups × features instead, averages over their cells; a group is also what `gradient_step` takes as cells alike, the
    mixture's components unless given. `expressing` leaves out cells without a count of any of the genes, as published.
    `target` may be `source`.

    X: log2(perturbed / original) of expected values (of means, for groups); for values that can be negative, their
    difference. layers: "difference" = perturbed − original, "original"; counts as shares of a cell's total, where the
    head scales by it. obs and var are the data's; for groups, obs has `n_cells`. uns["reached"]: how far the genes
    themselves went, the mean of their log2(perturbed / original): one step goes a part of the way, as far as the
    decoder is nearly linear, and more `n_steps` go further. Of values that can be negative, "silence" asks for 1 less
    and a multiple m for log m more. Raises ValueError for unknown names, a multiple below zero, cells
    without codes, and none that expresses the genes where that was asked for. Introduced in notebook 06.
    """
    fold, cells = fold_of(change), read(model, data, [source, target], by, split)
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps} must be at least 1")
    columns = torch.from_numpy(columns_of(data, source, genes)).to(cells.z.device)
    pieces, reached, n = [], [], len(cells.names)
    for at, z, batch in cells.batches(batch_size):
        seen = (batch.x[source][:, columns] != 0).any(1) if expressing else torch.ones_like(z[:, 0], dtype=torch.bool)
        at, z, batch = at[seen.cpu()], z[seen], batch[seen.nonzero()[:, 0]]
        wanted, moved = aim(model, z, batch, source, columns, fold, cells, at), z
        for _ in range(n_steps):
            moved = step(model, moved, wanted)
        reached.append(went(model, z, moved, source, columns))
        before, after = (expected(model, each, target).cpu().numpy() for each in (z, moved))
        pieces.append((at.numpy(), before, after) if by is None else summed(cells.group[at], before, after, n))
    if not sum(len(at) if by is None else at.sum() for at, *_ in pieces):
        raise ValueError(
            f"no cell has a count of {few(data[source].var_names[columns.cpu().numpy()])}: expressing=False"
        )
    far = {"reached": float(torch.cat(reached).mean()) / (np.log(2) if positive(model.likelihoods[source]) else 1.0)}
    if by is None:
        at, before, after = map(np.concatenate, zip(*pieces, strict=True))
        return effects(before, after, data.obs.iloc[cells.rows[at].numpy()].copy(), data, target, model, far)
    n_cells, *totals = (sum(each) for each in zip(*pieces, strict=True))
    some = np.flatnonzero(n_cells)
    obs = pd.DataFrame({"n_cells": n_cells[some]}, index=pd.Index(np.array(cells.names)[some], dtype=str))
    return effects(*(total[some] / n_cells[some, None] for total in totals), obs, data, target, model, far)


@torch.no_grad()
def went(model: Model, z: Tensor, moved: Tensor, source: str, columns: Tensor) -> Tensor:
    """How far the genes themselves went from codes z to `moved`, in the units of `response`: [n_cells, n_genes].

    Introduced in notebook 06.
    """
    a, b = (response(model.decode(each, only=source)[source])[:, columns] for each in (z, moved))
    return b - a


def summed(group: Tensor, before: np.ndarray, after: np.ndarray, n_groups: int) -> tuple[np.ndarray, ...]:
    """Cells in each group [n_groups], and the sums of their values [n_groups, n_vars]."""
    member = np.eye(n_groups)[group.numpy()]  # [n, n_groups]
    return member.sum(0).astype(int), member.T @ before, member.T @ after


def fold_of(change: str | float) -> float:
    """The multiple of the expected value that a change asks for."""
    if isinstance(change, str):
        if change not in CHANGES:
            raise ValueError(
                f"change {change!r} is not known{closest(change, CHANGES)}; give {few(CHANGES)} or a number"
            )
        return CHANGES[change]
    if not change >= 0 or not np.isfinite(change):
        raise ValueError(f"change={change} must be a multiple of the expected value: a number from 0 (silent) upwards")
    return float(change)


@torch.no_grad()
def aim(
    model: Model, z: Tensor, batch: Batch, source: str, columns: Tensor, fold: float, cells: Cells, at: Tensor
) -> Wanted:
    """The multiple `fold` of what the model expects of the genes in each cell."""
    group = cells.group[at].to(z.device)
    library = {m: torch.where(total > 0, total, 1e4) for m, total in batch.library.items()}
    now = response(model.decode(z, only=source)[source])[:, columns]
    count = fold * model.decode(z, library, only=source)[source].mean[:, columns]
    wish = now + torch.tensor(fold, dtype=now.dtype, device=now.device).log()
    return Wanted(source, columns, count, wish, library, cells.covariance[group], cells.place)


def effects(
    before: np.ndarray, after: np.ndarray, obs: pd.DataFrame, data: mudata.MuData, target: str, model: Model, far: dict
) -> AnnData:
    """What `perturb` answers, from shares before and after; `far` goes into uns. Introduced in notebook 06."""
    difference = (after - before).astype(np.float32)
    ratio = np.log2(np.maximum(after, 1e-12) / np.maximum(before, 1e-12)).astype(np.float32)
    x = ratio if positive(model.likelihoods[target]) else difference
    layers = {"difference": difference, "original": before.astype(np.float32)}
    return AnnData(x, obs=obs, var=data[target].var.copy(), layers=layers, uns=far)
