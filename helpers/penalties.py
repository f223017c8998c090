"""Terms that shape the latent space. A penalty takes the state of one forward pass and returns one number, or several
under names of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.batches import Batch
from helpers.encoders import Posterior
from helpers.layers import linear
from helpers.likelihoods import log_likelihood


class Latent(NamedTuple):
    """What a forward pass knows about its latent space, for penalties to read."""

    q: Posterior  # [k, batch, n_latent] candidate posteriors
    weight: Tensor  # [k, batch], sums to 1 over k
    z: Tensor  # [k, batch, n_latent] one draw from each
    prior: nn.Module
    batch: Batch
    generator: torch.Generator | None
    model: nn.Module | None = None  # for penalties that encode or decode once more


def kl(latent: Latent) -> Tensor:
    """KL(q ‖ prior), nats per sample, weighted over candidates. Introduced in notebook 01."""
    return (latent.weight * latent.prior.kl(latent.q, latent.z)).sum(0).mean()


def decomposed_kl(n_obs: int, stratified: bool = True) -> Callable[[Latent], dict[str, Tensor]]:
    """The KL of β-TCVAE in three parts, nats per sample, for a training set of `n_obs` samples.

    `mutual_information` E[log q(z|x) − log q(z)], `total_correlation` E[log q(z) − Σ log q(z_d)] and `dimension_wise`
    E[Σ (log q(z_d) − log p(z_d))] add up to the KL, estimated with the drawn z. The marginal q(z) is estimated within
    the batch: `stratified` weighs a sample's own posterior by 1/n_obs and the others equally (the minibatch-stratified
    estimator, averaged over which sample carries its remainder: unbiased, and exact when the batch is the data set);
    otherwise all by 1/(n_obs · batch) (minibatch-weighted: a lower bound of log q(z)).

    Source: Chen et al. 2018, *Isolating Sources of Disentanglement*, equations 2-5 and appendix C. Unlike in
    AUTOENCODIX no part is cut at zero, where an estimate below zero would lose its gradient.
    Introduced in notebook 02.
    """

    def kl(latent: Latent) -> dict[str, Tensor]:
        if len(latent.z) > 1:
            raise ValueError("decomposed_kl needs one posterior per sample, not a mixture of candidates")
        q, z = Posterior(*(v[0] for v in latent.q)), latent.z[0]  # [batch, n_latent]
        pairs = Posterior(q.mean[None], q.logvar[None]).log_density(z[:, None])  # [z of i, posterior of j, n_latent]
        log_weight = batch_weights(len(z), n_obs, stratified).log().to(z)  # [batch, batch]
        joint = torch.logsumexp(pairs.sum(-1) + log_weight, 1)
        each = torch.logsumexp(pairs + log_weight[..., None], 1).sum(-1)
        return {
            "mutual_information": (q.log_density(z).sum(-1) - joint).mean(),
            "total_correlation": (joint - each).mean(),
            "dimension_wise": (each - latent.prior.log_density(z).sum(-1)).mean(),
        }

    return kl


def batch_weights(n_batch: int, n_obs: int, stratified: bool) -> Tensor:
    """Weight [i, j] of sample j's posterior in the estimate of q(z_i), for `decomposed_kl`."""
    if not stratified:
        return torch.full((n_batch, n_batch), 1 / (n_obs * n_batch), dtype=torch.float64)
    n_obs = max(n_obs, n_batch)
    others = (n_obs - 1) / (n_obs * max(n_batch - 1, 1))
    return torch.full((n_batch, n_batch), others, dtype=torch.float64).fill_diagonal_(1 / n_obs)


def mmd(latent: Latent) -> Tensor:
    """Squared maximum mean discrepancy between the batch's codes and as many draws from the prior, in [0, 2].

    The kernel is exp(−‖x − y‖² / n_latent) (InfoVAE, Zhao et al. 2017, with the bandwidth of a unit Gaussian);
    the original divides by n_latent twice, which flattens it. A dimensionless number, not nats.
    Introduced in notebook 01.
    """
    z = latent.z.flatten(0, 1)
    draws = latent.prior.sample(len(z), latent.generator, z.device)
    return squared_mmd(z, draws)


def squared_mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (1.0,)) -> Tensor:
    """Biased (V-statistic, never negative) squared MMD of x [n, d] and y [m, d].

    The kernel is the mean of exp(−‖x − y‖² / (b d)) over bandwidths b. Introduced in notebook 01.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = squared_distance(a, b) / a.shape[-1]
        return torch.stack([torch.exp(-distance / width).mean() for width in bandwidths]).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m], with a gradient that is finite at zero distance."""
    cross = a @ b.T
    return (a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * cross).clamp(min=0)


# --- terms that make the latent spaces of several encoders one (notebook 04) ----------------------------------------


def kl_each(latent: Latent) -> dict[str, Tensor]:
    """KL(q ‖ prior) of every encoder's own posterior, nats per sample, by name of the encoder's modalities.

    Introduced in notebook 04.
    """
    each = latent.prior.kl(latent.q, latent.z) * (latent.weight > 0)  # [k, batch]
    return dict(zip(names_of(latent), each.mean(1), strict=True))


