"""One model: encoders, a fusion rule, a prior, decoders with their likelihoods, and penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from helpers.batches import Batch, Samples
from helpers.encoders import LearnedCodes, PartsEncoder, Posterior
from helpers.likelihoods import log_likelihood
from helpers.penalties import ClassCentres, Latent, nll_from
from helpers.wording import few

Fuse = Callable[[Sequence[Posterior], Tensor], tuple[Posterior, Tensor]]
Penalty = Callable[[Latent], Tensor | Mapping[str, Tensor]]
Reconstruct = Callable[["Model", Latent], dict[str, Tensor]]


class Model(nn.Module):
    """An autoencoder put together from parts; a new model is a new combination of them.

    `losses(batch)` answers with named terms in nats per sample: `nll/<modality>` and one per penalty (a penalty of
    several parts gives `<penalty>/<part>`). It has no side effect beyond running statistics (batch norm, class centres)
    and draws latent noise from the generator it is given; dropout and noise on inputs come from torch's own.
    `latent_names` says what the latent dimensions stand for, where they stand for something. `reconstruct` says what is
    decoded from which candidate: by default everything from each, weighted; `own` (notebook 04) each modality from its
    own. Penalties that are modules train with the model. Introduced in notebook 01.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        fuse: Fuse,
        prior: nn.Module,
        decoders: Sequence[nn.Module],
        penalties: Mapping[str, Penalty] | None = None,
        latent_names: Sequence[str] = (),
        reconstruct: Reconstruct | None = None,
    ):
        super().__init__()
        self.latent_names = tuple(latent_names)
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.fuse, self.prior, self.penalties = fuse, prior, dict(penalties or {})
        self.reconstruct = reconstruct or everything
        self.trained = nn.ModuleDict({k: v for k, v in self.penalties.items() if isinstance(v, nn.Module)})
        self.recipe: dict = {"name": "", "arguments": {}}  # how to build it again (`storage.recipe`)
        self.features: dict[str, list[str]] = {}  # modality -> names, once it is trained
        self.categories: dict[str, list] = {}  # covariate -> names of its codes, once it is trained

    def train(self, mode: bool = True) -> Model:
        """As of every module, but parts of which nothing is trained stay as in evaluation: their batch norms keep."""
        super().train(mode)
        for part in (*self.encoders, *self.decoders):
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def encode(self, batch: Batch) -> tuple[Posterior, Tensor]:
        """Candidate posteriors [k, batch, n_latent] and their weights [k, batch]."""
        found = [encode_measured(encoder, batch) for encoder in self.encoders]
        return self.fuse([q for q, _ in found], torch.stack([seen for _, seen in found]))

    def decode(
        self, z: Tensor, library: Mapping[str, Tensor] | None = None, only: str | None = None
    ) -> dict[str, Distribution]:
        """z [batch, n_latent] -> modality -> distribution [batch, n_vars]; of decoders that know modality `only`."""
        asked = [decoder for decoder in self.decoders if only is None or only in decoder.heads]
        return {m: p for decoder in asked for m, p in decoder(z, library or {}).items()}

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss terms of a batch, scalars: nats per sample, averaged over the batch."""
        q, weight = self.encode(batch)
        z = q.sample(generator)
        latent = Latent(q, weight, z, self.prior, batch, generator, self)
        return self.reconstruct(self, latent) | flat(
            {name: penalty(latent) for name, penalty in self.penalties.items()}
        )

    def parameter_groups(self, lr: float) -> list[dict]:
        """Parameters for the optimiser. Parts with a `rate` learn that many times as fast, by the `habits` they have:
        learned codes and mixtures without weight decay, which would pull them to zero; their priors say where to be.
        """
        fast = [part for part in (*self.encoders, self.prior, *self.trained.values()) if hasattr(part, "rate")]
        theirs = {id(v) for part in fast for v in part.parameters()}
        groups = [{"params": [v for v in self.parameters() if id(v) not in theirs and v.requires_grad]}]
        for part in fast:
            own = [v for v in part.parameters() if v.requires_grad]
            groups.append({"params": own, "lr": lr * part.rate} | getattr(part, "habits", {}))
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def floors(self, batch: Batch) -> dict[str, Tensor]:
        """What `nll/<modality>` would be for a perfect reconstruction, nats per sample: shares of the loss count from
        there (`balance.Shares`). Introduced in notebook 04.
        """
        q, weight = self.encode(batch)
        found = self.decode((weight[..., None] * q.mean).sum(0), batch.library)
        floor = {m: -p.saturated(batch.x[m]).sum(-1) * batch.mask[m] for m, p in found.items() if m in batch.x}
        return {f"nll/{m}": value.mean() for m, value in floor.items()}

    def check(self, samples: Samples) -> None:
        """Raise `ValueError` on data that cannot train it: of another number of samples than it has codes for, with
        other features than it was trained on before, or where nothing makes latent spaces one (`check_linked`).
        """
        self.check_features(samples)
        for encoder in self.encoders:
            if isinstance(encoder, LearnedCodes) and encoder.n_obs != len(samples):
                raise ValueError(
                    f"the model has a code for each of {encoder.n_obs} samples, and the data have {len(samples)}: "
                    "build it with n_obs=len(samples), all splits"
                )
            if isinstance(encoder, PartsEncoder):
                encoder.check(samples)
        for penalty in self.penalties.values():
            if isinstance(penalty, ClassCentres) and penalty.column not in samples.covariates:
                needed = f"Samples(mdata, covariates=[{penalty.column!r}])"
                raise ValueError(f"class centres need the column {penalty.column!r}: give training.fit {needed}")
        if self.reconstruct is own and len(self.encoders) > 1:
            check_linked(samples, [e.modalities for e in self.encoders], self.penalties)

    def check_features(self, samples: Samples) -> None:
        """Raise `ValueError` where features are not those that the model was trained on, by name and order."""
        for m, names in self.features.items():
            if m not in samples.features or list(samples.features[m]) == names:
                continue
            if {*names} == {*samples.features[m]}:
                what = "the same features in another order"
            else:
                what = f"{len(names)} other features, such as {few(names[:3])}"
            raise ValueError(
                f"the model was trained on {what} of modality {m!r}: put the data in its order, "
                f"mdata[{m!r}][:, model.features[{m!r}]], prepared as those it was trained on"
            )

    def learn_names(self, samples: Samples) -> None:
        """Remember what features and codes of covariates stand for."""
        self.features = {m: list(names) for m, names in samples.features.items() if m in self.likelihoods}
        self.categories = {column: list(names) for column, names in samples.categories.items()}

    def like(self, other: Model) -> Model:
        """The model, with what another knows about its recipe and features."""
        self.recipe, self.features, self.categories = other.recipe, other.features, other.categories
        return self

    @property
    def likelihoods(self) -> dict[str, type[Distribution]]:
        """Modality -> distribution class, for checks on the data."""
        return {m: head.likelihood for decoder in self.decoders for m, head in decoder.heads.items()}


def encode_measured(encoder: nn.Module, batch: Batch) -> tuple[Posterior, Tensor]:
    """Posterior [batch, n_latent] of an encoder and who it saw [batch]; N(0, I) for those without its modalities.

    Only measured samples are shown to the encoder: the zeros of the others would enter its batch normalisation. A
    single sample, from which that could not be estimated in training, counts as not seen. Data may lack an encoder's
    modalities altogether, but not some of those that it reads together (`ValueError`).
    """
    known = [m for m in encoder.modalities if m in batch.mask]
    if known and len(known) < len(encoder.modalities):
        lost = [m for m in encoder.modalities if m not in known]
        raise ValueError(
            f"the data have no modality {', '.join(lost)}, which this model reads together with {known[0]}"
        )
    nobody = torch.zeros(len(batch), dtype=torch.bool, device=batch.index.device)
    seen = torch.stack([batch.mask[m] for m in known]).any(0) if known else nobody
    if known and bool(seen.all()):
        return encoder(batch), seen
    rows = seen.nonzero()[:, 0]
    if len(rows) < 1 + encoder.training:
        rows, seen = rows[:0], torch.zeros_like(seen)
    if not len(rows):
        blank = torch.zeros(len(batch), encoder.n_latent, device=seen.device)
        return Posterior(blank, blank if encoder.stochastic else None), seen
    return Posterior(*(None if v is None else spread(v, rows, len(batch)) for v in encoder(batch[rows]))), seen


def spread(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """Values [n_rows, ...] at their rows of a batch of `n`, zeros elsewhere."""
    return values.new_zeros(n, *values.shape[1:]).index_copy(0, rows, values)


def everything(model: Model, latent: Latent) -> dict[str, Tensor]:
    """`nll/<modality>`: −log p(x | z) of all modalities from each candidate, weighted; zero where unmeasured."""
    terms: dict[str, Tensor] = {}
    batch = latent.batch
    for z_k, weight_k in zip(latent.z, latent.weight, strict=True):
        for m, p in model.decode(z_k, batch.library).items():
            nll = -log_likelihood(p, batch.stored(m))  # [batch]
            share = (nll * (weight_k * batch.mask[m])).mean()
            terms[f"nll/{m}"] = terms[f"nll/{m}"] + share if f"nll/{m}" in terms else share
    return terms


def own(model: Model, latent: Latent) -> dict[str, Tensor]:
    """`nll/<modality>`: −log p(x | z) of each modality from the candidate of its own encoder, over all samples of the
    batch, zero where unmeasured (AUTOENCODIX, X-modalix). Introduced in notebook 04.
    """
    pairs = [(m, k) for k, encoder in enumerate(model.encoders) for m in encoder.modalities]
    return {f"nll/{m}": nll_from(latent, k, m, latent.weight[k] > 0) for m, k in pairs}


def check_linked(samples: Samples, read: Sequence[Sequence[str]], penalties: Mapping[str, Penalty]) -> None:
    """Raise `ValueError` where nothing says how modalities belong together: neither samples that they share, directly
    or through a third, nor class labels; or where classes are to do it and one side alone has some of them.

    Looks at the train split. Introduced in notebook 04.
    """
    train = samples.rows("train")
    held = [[samples.modalities[m].position[train] >= 0 for m in each if m in samples.modalities] for each in read]
    seen = [torch.stack(each).any(0) if each else torch.zeros(len(train), dtype=torch.bool) for each in held]
    names = [" and ".join(each) for each in read]
    groups = linked(seen)
    if len(groups) == 1:
        return
    sides = [" with ".join(names[k] for k in group) for group in groups]
    classes = next((p for p in penalties.values() if isinstance(p, ClassCentres)), None)
    if classes is None:
        raise ValueError(
            f"{' and '.join(sides)} share no sample in the train split, and the model has no class centres: give a "
            "sample the same name in all modalities, or class labels, models.xmodalix(..., classes=samples.n_classes)"
        )
    code = samples.covariates[classes.column][train]
    rows = [torch.stack([seen[k] for k in group]).any(0) & (code >= 0) for group in groups]
    has = torch.stack([torch.bincount(code[row], minlength=classes.n_classes) > 0 for row in rows])
    if alone := [c for c in range(classes.n_classes) if has[:, c].sum() == 1]:
        names = samples.categories[classes.column]
        where = [f"{names[c]!r} only in {sides[int(has[:, c].nonzero()[0])]}" for c in alone]
        raise ValueError(
            f"classes of {classes.column!r} that one modality alone has in the train split: {', '.join(where)}; leave "
            "these samples out, or give the class to both, since no other modality can show what they look like"
        )


def linked(seen: Sequence[Tensor]) -> list[list[int]]:
    """Encoders in groups that share samples, directly or through others; `seen` [n] of each."""
    groups: list[list[int]] = []
    for k, here in enumerate(seen):
        joined = [g for g in groups if any(bool((seen[other] & here).any()) for other in g)]
        groups = [g for g in groups if g not in joined] + [sorted([k, *(j for g in joined for j in g)])]
    return sorted(groups)


def flat(terms: Mapping[str, Tensor | Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{"kl": {"a": t}} -> {"kl/a": t}; numbers stay as they are."""
    named: dict[str, Tensor] = {}
    for name, value in terms.items():
        named |= {name: value} if isinstance(value, Tensor) else {f"{name}/{part}": v for part, v in value.items()}
    return named


def n_parameters(model: nn.Module) -> int:
    """Number of trained parameters. Introduced in notebook 01."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
