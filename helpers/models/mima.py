"""MIMA: shared, own and batch latents of every modality, the shared ones joined by a product of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from helpers import separation
from helpers.decoders import DenseDecoder, GaussianHead, NegativeBinomialHead, SumDecoder
from helpers.encoders import BatchHeads, BatchTable, PartsEncoder
from helpers.fusion import SharedPrivate, product
from helpers.models.assembly import Model, Penalty
from helpers.models.storage import recipe
from helpers.models.vae import Head
from helpers.penalties import Latent
from helpers.priors import StandardNormal
from helpers.wording import closest, few


@recipe
def mima(
    n_vars: Mapping[str, int],
    batches: Mapping[str, int],
    n_latent: int = 100,
    hidden: Sequence[int] = (300, 300),
    narrow: int = 600,
    dropout: float = 0.1,
    latent_dropout: float = 0.3,
    heads: Mapping[str, Head] | None = None,
    prior_expert: bool = True,
    table: bool = False,
    told: bool = False,
    adversary: bool = False,
    mixing: bool = False,
    orthogonal: bool = False,
    extra: Mapping[str, Penalty] | None = None,
) -> Model:
    """MIMA with any number of modalities, of which samples may lack some; train it on
    `Samples(mdata, covariates=[column])`. The defaults are the paper's.

    Each modality has an encoder to three Gaussian latents of `n_latent` dimensions: shared, own, and batch. The shared
    ones become the joint latent, a product of experts over the modalities that were measured, with N(0, I) as one more
    expert (`prior_expert`; the paper does not say). A modality is decoded from the sum of joint, own and batch latent.

    `n_vars`: modality -> features. `batches`: {column: number of batches}. `hidden`: widths of encoder layers, mirrored
    in the decoder; a modality of at most `narrow` features has none. `heads`: modality -> head class, squared error
    unless given. `dropout` of layers, `latent_dropout` before the latent layer.

    Stronger separation than the paper's loss gives, each a switch: `table` makes the batch latent one Gaussian per
    batch, which no sample can use for itself (`encoders.BatchTable`; otherwise a latent layer per batch, `BatchHeads`);
    `told` lets encoders know the batch, so that they can take it off; `adversary` keeps the batch out of every latent
    but its own, since own latents that hold it bring it back into "corrected" data; `mixing` and `orthogonal` are terms
    of `separation`. `extra` adds or, with None, takes away loss terms.

    Loss terms, in nats per sample: `nll/rna` (from the product), `translation/rna to protein`, `private/rna`, and
    `kl/shared`, `kl/own/rna`, `kl/batch/rna`, `kl/expert/rna`; `mean_squared` gives the paper's weights. `latents.of`
    and `latents.decoded` say what the trained model makes of samples. Source: MIMA (Alvira Larizgoitia et al. 2025),
    Methods, Model training. Introduced in notebook 07.
    """
    column, n_batches = checked(n_vars, batches, n_latent, heads)
    fuse = SharedPrivate(list(n_vars), n_latent, partial(product, prior=prior_expert))
    of_batch = partial(batch_latent, n_batches=n_batches, n_latent=n_latent, table=table)
    encoders, decoders = [], []
    for m, n in n_vars.items():
        head, widths = (heads or {}).get(m, GaussianHead), [] if n <= narrow else list(hidden)
        log = torch.log1p if head is NegativeBinomialHead else None
        known = n_batches if told else 0
        encoders.append(PartsEncoder(m, n, n_latent, widths, of_batch, column, known, dropout, latent_dropout, log))
        inner = DenseDecoder(n_latent, widths[::-1], {m: head([n_latent, *widths[::-1]][-1], n)}, dropout)
        decoders.append(SumDecoder([fuse.places[name] for name in ("shared", f"own/{m}", f"batch/{m}")], inner))
    blind = [name for name in fuse.places if not name.startswith("batch/")]
    terms: dict[str, Penalty | None] = {
        "translation": separation.translated,
        "private": separation.private,
        "kl": separation.kl_parts,
        "adversary": separation.BatchAdversary(column, n_batches, n_latent, blind) if adversary else None,
        "mixing": separation.Mixing(column, n_batches) if mixing else None,
        "orthogonal": separation.orthogonal if orthogonal else None,
    }
    terms = {name: term for name, term in (terms | dict(extra or {})).items() if term is not None}
    return Model(encoders, fuse, StandardNormal(len(fuse.places) * n_latent), decoders, terms)


@recipe
def mima_unimodal(
    n_vars: Mapping[str, int],
    batches: Mapping[str, int],
    n_latent: int = 100,
    hidden: Sequence[int] = (300, 300),
    narrow: int = 600,
    dropout: float = 0.1,
    latent_dropout: float = 0.3,
    heads: Mapping[str, Head] | None = None,
    table: bool = False,
    told: bool = False,
    adversary: bool = False,
) -> Model:
    """MIMA-Unimodal: every modality by itself, from its own and its batch latent alone; nothing is shared.

    Arguments as of `mima`; the adversary looks at the own latents. The embeddings are
    "own/rna" and so on of `latents.of`; the shared latents are not trained, and decoders do not see them. Source: MIMA,
    Methods, "only the modality-specific and batch latent spaces were updated". Introduced in notebook 07.
    """
    column, n_batches = checked(n_vars, batches, n_latent, heads)
    extra: dict[str, Penalty | None] = {"translation": None, "private": None, "kl": kl_unimodal}
    if adversary:
        own = [f"own/{m}" for m in n_vars]
        extra["adversary"] = separation.BatchAdversary(column, n_batches, n_latent, own, n_clusters=0)
    sizes = (n_latent, hidden, narrow, dropout, latent_dropout, heads)
    model = mima(n_vars, batches, *sizes, table=table, told=told, extra=extra)
    for m, decoder in zip(n_vars, model.decoders, strict=True):
        decoder.blocks = tuple(model.fuse.places[name] for name in (f"own/{m}", f"batch/{m}"))
    model.reconstruct = unimodal
    return model


def checked(
    n_vars: Mapping[str, int], batches: Mapping[str, int], n_latent: int, heads: Mapping[str, Head] | None
) -> tuple[str, int]:
    """The column of batches and their number; `ValueError` for sizes that make no model."""
    if len(batches) != 1 or min(batches.values()) < 1 or n_latent < 1 or not n_vars:
        raise ValueError(
            f"mima needs modalities, one column of batches, {{column: number}}, and n_latent of 1 or more; got "
            f"{dict(n_vars)}, {dict(batches)} and {n_latent}"
        )
    for name in heads or {}:
        if name not in n_vars:
            raise ValueError(f"heads: there is no modality {name!r}{closest(name, n_vars)}; there are {few(n_vars)}")
    return next(iter(batches.items()))


def unimodal(model: Model, latent: Latent) -> dict[str, Tensor]:
    """`nll/<modality>` of own + batch latent. Introduced in notebook 07."""
    return {f"nll/{m}": value for m, value in separation.private(latent).items()}


def kl_unimodal(latent: Latent) -> dict[str, Tensor]:
    """The parts of the KL that `mima_unimodal` has. Introduced in notebook 07."""
    return {name: value for name, value in separation.kl_parts(latent).items() if name.startswith(("own/", "batch/"))}


def batch_latent(n_in: int, n_batches: int, n_latent: int, table: bool) -> nn.Module:
    """What says the batch latent. Introduced in notebook 07."""
    return BatchTable(n_batches, n_latent) if table else BatchHeads(n_in, n_batches, n_latent)


def mean_squared(n_vars: Mapping[str, int], beta: float = 0.01, scale: float = 100.0) -> dict[str, float]:
    """Weights for `training.fit` that make every reconstruction term the mean squared error over features, as in the
    paper, and the KL terms count `beta`; all times `scale`, which no optimiser that rescales gradients notices, and
    which leaves the weights of other terms in sight.

    The paper does not say whether its KL is a sum or a mean over latent dimensions; here it is the sum. Introduced in
    notebook 07.
    """
    weights = {f"{term}/{m}": scale / n for m, n in n_vars.items() for term in ("nll", "private")}
    weights |= {f"translation/{m} to {n}": scale / n_vars[n] for m in n_vars for n in n_vars if m != n}
    return weights | {"kl": scale * beta}