def paired(latent: Latent) -> Tensor:
    """Distance between the draws of every two encoders for samples that both saw: Σ_d |z − z′| / n_latent, averaged
    over those samples of the batch and over the pairs of encoders that have any; zero where none has (AUTOENCODIX,
    X-modalix). Introduced in notebook 04.
    """
    pairs = [(a, b) for a, b in ordered_pairs(len(latent.z)) if a < b]
    apart = torch.stack([(latent.z[a] - latent.z[b]).abs().mean(-1) for a, b in pairs])  # [n_pairs, batch]
    both = torch.stack([(latent.weight[a] > 0) & (latent.weight[b] > 0) for a, b in pairs])
    return balanced(apart, both)


def translation(latent: Latent, to: str | None = None) -> dict[str, Tensor]:
    """How much less likely what one modality's draw says of another is than the data themselves, nats per sample.

    log p(x_n | x_n) − log p(x_n | z_m), half the deviance, for every ordered pair of encoders, over samples where both
    are measured; terms `<from> to <to>`, of all or of those that end at modality `to`. With it translations are
    trained and not only hoped for; the original has no such term. Introduced in notebook 04.
    """
    seen, names, terms = latent.weight > 0, names_of(latent), {}
    for a, b in ordered_pairs(len(seen)):
        read = latent.model.encoders[b].modalities
        if to is not None and to not in read:
            continue
        each = [nll_from(latent, a, m, seen[a] & seen[b], above_best=True) for m in read]
        terms[f"{names[a]} to {names[b]}"] = torch.stack(each).sum()
    return terms


def cycle(latent: Latent) -> Tensor:
    """There and back: each posterior mean is decoded into another modality and encoded again, Σ_d |μ − μ′| / n_latent,
    averaged over samples and ordered pairs of encoders. Needs no pairs. Encoders work as in evaluation on the way back,
    so that made-up data enter no running statistics; counts get the mean depth of the batch. After Zhu et al. 2017
    (CycleGAN), in the latent space. Introduced in notebook 04.
    """
    distances = [latent.z.sum() * 0]
    for a, b in ordered_pairs(len(latent.z)):
        rows = (latent.weight[a] > 0).nonzero()[:, 0]
        there, part = latent.model.encoders[b], latent.batch[rows]
        if len(rows) > 1 and all(m in part.x for m in there.modalities):
            start = latent.q.mean[a][rows]
            depth = {m: total[total > 0].mean().expand_as(part.library[m]) for m, total in latent.batch.library.items()}
            told = latent.model.decode(start, depth, only=there.modalities[0])
            training, _ = there.training, there.eval()
            back = there(Batch({m: told[m].mean for m in there.modalities}, part.mask, depth, rows)).mean
            there.train(training)
            distances.append((start - back).abs().mean())
    return torch.stack(distances).sum() / max(len(distances) - 1, 1)


class Adversary(nn.Module):
    """Hides from which encoder a draw comes. A classifier learns to tell the modalities apart; the encoders learn to
    make its answer uniform, in the same step.

    The value is what the encoders minimise, KL(uniform ‖ classifier) ≥ 0 in nats, zero where the modalities cannot be
    told apart. The classifier's own loss, cross-entropy plus `smooth` × the squared gradient of its answer in z, adds a
    gradient and no value, and each side's gradient is kept from the other's parameters. Without the smoothness the two
    chase each other in circles. Modalities count equally, however many samples they have. The classifier trains at
    `rate` times the learning rate, since it has to keep up.

    After Ganin and Lempitsky 2015; the encoders' loss is that of Tzeng et al. 2015, the smoothness that of Mescheder et
    al. 2018. Under a weight of zero the classifier learns nothing either. (The original trained its classifier once per
    epoch, on targets that teach nothing: see the notebook.) Introduced in notebook 04.
    """

    def __init__(self, n_latent: int, n_modalities: int, n_hidden: int = 64, smooth: float = 0.1, rate: float = 5.0):
        super().__init__()
        self.smooth, self.rate = smooth, rate
        self.classifier = classifier(n_latent, n_hidden, n_modalities)

    def forward(self, latent: Latent) -> Tensor:
        seen = latent.weight > 0  # [k, batch]
        guess = unmoved(self.classifier, latent.z)  # [k, batch, k]
        confusion = balanced(-guess.mean(-1) - math.log(len(seen)), seen)
        if not torch.is_grad_enabled():
            return confusion
        error = self.error(latent.z.detach().requires_grad_(), seen)
        return confusion + error - error.detach()

    def error(self, z: Tensor, seen: Tensor) -> Tensor:
        """Loss of the classifier on draws z [k, batch, n_latent], nats, with its smoothness."""
        told = F.log_softmax(self.classifier(z), -1)
        right = torch.stack([told[k, :, k] for k in range(len(z))])  # [k, batch]
        return balanced(self.smooth * squared_slope(right, z) - right, seen)

    def told(self, z: Tensor) -> Tensor:
        """Which encoder each z [n, n_latent] comes from, in the classifier's opinion, [n]."""
        return self.classifier(z).argmax(-1)


