"""Ontix: an autoencoder whose decoder follows an ontology, so that latent dimensions are terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from helpers import fusion, penalties
from helpers.decoders import GaussianHead, NegativeBinomialHead, OntologyDecoder
from helpers.encoders import DenseEncoder
from helpers.layers import hidden_widths
from helpers.models.assembly import Model, Penalty
from helpers.ontology import Ontology
from helpers.priors import StandardNormal


def ontix(
    ontology: Ontology,
    n_latent: int | None = None,
    n_layers: int = 2,
    factor: float = 4.0,
    dropout: float = 0.1,
    heads: Mapping[str, type[nn.Module]] | None = None,
    penalty: Penalty = penalties.kl,
    n_full: int = 1,
    between: Callable[[], nn.Module] = nn.Identity,
    nonnegative: bool = False,
) -> Model:
    """Varix with a decoder whose weights are the links of an ontology of any depth (AUTOENCODIX, Methods, Ontix).

    Every latent dimension is a top term and carries its name (`model.latent_names`), unless `n_latent` asks for
    another number: then `n_full` fully connected layers lead to the terms, whose activities
    `model.decoders[0].activities(z)` gives. `between`, `nonnegative`: see `OntologyDecoder`. The encoder is an
    ordinary stack of `n_layers` hidden layers; the original gives it the widths of the ontology's levels.
    The ontology must have been built for the very data that are trained on. Introduced in notebook 03.
    """
    n_vars = {m: len(names) for m, names in ontology.features.items()}
    n_top, direct = len(ontology.terms[0]), n_latent in (None, len(ontology.terms[0]))
    n = n_top if direct else n_latent
    chosen = {m: (heads or {}).get(m, GaussianHead) for m in n_vars}
    counts = {m: torch.log1p for m, head in chosen.items() if head is NegativeBinomialHead}
    free = None if direct else n_latent
    hidden = hidden_widths(sum(n_vars.values()), n, n_layers, factor)
    return Model(
        encoders=[DenseEncoder(n_vars, n, hidden, dropout, transform=counts)],
        fuse=fusion.concatenate,
        prior=StandardNormal(n),
        decoders=[
            OntologyDecoder(ontology.links, ontology.members, chosen, free, n_full, dropout, between, nonnegative)
        ],
        penalties={penalty.__name__: penalty},
        latent_names=ontology.terms[0] if direct else (),
    )
