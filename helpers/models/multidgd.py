"""multiDGD: several modalities from one learned code, with covariates in latent spaces of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from helpers.batches import Samples
from helpers.decoders import Branch, DenseDecoder, NegativeBinomialHead, rectified
from helpers.encoders import LearnedCodes
from helpers.models.assembly import Model
from helpers.models.dgd import learned, posterior_of
from helpers.models.storage import recipe
from helpers.models.vae import Head
from helpers.priors import BASAL, GaussianMixture, Together, parts_of

N_COVARIATE = 2  # latent dimensions of a covariate, as published


@recipe
def multidgd(
    n_vars: Mapping[str, int],
    n_obs: int,
    n_latent: int = 20,
    n_components: int = 1,
    covariates: Mapping[str, int] | None = None,
    hidden: Sequence[int] = (100, 100),
    branch: Sequence[int] | None = None,
    heads: Mapping[str, Head] | None = None,
    prior: GaussianMixture | None = None,
    n_train: int | None = None,
    labels: str | None = None,
) -> Model:
    """The DGD of several modalities: a basal code and one of two dimensions per covariate -> layers that all modalities
    share -> layers and a head of each one's own. Samples may lack modalities, in training too.

    `n_obs`: rows of the data set, all splits. `n_components`: of the basal part, the number of expected cell types.
    `covariates`: column -> number of its classes (`samples.n_classes`), each with a component per class, to which its
    samples belong while the model trains (`Samples(mdata, covariates=[...])`); valid and new ones find their place by
    themselves. `hidden`, `branch`: widths of shared and own layers with ReLU; own ones are 100 and the square root of
    the number of features, at least 100, unless given. `heads`: modality -> head class or function (n_in, n_vars);
    negative binomial with the observed library size unless given, also for peaks, whose counts are not made binary.
    `prior`: a basal mixture of one's own instead of the published one (diagonal, radius 2, sharpness 5, concentration
    1). `n_train`, `labels` (of the basal part) as in `dgd`.

    Loss terms `nll/<modality>`, `prior/codes`, `prior/<covariate>` and `prior/mixture` (−log p(φ) / `n_train`). The
    published code also adds the L1 norm of all weights and counts p(φ) per sample; see `priors` on the second. Raises
    `ValueError` for a covariate called "basal", or of fewer than two classes. Source: Schuster et al. 2024 (Nat Commun
    15:10031). Introduced in notebook 06.
    """
    given, shared = dict(covariates or {}), n_train or n_obs
    if taken := [name for name in given if name in (BASAL, "codes", "mixture")]:
        raise ValueError(
            f"a covariate cannot be called {taken[0]!r}, a name with a meaning of its own: rename its column"
        )
    if alone := [name for name, n in given.items() if n < 2]:
        raise ValueError(f"covariate {alone[0]!r} must have two classes or more: leave it out")
    basal = prior or GaussianMixture(n_latent, n_components, spread=shared**-0.5)
    wide = {"covariance": "isotropic", "alpha": 2.0, "spread": shared**-0.5}
    parts = {BASAL: basal} | {name: GaussianMixture(N_COVARIATE, n, **wide) for name, n in given.items()}
    together = Together(parts)
    codes = LearnedCodes(list(n_vars), n_obs, together.n_latent)
    own = {m: branch if branch is not None else (100, max(100, round(n**0.5))) for m, n in n_vars.items()}
    n_shared = [together.n_latent, *hidden][-1]
    arms = {m: Branch(n_shared, own[m], n, (heads or {}).get(m, NegativeBinomialHead)) for m, n in n_vars.items()}
    trunk = DenseDecoder(n_shared, [], arms)
    trunk.body = rectified([together.n_latent, *hidden])
    classes = {name: name for name in given} | ({BASAL: labels} if labels else {})
    return learned(codes, together, [trunk], {"prior": posterior_of(shared, classes)})


@torch.no_grad()
def start_covariates(model: Model, samples: Samples) -> Model:
    """Start the covariate part of every code at the component of its class, as published; valid and test samples, whose
    classes the model must not see, and those without a class, at the mean of all. The model, changed in place.
    Introduced in notebook 06.
    """
    table, train = model.encoders[0].table.weight, samples.rows("train").to(model.encoders[0].table.weight.device)
    for name, (place, mixture) in parts_of(model.prior).items():
        if name == BASAL:
            continue
        if name not in samples.covariates:
            raise ValueError(
                f"covariate {name!r} did not come with the data: give Samples(mdata, covariates=[{name!r}])"
            )
        code = samples.covariates[name].to(table.device)[train]
        table[:, place] = mixture.mean.mean(0)
        table[train, place] = torch.where((code >= 0)[:, None], mixture.mean[code.clamp(min=0)], mixture.mean.mean(0))
    return model