class ClassCentres(nn.Module):
    """Distance of each draw to the centre of its class, Σ_d |z − c| / n_latent, averaged over labelled samples.

    A class centre is the mean over modalities of running means, per class and modality, of the latent draws; it moves
    in training with `momentum` and carries no gradient. This is what aligns modalities that share no sample.
    `column`: the covariate with the classes (`Samples(covariates=[column])`), of `n_classes`; samples without a class
    (code −1) are left out. Source: AUTOENCODIX, X-modalix, with one centre for all modalities, in which each counts
    equally. Introduced in notebook 04.
    """

    def __init__(self, column: str, n_classes: int, n_latent: int, n_modalities: int, momentum: float = 0.9):
        super().__init__()
        self.column, self.n_classes, self.momentum = column, n_classes, momentum
        self.register_buffer("mean", torch.zeros(n_modalities, n_classes, n_latent))
        self.register_buffer("met", torch.zeros(n_modalities, n_classes, dtype=torch.bool))

    @property
    def centres(self) -> Tensor:
        """[n_classes, n_latent]; zero for a class never met."""
        met = self.met[..., None].to(self.mean.dtype)
        return (self.mean * met).sum(0) / met.sum(0).clamp(min=1)

    def forward(self, latent: Latent) -> Tensor:
        code = latent.batch.covariates[self.column]
        member = F.one_hot(code.clamp(min=0), self.mean.shape[1]) * (code >= 0)[:, None]  # [batch, n_classes]
        seen = (latent.weight > 0)[..., None] * member[None]  # [k, batch, n_classes]
        seen = seen.to(latent.z.dtype)
        if self.training:
            self.move(seen, latent.z.detach())
        apart = (latent.z - self.centres[code.clamp(min=0)]).abs().mean(-1)  # [k, batch]
        return balanced(apart, seen.sum(-1) > 0)

    def move(self, seen: Tensor, z: Tensor) -> None:
        """Running means per modality and class towards those of a batch."""
        count = seen.sum(1)  # [k, n_classes]
        now = (torch.einsum("kbc,kbd->kcd", seen, z) / count.clamp(min=1)[..., None]).to(self.mean.dtype)
        step = torch.where(self.met, 1 - self.momentum, 1.0) * (count > 0)
        self.mean.lerp_(now, step[..., None].to(self.mean.dtype))
        self.met |= count > 0


def nll_from(latent: Latent, k: int, modality: str, rows: Tensor, above_best: bool = False) -> Tensor:
    """−log p(x | z) of a modality decoded from candidate `k`, nats, over the samples `rows` [batch] (True: counted),
    as a mean over all samples of the batch; only those pass through the decoder. `above_best` leaves out what the best
    of all predictions, the data, would cost too. Introduced in notebook 04.
    """
    if modality not in latent.batch.mask:
        return latent.z.sum() * 0
    chosen = (rows & latent.batch.mask[modality]).nonzero()[:, 0]
    if len(chosen) < 1 + latent.model.training:  # batch normalisation cannot learn from one
        return latent.z.sum() * 0
    whole = len(chosen) == len(latent.batch)
    part, z = (latent.batch, latent.z[k]) if whole else (latent.batch[chosen], latent.z[k][chosen])
    p = latent.model.decode(z, part.library, only=modality)[modality]
    value = log_likelihood(p, part.stored(modality)).sum()
    best = p.saturated(part.x[modality]).sum() if above_best else 0.0
    return (best - value) / len(latent.batch)


def balanced(values: Tensor, seen: Tensor) -> Tensor:
    """Mean of values [k, batch] over those seen per encoder, then over encoders that saw any."""
    seen = seen.to(values.dtype)
    each = (values * seen).sum(1) / seen.sum(1).clamp(min=1)
    return each.sum() / (seen.sum(1) > 0).sum().clamp(min=1)


def names_of(latent: Latent) -> list[str]:
    """What the encoders read, in words: "rna", "rna and protein"."""
    return [" and ".join(encoder.modalities) for encoder in latent.model.encoders]


def ordered_pairs(n: int) -> list[tuple[int, int]]:
    """(0, 1), (1, 0), …: all ordered pairs of different numbers below n."""
    return [(a, b) for a in range(n) for b in range(n) if a != b]


def classifier(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Two hidden layers with ReLU, from a latent to logits. Introduced in notebook 04."""
    first, second = linear(n_in, n_hidden), linear(n_hidden, n_hidden)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), linear(n_hidden, n_out))


def unmoved(network: nn.Module, z: Tensor) -> Tensor:
    """Log probabilities that a classifier gives z, with a gradient in z and none in its parameters."""
    fixed = {name: value.detach() for name, value in network.named_parameters()}
    return F.log_softmax(torch.func.functional_call(network, fixed, z), -1)


def squared_slope(right: Tensor, z: Tensor) -> Tensor:
    """Squared gradient of what a classifier gives the true class [...] in z [..., n_latent], [...]."""
    return torch.autograd.grad(right.sum(), z, create_graph=True)[0].square().sum(-1)
