"""What a model with shared, own and batch latents (`models.mima`) says of samples: its latents by name, and data
denoised, corrected for the batch, and translated.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import mudata
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers.batches import Batch, Samples
from helpers.models import Model
from helpers.tasks import check_known, passes
from helpers.wording import few

PER = 1e4  # counts that a sample without a library size, or corrected for it, is decoded for


@torch.inference_mode()
def of(
    model: Model, data: Samples | mudata.MuData, split: str | None = None, batch_size: int = 4096
) -> dict[str, np.ndarray]:
    """Posterior means of every latent, [n_obs, n_latent]: "shared", the joint embedding; and for each modality
    "own/rna", "batch/rna" and "expert/rna", its view of the shared latent by itself. NaN where nothing was measured to
    say so.

    All samples or those of one split; deterministic. Batches are recognised by name; one that the model has not met
    counts as an average batch, with a warning. Raises `ValueError` for other models and features. Introduced in
    notebook 07.
    """
    places = places_of(model)
    found: dict[str, list[Tensor]] = {name: [] for name in places}
    for batch in passes(model, samples_of(model, data), split, batch_size):
        z = model.encode(batch)[0].mean[0]
        for name, place in places.items():
            found[name].append(torch.where(seen_by(model, batch, name)[:, None], z[:, place], torch.nan).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


@torch.inference_mode()
def decoded(
    model: Model,
    data: Samples | mudata.MuData,
    modality: str,
    source: str | Sequence[str] | None = None,
    corrected: bool = False,
    split: str | None = None,
    batch_size: int = 4096,
) -> np.ndarray:
    """Expected values of a modality [n_obs, n_vars], on the scale that the model was trained on.

    - `source=None`: denoised, from all that was measured of a sample: shared + own + batch latent.
    - `source="msi"`: translated from that modality, or several of them: shared + batch latent, no own one, also where
      the target is the source.
    - `corrected=True`: the same without the batch latent, as if every sample were of the average batch.

    The batch latent of a sample that lacks the modality, and of every translation, is that of its batch (its mean over
    training samples), never read off the target itself. Counts are for the library size measured, and for 10,000 where
    there is none or where they are corrected. Rows of samples without any source are NaN. Raises `ValueError` for
    unknown modalities. Source: MIMA, Figure 1B. Introduced in notebook 07.
    """
    samples = samples_of(model, data)
    sources = (
        [source]
        if isinstance(source, str)
        else list(source or [m for m in model.fuse.names if m in samples.modalities])
    )
    for name in (modality, *sources):
        check_known(name, model.fuse.names, "model has")
    for name in sources:
        check_known(name, samples.modalities, "data have")
    parts = []
    for batch in passes(model, samples, split, batch_size):
        shown = batch.showing(*sources)
        z = composed(model, shown, modality, () if source is None else sources, corrected)
        depth = {m: torch.where((total > 0) & (not corrected), total, PER) for m, total in batch.library.items()}
        seen = torch.stack([batch.mask[m] for m in sources]).any(0)
        mean = model.decode(z, depth, only=modality)[modality].mean
        parts.append(torch.where(seen[:, None], mean, torch.nan).cpu())
    return torch.cat(parts).numpy()


def write(model: Model, data: mudata.MuData, key: str = "X_mima") -> None:
    """Put everything into a MuData: `obsm["X_mima"]`, the joint embedding; `obsm["X_mima_own_rna"]` and so on; and in
    each modality the layers "denoised", "corrected", and for every other one "from_<m>" and "corrected_from_<m>".

    Layers hold the samples that have the modality; `decoded` gives those that lack it. Introduced in notebook 07.
    """
    samples = samples_of(model, data)
    for name, z in of(model, samples).items():
        data.obsm[key if name == "shared" else f"{key}_{name.replace('/', '_')}"] = z
    names = [m for m in model.fuse.names if m in data.mod]
    for m in names:
        rows = data.obs_names.get_indexer(data[m].obs_names)
        for source in (None, *(other for other in names if other != m)):
            for corrected in (False, True):
                x = decoded(model, samples, m, source, corrected)[rows]
                data[m].layers[layer_name(source, corrected)] = x


def layer_name(source: str | None, corrected: bool) -> str:
    """ "denoised", "corrected", "from_rna", "corrected_from_rna". Introduced in notebook 07."""
    if source is None:
        return "corrected" if corrected else "denoised"
    return f"corrected_from_{source}" if corrected else f"from_{source}"


def composed(model: Model, batch: Batch, modality: str, sources: Sequence[str], corrected: bool) -> Tensor:
    """z [batch, Σ n_latent] from which a modality is decoded, of what the batch shows; no `sources`: denoised."""
    q, places = model.encode(batch)[0].mean[0], model.fuse.places
    z = torch.zeros_like(q)
    # one source speaks for itself, as in the translation loss
    z[:, places["shared"]] = q[:, places[f"expert/{sources[0]}" if len(sources) == 1 else "shared"]]
    if not sources:
        z[:, places[f"own/{modality}"]] = q[:, places[f"own/{modality}"]]
    if not corrected:
        usual = centre_of(model, batch, modality)
        measured = batch.mask[modality][:, None] if modality in batch.mask else torch.zeros_like(usual[:, :1]).bool()
        theirs = q[:, places[f"batch/{modality}"]]
        z[:, places[f"batch/{modality}"]] = usual if sources else torch.where(measured, theirs, usual)
    return z


def centre_of(model: Model, batch: Batch, modality: str) -> Tensor:
    """Where the batch latent of a modality is for the batches that samples are from, [batch, n_latent]; zero for
    batches that the model does not know.
    """
    encoder = model.encoders[model.fuse.names.index(modality)]
    code = batch.covariates[encoder.column]
    return encoder.of_batch.centres[code.clamp(min=0)] * (code >= 0)[:, None]


def places_of(model: Model) -> Mapping[str, slice]:
    """Latent -> its dimensions; `ValueError` for a model that does not tell latents apart."""
    if not hasattr(getattr(model, "fuse", None), "places"):
        raise ValueError(
            "the model has no shared, own and batch latents: build it with models.mima, or use tasks.embed"
        )
    return model.fuse.places


def seen_by(model: Model, batch: Batch, name: str) -> Tensor:
    """Which samples [batch] have what a latent is read from."""
    read = [name.split("/", 1)[1]] if "/" in name else list(model.fuse.names)
    known = [batch.mask[m] for m in read if m in batch.mask]
    return torch.stack(known).any(0) if known else torch.zeros(len(batch), dtype=torch.bool, device=batch.index.device)


def samples_of(model: Model, data: Samples | mudata.MuData) -> Samples:
    """The samples of a MuData with their batches coded as the model knows them, by name."""
    places_of(model)
    if isinstance(data, Samples):
        check_codes(model, data)
        return data
    samples = Samples(data, next(model.parameters()).device)
    for column in {encoder.column for encoder in model.encoders}:
        if column not in data.obs:
            raise ValueError(f"the model corrects for {column!r}, which is no column of mdata.obs: {list(data.obs)}")
        known = model.categories.get(column) or list(data.obs[column].astype("category").cat.categories)
        code = pd.Categorical(data.obs[column].astype(object), categories=known).codes
        new = sorted({*data.obs[column][code < 0].dropna().astype(str)})
        if new:
            warnings.warn(f"{column} {few(new)} took no part in training: read as an average batch", stacklevel=3)
        samples.covariates[column] = torch.as_tensor(code.astype(np.int64), device=samples.home)
        samples.categories[column] = known
    return samples


def check_codes(model: Model, samples: Samples) -> None:
    """Raise `ValueError` where the codes of batches stand for other names than those of training."""
    for column, names in model.categories.items():
        theirs = samples.categories.get(column, names)
        if [*map(str, theirs)] != [*map(str, names)]:
            raise ValueError(
                f"the codes of {column!r} stand for other batches than in training ({few(theirs)}): pass the MuData "
                "itself, whose batches are read by name"
            )
