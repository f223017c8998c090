"""Terms that tell apart what `fusion.SharedPrivate` puts side by side: shared, own and batch latents (MIMA)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.encoders import one_hot
from helpers.penalties import Latent, classifier, nll_from, ordered_pairs, squared_distance, unmoved


def kl_parts(latent: Latent) -> dict[str, Tensor]:
    """KL(q ‖ N(0, I)) of every block of `fusion.SharedPrivate`, nats per sample: `shared`, `own/rna`, `batch/rna`,
    `expert/rna`. Source: MIMA, the KL terms of its shared and private loss. Introduced in notebook 07.
    """
    mean, logvar = latent.q.mean[0], latent.q.logvar[0]
    each = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    return {name: each[:, place].sum(-1).mean() for name, place in latent.model.fuse.places.items()}


def private(latent: Latent) -> dict[str, Tensor]:
    """`<modality>`: −log p(x | own + batch latent), without what is shared, nats per sample (MIMA's private loss).

    Introduced in notebook 07.
    """
    return {
        m: nll_from(told_by(latent, [f"own/{m}", f"batch/{m}"]), 0, m, latent.batch.mask[m]) for m in measured(latent)
    }


def translated(latent: Latent) -> dict[str, Tensor]:
    """`<m> to <n>`: −log p(x_n | m's shared latent + n's batch latent), nats per sample, where both are measured.

    The batch latent is held fixed, so that the term moves shared latents and decoders only (MIMA's translation loss,
    "without influencing the batch or modality-specific latent spaces"). Introduced in notebook 07.
    """
    names, places, seen = measured(latent), latent.model.fuse.places, latent.batch.mask
    terms = {}
    for m, n in ((names[a], names[b]) for a, b in ordered_pairs(len(names))):
        moved = torch.zeros_like(latent.z)
        moved[..., places["shared"]] = latent.z[..., places[f"expert/{m}"]]
        moved[..., places[f"batch/{n}"]] = latent.z[..., places[f"batch/{n}"]].detach()
        terms[f"{m} to {n}"] = nll_from(latent._replace(z=moved), 0, n, seen[m] & seen[n])
    return terms


def told_by(latent: Latent, blocks: Iterable[str]) -> Latent:
    """The state as if all blocks of z but these were zero. Introduced in notebook 07."""
    kept = torch.zeros_like(latent.z)
    for name in blocks:
        place = latent.model.fuse.places[name]
        kept[..., place] = latent.z[..., place]
    return latent._replace(z=kept)


def measured(latent: Latent) -> list[str]:
    """Modalities that the model and the batch have. Introduced in notebook 07."""
    return [m for m in latent.model.fuse.names if m in latent.batch.mask]


class BatchAdversary(nn.Module):
    """Hides from which batch a sample is: as `penalties.Adversary`, of the batch in place of the modality. A term for
    each latent that is to know nothing, with a classifier of its own.

    `column`: the covariate with the batches (`Samples(covariates=[column])`), of `n_batches`; samples without one (code
    −1) are left out, as are those that lack what a latent is read from. `latents` are names of blocks of
    `fusion.SharedPrivate`; the posterior means are looked at, since they are what is scored, each dimension
    standardised over the minibatch.

    Batches that hold different things must differ. `n_clusters` therefore groups samples by their shared latent, while
    training, and weighs them so that within a group all batches that it has count by their overall share (`Groups`):
    what is hidden is the batch given the group. 0 weighs all samples alike, and presses batches of another
    composition onto each other. Introduced in notebook 07.
    """

    def __init__(
        self,
        column: str,
        n_batches: int,
        n_latent: int,
        latents: Sequence[str] = ("shared",),
        n_clusters: int = 30,
        n_hidden: int = 64,
        rate: float = 5.0,
    ):
        super().__init__()
        self.column, self.n_batches, self.latents, self.rate = column, n_batches, tuple(latents), rate
        self.classifiers = nn.ModuleList(classifier(n_latent, n_hidden, n_batches) for _ in latents)
        self.groups = Groups(n_clusters, n_batches, n_latent) if n_clusters else None

    def forward(self, latent: Latent) -> dict[str, Tensor]:
        code, place = latent.batch.covariates[self.column], latent.model.fuse.places["shared"]
        member = one_hot(code, self.n_batches)
        weight, usual = member.sum(1), (member.mean(0) / member.mean(0).sum().clamp(min=1e-9)).expand_as(member)
        if self.groups is not None:
            alike, usual = self.groups(latent.q.mean[0][:, place].detach(), code)
            weight = weight * alike
        pairs = zip(self.latents, self.classifiers, strict=True)
        return {name: self.term(latent, name, network, weight, usual) for name, network in pairs}

    def term(self, latent: Latent, name: str, network: nn.Module, weight: Tensor, usual: Tensor) -> Tensor:
        """What the encoders minimise, KL(usual ‖ classifier) ≥ 0 in nats, of one latent; its gradient also trains the
        classifier. `weight` [batch] of the samples, `usual` [batch, n_batches] shares to be told.
        """
        rows = seen_by(latent, name)
        z, code = latent.q.mean[0][rows][:, latent.model.fuse.places[name]], latent.batch.covariates[self.column][rows]
        if len(z) < 2:
            return latent.z.sum() * 0
        weight, usual = weight[rows] / weight[rows].sum().clamp(min=1), usual[rows]
        z = (z - z.mean(0).detach()) / (z.detach().var(0) + 1e-8).sqrt()  # or small differences hide in large ones
        confusion = ((torch.xlogy(usual, usual) - usual * unmoved(network, z)).sum(-1) * weight).sum()
        if not torch.is_grad_enabled():
            return confusion
        told = F.log_softmax(network(z.detach()), -1).gather(1, code.clamp(min=0)[:, None])[:, 0]
        error = -(told * weight).sum()
        return confusion + error - error.detach()


class Groups(nn.Module):
    """Weights that make batches alike in composition: k-means groups, kept up to date with every minibatch in training,
    and how many samples of each batch are in each.

    A sample of batch b in group g weighs (usual share of b, over all groups, among the batches that g has) / (share of
    b in g), at most `MOST`. A batch with less than `RARE` of a group is not there, and a group of one batch says
    nothing: its samples weigh 0, so that what one batch alone has is left in peace. Introduced in notebook 07.
    """

    MOST, RARE = 5.0, 0.02

    def __init__(self, n_groups: int, n_batches: int, n_latent: int, momentum: float = 0.95):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_groups, n_latent))
        self.register_buffer("count", torch.zeros(n_groups, n_batches))

    def forward(self, z: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Shared latents [batch, n_latent] and batches [batch] -> weights [batch], and the usual shares of batches in
        the samples' groups [batch, n_batches].
        """
        if self.training and not self.count.any():
            self.begin(z)
        member = F.one_hot(torch.cdist(z, self.centre).argmin(1), len(self.centre)).to(z.dtype)  # [batch, n_groups]
        if self.training:
            self.move(z, member, one_hot(code, self.count.shape[1]))
        share = self.count / self.count.sum(1, keepdim=True).clamp(min=1e-9)
        there = (share > self.RARE).to(z.dtype)
        usual = there * self.count.sum(0)
        usual = usual / usual.sum(1, keepdim=True).clamp(min=1e-9)
        weight = (usual / share.clamp(min=self.RARE)).clamp(max=self.MOST) * there * (there.sum(1, keepdim=True) > 1)
        return (member @ weight).gather(1, code.clamp(min=0)[:, None])[:, 0], member @ usual

    def begin(self, z: Tensor) -> None:
        """First centres, spread over a minibatch as k-means++ does."""
        chosen = [int(torch.randint(len(z), (1,)))]
        for _ in range(len(self.centre) - 1):
            nearest = torch.cdist(z, z[chosen]).min(1).values.square()
            chosen.append(int(torch.multinomial(nearest + 1e-9, 1)))
        self.centre.copy_(z[chosen])

    def move(self, z: Tensor, member: Tensor, batch: Tensor) -> None:
        """Centres and counts towards those of a minibatch."""
        size = member.sum(0)
        step = (1 - self.momentum) * (size > 0).to(z.dtype)[:, None]
        self.centre.lerp_(member.T @ z / size.clamp(min=1)[:, None], step)
        self.count.mul_(self.momentum).add_(member.T @ batch, alpha=1 - self.momentum)


def seen_by(latent: Latent, name: str) -> Tensor:
    """Samples [batch] that have what a latent is read from: "own/rna" needs rna, "shared" anything."""
    read = [name.split("/", 1)[1]] if "/" in name else measured(latent)
    masks = [latent.batch.mask[m] for m in read if m in latent.batch.mask]
    return torch.stack(masks).any(0) if masks else torch.zeros_like(latent.batch.index, dtype=torch.bool)


class Mixing(nn.Module):
    """How far the batches among a sample's neighbours in the shared latent are from those of all samples, nats.

    KL(shares of the batches in the minibatch ‖ shares among a sample's neighbours, 2 % of the former mixed in),
    averaged; 0 where every neighbourhood holds all batches. Neighbours weigh exp(−2 d² / d_k²), d_k the distance to the
    `k`-th nearest. What iLISI counts (Korsunsky et al. 2019), with a gradient; there is no classifier to train, and it
    acts on neighbours only, so that regions of one batch alone stay where they are unless others are near. Needs
    minibatches of some times `k` samples. `column`, `n_batches` and samples without a batch as in `BatchAdversary`.
    Introduced in notebook 07.
    """

    def __init__(self, column: str, n_batches: int, k: int = 15):
        super().__init__()
        self.column, self.n_batches, self.k = column, n_batches, k

    def forward(self, latent: Latent) -> Tensor:
        code = latent.batch.covariates[self.column]
        known = code >= 0
        z = latent.q.mean[0][known][:, latent.model.fuse.places["shared"]]
        if len(z) < self.k + 2:
            return latent.z.sum() * 0
        member = F.one_hot(code[known], self.n_batches).to(z.dtype)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        apart = squared_distance(z, z).masked_fill(itself, torch.inf)
        width = apart.detach().topk(self.k, largest=False).values[:, -1:].clamp(min=1e-9) / 2
        usual, near = member.mean(0), torch.softmax(-apart / width, 1) @ member
        return torch.special.xlogy(usual, usual / (0.98 * near + 0.02 * usual).clamp(min=1e-9)).sum(1).mean()


def orthogonal(latent: Latent) -> Tensor:
    """Mean squared correlation over the batch between shared dimensions and each modality's own, in [0, 1].

    The separation that MIMA's discussion names as a next step. Introduced in notebook 07.
    """
    places, terms = latent.model.fuse.places, []
    for m in measured(latent):
        mean = latent.q.mean[0][latent.batch.mask[m]]
        if len(mean) > 2:
            shared, own = (standardised(mean[:, places[name]]) for name in ("shared", f"own/{m}"))
            terms.append((shared.T @ own / len(mean)).square().mean())
    return torch.stack(terms).mean() if terms else latent.z.sum() * 0


def standardised(x: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; one that does not vary stays at 0."""
    off = x - x.mean(0)
    return off / (off.square().mean(0) + 1e-6).sqrt()
