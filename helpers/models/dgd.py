"""Decoders without an encoder: one learned code per sample, with or without a Gaussian mixture as their prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from helpers import fusion, penalties
from helpers.decoders import DenseDecoder, GaussianHead, NegativeBinomialHead, rectified
from helpers.encoders import DenseEncoder, LearnedCodes
from helpers.models.assembly import Model, Penalty
from helpers.models.storage import RECIPES, recipe
from helpers.models.vae import Head
from helpers.models.xmodalix import Shape, image_decoder
from helpers.penalties import Latent
from helpers.priors import BASAL, GaussianMixture, StandardNormal, parts_of


@recipe
def decoder(
    n_vars: Mapping[str, int],
    n_obs: int,
    n_latent: int = 20,
    hidden: Sequence[int] = (100,),
    heads: Mapping[str, Head] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    width: int = 16,
) -> Model:
    """The deterministic decoder: codes and weights that minimise the reconstruction error, and nothing else.

    `n_obs`: rows of the data set, all splits (`len(samples)`). `hidden`: widths of dense layers with ReLU; `heads`:
    modality -> head class or function (n_in, n_vars), a Gaussian of variance ½ unless given; `shapes`: modality ->
    (height, width, channels) of pictures, which get transposed convolutions of `width` channels. Nothing says where
    codes lie, so that draws from the prior mean nothing here; a weak prior is `dgd` with one component of a fixed, wide
    deviation, `GaussianMixture(n_latent, 1, "fixed", sd=3.0)`. Loss terms `nll/<modality>`. Source: Schuster and Krogh
    2021 (Entropy 23:1403). Introduced in notebook 05.
    """
    decoders = without_encoder(n_vars, n_latent, hidden, heads, shapes, width)
    return learned(LearnedCodes(list(n_vars), n_obs, n_latent), StandardNormal(n_latent), decoders, {})


@recipe
def vad(
    n_vars: Mapping[str, int],
    n_obs: int,
    n_latent: int = 20,
    hidden: Sequence[int] = (100,),
    heads: Mapping[str, Head] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    width: int = 16,
) -> Model:
    """The variational auto-decoder: a learned mean and log-variance per sample, under N(0, I).

    Parameters as in `decoder`. Loss terms `nll/<modality>` and `kl`, the ELBO of a VAE whose encoder is a table.
    Source: Zadeh et al. 2019, as the baseline of Schuster and Krogh 2023. Introduced in notebook 05.
    """
    decoders = without_encoder(n_vars, n_latent, hidden, heads, shapes, width)
    codes = LearnedCodes(list(n_vars), n_obs, n_latent, stochastic=True)
    return learned(codes, StandardNormal(n_latent), decoders, {"kl": penalties.kl})


@recipe
def dgd(
    n_vars: Mapping[str, int],
    n_obs: int,
    n_latent: int = 20,
    n_components: int = 20,
    hidden: Sequence[int] = (100,),
    heads: Mapping[str, Head] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    width: int = 16,
    prior: GaussianMixture | None = None,
    n_train: int | None = None,
    labels: str | None = None,
) -> Model:
    """The deep generative decoder: learned codes under a learned Gaussian mixture, for pictures and dense data.

    `n_obs`, `hidden`, `heads`, `shapes`, `width` as in `decoder`. `prior`: a mixture of one's own; by default
    `n_components` of them with diagonal covariance, the published softball (radius 3, sharpness 5) and concentration 2.
    `n_train`: samples that share the prior of the mixture (`n_obs` unless given), which counts once per data set. The
    published code counts it once per sample; to hold variances as firmly, and keep them from collapsing, theirs has a
    `spread` of `n_train`^(−½). Start codes and components by `start_at`. `labels`: the covariate whose classes are the
    components (`Samples(covariates=[labels])`; samples without a class are left to all of them), in training only.

    Loss terms `nll/<modality>`, `prior/codes` (−log p(z | φ)) and `prior/mixture` (−log p(φ) / `n_train`): together the
    negative log posterior. Source: Schuster and Krogh 2023 (Bioinformatics 39:btad497). Introduced in notebook 05.
    """
    shared = n_train or n_obs
    given = prior or GaussianMixture(n_latent, n_components, scale=3.0, alpha=2.0, spread=shared**-0.5)
    decoders = without_encoder(n_vars, n_latent, hidden, heads, shapes, width)
    terms = {"prior": posterior_of(shared, {BASAL: labels} if labels else None)}
    return learned(LearnedCodes(list(n_vars), n_obs, n_latent), given, decoders, terms)


@recipe
def scdgd(
    n_vars: Mapping[str, int],
    n_obs: int,
    n_latent: int = 20,
    n_components: int = 9,
    hidden: Sequence[int] = (100, 100, 100),
    prior: GaussianMixture | None = None,
    n_train: int | None = None,
    labels: str | None = None,
    head: Head = NegativeBinomialHead,
) -> Model:
    """The DGD of single cells: raw counts, negative binomial, mean = library size × output, in every modality.

    As `dgd`, with the published widths, softball (radius 1, sharpness 1), concentration 1 and starting standard
    deviation 0.2 / `n_components`. The published scale is a cell's largest count and its output a softplus; ours is
    the total count and a softmax, as in multiDGD. Source: Schuster and Krogh 2023. Introduced in notebook 05.
    """
    spread = (n_train or n_obs) ** -0.5
    given = prior or GaussianMixture(n_latent, n_components, scale=1.0, sharpness=1.0, spread=spread)
    heads = {m: head for m in n_vars}
    return dgd(n_vars, n_obs, n_latent, n_components, hidden, heads, prior=given, n_train=n_train, labels=labels)


def learned(
    codes: LearnedCodes, prior: nn.Module, decoders: Sequence[nn.Module], terms: Mapping[str, Penalty]
) -> Model:
    """A model with learned codes in place of encoders. Introduced in notebook 05."""
    return Model([codes], fusion.concatenate, prior, decoders, terms)


def start_at(
    model: Model,
    z: Tensor | np.ndarray,
    rows: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> Model:
    """Start a DGD's codes at z [n_obs, n_latent] and its components at their clusters; the model, changed in place.

    z may come from a PCA, or from training for some epochs with weights={"prior": 0}: from there the components are
    found the same way with every seed, where the published start (codes at zero, means anywhere in the ball) can
    leave all codes in one component. z is shifted and scaled so that its root mean square length is half the ball's
    radius, and the width of components follows from it (`GaussianMixture.start_at`), so that more of them than there
    are clusters do no harm. `rows`: those on which components and scale are fitted (`samples.rows("train")`), all
    unless given.
    `labels` [n_obs]: classes, −1 where unknown, that components should stand for (`samples.covariates[column]`).
    Raises `ValueError` for codes that are not finite or all the same. Introduced in notebook 05.
    """
    if not parts_of(model.prior):
        raise ValueError(
            "the model's prior has no components to start: use models.dgd, models.scdgd or models.multidgd"
        )
    place, mixture = parts_of(model.prior)[BASAL]
    if labels is not None and int(labels.max()) >= mixture.n_components:
        raise ValueError(
            f"{int(labels.max()) + 1} classes need as many components, and there are {mixture.n_components}"
        )
    codes = torch.as_tensor(z, dtype=torch.float32, device=mixture.mean.device)
    rows = torch.arange(len(codes)) if rows is None else rows
    fitted = codes[rows.to(codes.device)]
    centre = fitted.mean(0)
    length = (fitted - centre).square().sum(1).mean().sqrt()
    if not bool(length > 0) or not bool(codes.isfinite().all()):
        raise ValueError("codes to start at must be finite and differ between samples: give a PCA of the data")
    shrink = 0.5 * mixture.softball.scale / length
    model.encoders[0].start_at((codes - centre) * shrink, place)
    mixture.start_at((fitted - centre) * shrink, None if labels is None else labels[rows.to(labels.device)], seed)
    return model


def posterior_of(n_train: int, labels: Mapping[str, str] | None = None) -> Penalty:
    """−log p(z | φ), mean over samples, for every part of the prior, and −log p(φ) / `n_train`, nats per sample.

    `labels`: part -> the covariate whose classes choose its components while the model trains; valid and new samples
    have none. Introduced in notebook 05.
    """

    def prior(latent: Latent) -> dict[str, Tensor]:
        terms = {}
        for name, (place, mixture) in parts_of(latent.prior).items():
            classes = known(latent, labels[name]) if labels and name in labels and latent.model.training else None
            each = mixture.log_prob(latent.z[..., place], classes)
            terms["codes" if name == BASAL else name] = -(latent.weight * each).sum(0).mean()
        return terms | {"mixture": -latent.prior.log_prior() / n_train}

    return prior


def known(latent: Latent, column: str) -> Tensor:
    """Classes of the samples, for every candidate; `ValueError` where the data come without them."""
    if column not in latent.batch.covariates:
        raise ValueError(
            f"the labels are in column {column!r}: give training.fit Samples(mdata, covariates=[{column!r}])"
        )
    return latent.batch.covariates[column].expand(latent.z.shape[:-1])


def without_encoder(
    n_vars: Mapping[str, int],
    n_latent: int,
    hidden: Sequence[int],
    heads: Mapping[str, Head] | None,
    shapes: Mapping[str, Shape] | None,
    width: int,
) -> list[DenseDecoder]:
    """One decoder for all profiles, of dense layers with ReLU, and one for each modality of pictures.

    Dense layers have no batch normalisation and no dropout, as published (`rectified`); pictures keep the normalisation
    of `image_decoder`. Introduced in notebook 05.
    """
    pictures = {
        m: image_decoder(m, s, n_latent, width, (heads or {}).get(m, GaussianHead)) for m, s in (shapes or {}).items()
    }
    rest = {m: n for m, n in n_vars.items() if m not in pictures}
    if not rest:
        return [*pictures.values()]
    widths = [n_latent, *hidden]
    together = DenseDecoder(
        n_latent, [], {m: (heads or {}).get(m, GaussianHead)(widths[-1], n) for m, n in rest.items()}
    )
    together.body = rectified(widths)
    return [together, *pictures.values()]


def reader_for(model: Model, n_vars: Mapping[str, int], hidden: Sequence[int] = (100,)) -> DenseEncoder:
    """An untrained encoder that reads `n_vars` (modality -> features; log(1 + x) of counts) into a model's codes.

    Introduced in notebook 05.
    """
    counted = [m for m in n_vars if model.likelihoods[m].support is constraints.nonnegative_integer]
    logs, codes = dict.fromkeys(counted, torch.log1p), model.encoders[0]
    return DenseEncoder(n_vars, codes.n_latent, hidden, stochastic=codes.stochastic, transform=logs)


@recipe
def with_encoder(base: str, given: Mapping[str, object], n_vars: Mapping[str, int], hidden: Sequence[int]) -> Model:
    """The model of recipe `base`, called with the arguments `given`, with an encoder in place of its codes: what
    `inference.amortised` returns, to be loaded from a file. Introduced in notebook 05.
    """
    like = RECIPES[base](**given)
    return Model([reader_for(like, n_vars, hidden)], like.fuse, like.prior, like.decoders, like.penalties)
