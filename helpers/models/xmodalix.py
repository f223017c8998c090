"""X-modalix and Imagix: latent spaces of several modalities, pictures among them, made one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from helpers import fusion, penalties
from helpers.decoders import DenseDecoder, GaussianHead, NegativeBinomialHead
from helpers.encoders import DenseEncoder, ImageEncoder
from helpers.layers import Deconvolution, hidden_widths
from helpers.models.assembly import Model, Penalty, own
from helpers.models.vae import Head
from helpers.priors import StandardNormal
from helpers.wording import closest, few

Shape = Sequence[int]  # (height, width, channels)


def xmodalix(
    n_vars: Mapping[str, int],
    shapes: Mapping[str, Shape] | None = None,
    n_latent: int = 16,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    width: int = 16,
    hidden: Sequence[int] | None = None,
    heads: Mapping[str, Head] | None = None,
    classes: Mapping[str, int] | None = None,
    extra: Mapping[str, Penalty | None] | None = None,
    noise: Mapping[str, float] | None = None,
    skip: bool = False,
) -> Model:
    """An autoencoder per modality whose latent spaces are made one: what one encodes, any other can decode.

    `n_vars`: modality -> features, two or more of them (`Samples.n_vars`). `shapes`: modality -> (height, width,
    channels) for pictures (`Samples.shapes`), which get convolutions, `width` channels in the first. Samples may lack
    modalities. `hidden`: widths of the dense blocks, in place of `n_layers` and `factor`. `heads`: modality -> head
    class, a Gaussian of variance ½ (squared error) unless given. `noise`: modality -> sd of noise on its values in
    training (`DenseEncoder`). `skip` adds linear paths, on which `controls.start_aligned` can place a PCA and ridge
    regressions before training.

    Loss terms: `nll/<modality>`, each from its own latent space; `kl/<modality>`; `paired`, the distance between draws
    of one sample; `adversarial`, how well a classifier tells modalities apart; with `classes` (column -> number of
    classes, `Samples.n_classes`) `class`, the distance to the centre of the class, which aligns modalities without
    common samples; and those of `extra`, for example `{"translation": penalties.translation}` or `penalties.cycle`; a
    None there leaves a term out, `{"adversarial": None}`.
    Weights are given to `training.fit`, as numbers, schedules or wanted shares (`balance.Shares`); 1 where not named.

    `part(model, m)` trains one modality first. Source: AUTOENCODIX, Methods, X-modalix, after Yang et al. 2021; the
    faults of its code are not kept (the adversary learns, all modalities go on training, means are decoded).
    Raises ValueError for fewer than two modalities. Introduced in notebook 04.
    """
    if len(n_vars) < 2:
        raise ValueError(f"X-modalix joins two modalities or more, got {list(n_vars)}: models.varix or imagix take one")
    for given in (shapes, heads, noise):
        if wrong := [m for m in given or {} if m not in n_vars]:
            raise ValueError(f"there is no modality {wrong[0]!r}{closest(wrong[0], n_vars)}; there are {few(n_vars)}")
    terms: dict[str, Penalty | None] = {"kl": penalties.kl_each, "paired": penalties.paired}
    terms["adversarial"] = penalties.Adversary(n_latent, len(n_vars))
    for column, n_classes in (classes or {}).items():
        name = "class" if len(classes) == 1 else f"class/{column}"
        terms[name] = penalties.ClassCentres(column, n_classes, n_latent, len(n_vars))
    terms = {name: term for name, term in (terms | dict(extra or {})).items() if term is not None}
    encoders, decoders = [], []
    for m, n in n_vars.items():
        head, sd = (heads or {}).get(m, GaussianHead), (noise or {}).get(m, 0.0)
        if m in (shapes or {}):
            encoders.append(ImageEncoder(m, shapes[m], n_latent, width, skip=skip, noise=sd))
            decoders.append(image_decoder(m, shapes[m], n_latent, width, head, skip))
        else:
            widths = list(hidden_widths(n, n_latent, n_layers, factor) if hidden is None else hidden)
            encoders.append(dense_encoder(m, n, n_latent, widths, dropout, head, skip, sd))
            decoders.append(dense_decoder(m, n, n_latent, widths[::-1], dropout, head, skip))
    return Model(encoders, fusion.mixture, StandardNormal(n_latent), decoders, terms, reconstruct=own)


def imagix(
    shape: Shape, n_latent: int = 16, width: int = 16, modality: str = "image", head: Head = GaussianHead
) -> Model:
    """Variational autoencoder of pictures: strided convolutions and their mirror image (AUTOENCODIX, image VAE).

    `shape`: (height, width, channels), any size from 8 × 8. `width`: channels of the first convolution, doubled up to
    eight times. `head`: a Gaussian of variance ½ (squared error over pixels) unless given; `BernoulliHead` keeps
    pixels within 0 … 1. Loss terms `nll/image` and `kl/image`. Introduced in notebook 04.
    """
    encoders = [ImageEncoder(modality, shape, n_latent, width)]
    decoders = [image_decoder(modality, shape, n_latent, width, head)]
    return Model(
        encoders, fusion.mixture, StandardNormal(n_latent), decoders, {"kl": penalties.kl_each}, reconstruct=own
    )


def part(model: Model, modality: str) -> Model:
    """The autoencoder of one modality inside X-modalix, sharing its weights: train it by itself first, then the whole.

    Every modality goes on training afterwards. Raises ValueError for an unknown modality. Introduced in notebook 04.
    """
    encoders = [e for e in model.encoders if modality in e.modalities]
    if not encoders:
        known = [m for e in model.encoders for m in e.modalities]
        raise ValueError(f"the model has no modality {modality!r}; it has {', '.join(known)}")
    decoders = [d for d in model.decoders if modality in d.heads]
    return Model(encoders, model.fuse, model.prior, decoders, {"kl": penalties.kl_each}, reconstruct=own)


def dense_encoder(
    m: str, n: int, n_latent: int, hidden: Sequence[int], dropout: float, head: Head, skip: bool, noise: float
) -> DenseEncoder:
    """The encoder of a modality of profiles; counts enter as their logarithm."""
    counts = {m: torch.log1p} if head is NegativeBinomialHead else {}
    return DenseEncoder({m: n}, n_latent, hidden, dropout, transform=counts, skip=skip, noise=noise)


def dense_decoder(
    m: str, n: int, n_latent: int, hidden: Sequence[int], dropout: float, head: Head, skip: bool
) -> DenseDecoder:
    """z -> dense blocks -> profile."""
    last = (hidden[-1] if hidden else n_latent) + skip * n_latent
    return DenseDecoder(n_latent, hidden, {m: head(last, n)}, dropout, skip)


def image_decoder(m: str, shape: Shape, n_latent: int, width: int, head: Head, skip: bool = False) -> DenseDecoder:
    """z -> pictures: a head whose layer is a stack of transposed convolutions."""

    def pixels(n_in: int, n_out: int) -> nn.Module:
        return Deconvolution(n_in, shape, width, skip)

    return DenseDecoder(n_latent, [], {m: head(n_latent, shape[0] * shape[1] * shape[2], layer=pixels)})
