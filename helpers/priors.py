"""Distributions over the latent space before any data is seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from helpers.encoders import AT_OWN_PACE, Posterior
from helpers.wording import few

BASAL = "basal"  # the part of a latent space that is left once covariates have theirs


class StandardNormal(nn.Module):
    """N(0, I) in `n_latent` dimensions. Introduced in notebook 01."""

    def __init__(self, n_latent: int):
        super().__init__()
        self.n_latent = n_latent

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        """KL(q ‖ N(0, I)) in nats, [...], in closed form: ½ Σ (μ² + σ² − 1 − log σ²); `z` is not needed."""
        if q.logvar is None:
            raise ValueError("a point posterior has no KL divergence: use a stochastic encoder or drop the penalty")
        return 0.5 * (q.mean.square() + q.logvar.exp() - 1.0 - q.logvar).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """log p of every dimension by itself, nats, of the shape of `z`: the prior factorises."""
        return -0.5 * (z.square() + math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """Draws [n, n_latent]."""
        return torch.randn(n, self.n_latent, generator=generator, device=device)


class GaussianMixture(nn.Module):
    """Σ_k π_k N(μ_k, Σ_k) in `n_latent` dimensions, learned with the codes: the prior of the DGD.

    Its parameters φ have priors of their own (`log_prior`): a softball of radius `scale` and `sharpness` on each mean,
    a symmetric Dirichlet of concentration `alpha` on the weights, and on the negative log-variances a normal around
    −2 log `sd` of standard deviation `spread`. `sd` is also where all components start; unless given, a fifth of
    `scale` / `n_components`, as published. `covariance`: "diagonal", one variance per component and dimension;
    "isotropic", one per component; "fixed", `sd`² for all, not learned. Means start uniformly in the ball (drawn from
    `generator`); `start_at` places them among codes. An optimiser that knows `rate` learns φ that many times as fast.

    Raises `ValueError` for an unknown covariance, fewer than one component, or numbers that are not positive. Source:
    Schuster and Krogh 2023 (Bioinformatics 39:btad497); the softball is normalised in any number of dimensions, unlike
    there. Introduced in notebook 05.
    """

    rate, habits = 10.0, AT_OWN_PACE

    def __init__(
        self,
        n_latent: int,
        n_components: int,
        covariance: str = "diagonal",
        scale: float = 2.0,
        sharpness: float = 5.0,
        alpha: float = 1.0,
        sd: float | None = None,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        sd = 0.2 * scale / max(n_components, 1) if sd is None else sd
        if n_components < 1 or min(n_latent, scale, sharpness, alpha, sd, spread) <= 0:
            raise ValueError(
                f"a mixture needs one component or more and positive n_latent, scale, sharpness, alpha, sd and spread, "
                f"got {n_components} components and {n_latent}, {scale}, {sharpness}, {alpha}, {sd}, {spread}"
            )
        shapes = {"diagonal": (n_components, n_latent), "isotropic": (n_components, 1), "fixed": (n_components, 1)}
        if covariance not in shapes:
            raise ValueError(f"covariance must be one of {', '.join(shapes)}, got {covariance!r}")
        self.n_latent, self.n_components = n_latent, n_components
        self.alpha, self.spread = alpha, spread
        self.register_buffer("sd", torch.tensor(float(sd)))
        self.softball = Softball(n_latent, scale, sharpness)
        self.mean = nn.Parameter(self.softball.uniform(n_components, generator))
        self.logits = nn.Parameter(torch.zeros(n_components))  # π = softmax(logits)
        self.neg_log_var = nn.Parameter(torch.full(shapes[covariance], -2 * math.log(sd)), covariance != "fixed")

    def joint(self, z: Tensor) -> Tensor:
        """log π_k + log N(z | μ_k, Σ_k) of every component, nats: z [..., n_latent] -> [..., n_components]."""
        b = self.neg_log_var.expand(self.n_components, self.n_latent)
        square = ((z[..., None, :] - self.mean).square() * b.exp()).sum(-1)
        return torch.log_softmax(self.logits, 0) + 0.5 * (b.sum(-1) - square - self.n_latent * math.log(2 * math.pi))

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z | φ), nats: z [..., n_latent] -> [...].

        `labels` [...]: the component that a sample belongs to, −1 where unknown. Of a labelled sample only its own
        component speaks, log π_c + log N(z | μ_c, Σ_c) (the supervised and semi-supervised DGD). Raises `ValueError`
        for labels that no component stands for.
        """
        joint = self.joint(z)
        if labels is None:
            return torch.logsumexp(joint, -1)
        if labels.numel() and int(labels.max()) >= self.n_components:
            raise ValueError(
                f"label {int(labels.max())} has no component: {self.n_components} components stand for labels 0 … "
                f"{self.n_components - 1}; give the mixture as many components as there are classes, or more"
            )
        own = joint.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return torch.where(labels >= 0, own, torch.logsumexp(joint, -1))

    def log_prior(self) -> Tensor:
        """log p(φ), nats, a scalar: softball on means, Dirichlet on weights, normal on negative log-variances.

        It counts once per data set. Losses are per sample, so their share of it is log p(φ) / n_obs. The published
        code adds it for every sample, n_obs times, which for the variances is the same as a `spread` of n_obs^(−½).
        Without that nothing keeps codes and variances from shrinking together, since the density of codes then grows
        by more than any reconstruction loses.
        """
        k = self.n_components
        weights = math.lgamma(k * self.alpha) - k * math.lgamma(self.alpha)
        weights = weights + (self.alpha - 1) * torch.log_softmax(self.logits, 0).sum()
        total = self.softball.log_prob(self.mean).sum() + weights
        if not self.neg_log_var.requires_grad:
            return total
        off = (self.neg_log_var + 2 * self.sd.log()) / self.spread
        return total - (0.5 * off.square() + math.log(self.spread * math.sqrt(2 * math.pi))).sum()

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(k | z), [..., n_components], sums to 1."""
        return torch.softmax(self.joint(z), -1)

    @torch.no_grad()
    def extended(self, z: Tensor) -> GaussianMixture:
        """The mixture with one more component: around codes z [n, n_latent], of the others' mean variance, and of a
        weight as if it had their share of samples. Introduced in notebook 06.
        """
        more = copy.deepcopy(self)
        more.n_components += 1
        more.mean = nn.Parameter(torch.cat([self.mean, z.to(self.mean).mean(0, keepdim=True)]))
        more.logits = nn.Parameter(torch.cat([self.logits, self.logits.mean()[None]]))
        wider = torch.cat([self.neg_log_var, self.neg_log_var.mean(0, keepdim=True)])
        more.neg_log_var = nn.Parameter(wider, self.neg_log_var.requires_grad)
        return more

    @torch.no_grad()
    def only(self, k: int) -> GaussianMixture:
        """Component k by itself. Introduced in notebook 06."""
        alone = copy.deepcopy(self)
        alone.n_components = 1
        alone.mean = nn.Parameter(self.mean[k : k + 1].clone())
        alone.logits = nn.Parameter(torch.zeros_like(self.logits[:1]))
        alone.neg_log_var = nn.Parameter(self.neg_log_var[k : k + 1].clone(), self.neg_log_var.requires_grad)
        return alone

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        """KL(q ‖ p) in nats, [...], estimated by the draw z: log q(z) − log p(z); it has no closed form."""
        if q.logvar is None:
            raise ValueError("a point posterior has no KL divergence: use log_prob, or a stochastic encoder")
        return q.log_density(z).sum(-1) - self.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """Draws [n, n_latent]."""
        chosen = torch.multinomial(torch.softmax(self.logits.detach(), 0), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.n_latent, generator=generator, device=self.mean.device)
        b = self.neg_log_var.detach().expand(self.n_components, self.n_latent)
        return (self.mean.detach()[chosen] + noise * torch.exp(-0.5 * b[chosen])).to(device or self.mean.device)

    @torch.no_grad()
    def start_at(self, z: Tensor, labels: Tensor | None = None, seed: int = 0, restarts: int = 10) -> None:
        """Place the components at the clusters of codes z [n, n_latent]: k-means from the best of `restarts`
        k-means++ starts; weights and variances are those of the clusters, shrunk towards the start by one pseudo-count.
        With `labels` [n] (−1 where unknown) clusters are numbered to agree with them as far as they can.

        Where variances are learned, `sd` becomes 0.7 times the root mean square deviation of codes within clusters, in
        place of one that knows the number of components but not the codes. Much narrower components draw codes
        together into as many clumps as there are components; at 1, neighbouring clusters run into each other with
        some seeds (measured on simulated cells).

        Raises `ValueError` for fewer codes than components. Introduced in notebook 05.
        """
        from sklearn.cluster import KMeans

        if len(z) < self.n_components:
            raise ValueError(f"{len(z)} codes cannot start {self.n_components} components: give more samples")
        found = KMeans(self.n_components, n_init=restarts, random_state=seed).fit(z.double().cpu().numpy())
        order = numbering(found.labels_, labels, self.n_components)  # component -> cluster
        own = torch.from_numpy(np.argsort(order)[found.labels_]).long().to(z.device)
        member = nn.functional.one_hot(own, self.n_components).to(z.dtype)  # [n, n_components]
        count = member.sum(0)
        mean = torch.from_numpy(found.cluster_centers_[order]).to(z)
        self.mean.copy_(mean)
        self.logits.copy_(torch.log((count + 1) / (count + 1).sum()))
        if self.neg_log_var.requires_grad:
            square = (z - mean[own]).square()
            self.sd.copy_(0.7 * ((square.sum() / self.n_latent + self.sd**2) / (len(z) + 1)).sqrt())
            var = (member.T @ square + self.sd**2) / (count + 1)[:, None]
            wide = var if self.neg_log_var.shape[1] > 1 else var.mean(1, keepdim=True)
            self.neg_log_var.copy_(-wide.log())


class Together(nn.Module):
    """Independent mixtures of neighbouring parts of z: log p(z) is the sum over parts.

    `parts`: name -> mixture, in the order of the dimensions; the part `BASAL` is what components cluster by, the others
    stand for covariates (multiDGD). `place`: name -> slice of the latent dimensions. Raises `ValueError` without a part
    `BASAL`. Source: Schuster et al. 2024 (Nat Commun 15:10031). Introduced in notebook 06.
    """

    rate, habits = 10.0, AT_OWN_PACE

    def __init__(self, parts: Mapping[str, GaussianMixture]):
        super().__init__()
        if BASAL not in parts:
            raise ValueError(f"parts are {few(parts)}; one of them must be {BASAL!r}")
        self.names, self.mixtures = tuple(parts), nn.ModuleList(parts.values())
        ends = np.cumsum([part.n_latent for part in parts.values()]).tolist()
        self.n_latent = ends[-1]
        self.place = {name: slice(a, b) for name, a, b in zip(parts, [0, *ends], ends, strict=False)}

    @property
    def parts(self) -> dict[str, GaussianMixture]:
        """Name -> mixture."""
        return dict(zip(self.names, self.mixtures, strict=True))

    def log_prob(self, z: Tensor, labels: Mapping[str, Tensor] | None = None) -> Tensor:
        """log p(z | φ), nats: z [..., n_latent] -> [...]; `labels`: part -> classes [...], as in `GaussianMixture`."""
        each = [part.log_prob(z[..., self.place[m]], (labels or {}).get(m)) for m, part in self.parts.items()]
        return torch.stack(each).sum(0)

    def log_prior(self) -> Tensor:
        """log p(φ) of all parts, nats, a scalar."""
        return torch.stack([part.log_prior() for part in self.mixtures]).sum()

    def sample(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """Draws [n, n_latent]."""
        return torch.cat([part.sample(n, generator, device) for part in self.mixtures], -1)

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        """KL(q ‖ p) in nats, [...], estimated by the draw z."""
        if q.logvar is None:
            raise ValueError("a point posterior has no KL divergence: use log_prob, or a stochastic encoder")
        return q.log_density(z).sum(-1) - self.log_prob(z)


def parts_of(prior: nn.Module) -> dict[str, tuple[slice, GaussianMixture]]:
    """Part -> its dimensions and its mixture; none where the prior is no mixture. Introduced in notebook 06."""
    if isinstance(prior, GaussianMixture):
        return {BASAL: (slice(0, prior.n_latent), prior)}
    return {name: (prior.place[name], part) for name, part in prior.parts.items()} if hasattr(prior, "parts") else {}


def numbering(clusters: np.ndarray, labels: Tensor | None, n: int) -> np.ndarray:
    """For each of `n` labels the cluster that shares most samples with it, one each (Kuhn 1955); 0, 1, … without.

    Introduced in notebook 05.
    """
    from scipy.optimize import linear_sum_assignment

    if labels is None:
        return np.arange(n)
    known = labels.cpu().numpy() >= 0
    shared = np.zeros((n, n))
    np.add.at(shared, (labels.cpu().numpy()[known], clusters[known]), 1)
    return linear_sum_assignment(-shared)[1]


class Softball:
    """A ball with a soft edge: p(μ) ∝ 1 / (1 + exp(a (|μ| / R − 1))), radius R = `scale`, a = `sharpness`.

    Published with the volume of the hard ball as its normaliser, right only for a ≫ n_latent (in 20 dimensions and at
    a = 5, the density is 3.8 million times too large, and its mass lies around 4 R). Here the normaliser is exact:
    area of the sphere · R^d · ∫ t^(d−1) / (1 + exp(a (t − 1))) dt, a Fermi–Dirac integral of whole order, which is
    a finite sum (Jonquière's inversion of the polylogarithm) and stays finite at any sharpness.
    Introduced in notebook 05.
    """

    def __init__(self, n_latent: int, scale: float = 2.0, sharpness: float = 5.0):
        self.n_latent, self.scale, self.sharpness = n_latent, scale, sharpness
        area = math.log(2) + 0.5 * n_latent * math.log(math.pi) - math.lgamma(0.5 * n_latent)
        self.log_volume = area + n_latent * math.log(scale) + log_fermi(n_latent, sharpness)

    def log_prob(self, mean: Tensor) -> Tensor:
        """Log density, nats: [..., n_latent] -> [...]."""
        edge = self.sharpness * (mean.square().sum(-1).clamp(min=1e-24).sqrt() / self.scale - 1)
        return -nn.functional.softplus(edge) - self.log_volume

    def uniform(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws [n, n_latent], uniform in the ball of radius `scale`, where the published means start."""
        way = torch.randn(n, self.n_latent, generator=generator)
        radius = self.scale * torch.rand(n, 1, generator=generator) ** (1 / self.n_latent)
        return radius * way / way.norm(dim=1, keepdim=True)


def log_fermi(d: int, a: float) -> float:
    """log ∫₀^∞ t^(d−1) / (1 + exp(a (t − 1))) dt for whole d ≥ 1 and a > 0.

    The integral is Γ(d) a^(−d) times −Li_d(−e^a) = 2 Σ_k η(2k) a^(d−2k) / (d−2k)! + (−1)^d Li_d(−e^(−a)), k ≤ d/2,
    with Dirichlet's η. No term of the sum is negative. Introduced in notebook 05.
    """
    from scipy.special import gammaln, zeta

    k = np.arange(1, d // 2 + 1)
    eta = np.concatenate([[0.5], (1 - 2.0 ** (1 - 2 * k)) * zeta(2 * k)])
    left = d - 2 * np.arange(d // 2 + 1)
    whole = np.logaddexp.reduce(np.log(2 * eta) + left * math.log(a) - gammaln(left + 1))
    n = np.arange(1, 20_001)
    steps = np.cumsum((-1.0) ** n * np.exp(-a * n - d * np.log(n)))
    rest = (-1) ** d * 0.5 * (steps[-1] + steps[-2])  # the mean of two partial sums of an alternating series
    return float(gammaln(d) - d * math.log(a) + whole + np.log1p(rest * np.exp(-whole)))
