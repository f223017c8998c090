"""Seconds per epoch of the smallest hand-written loop on resident tensors; prints one line of JSON.

    python benchmarks/bare_loop.py --model scvi     the network, loss and optimiser of scvi-tools' SCVI
    python benchmarks/bare_loop.py --model varix    the network, loss and optimiser of autoencodix' Varix

This is the yardstick: what the same arithmetic costs in torch with nothing around it. It uses torch, the
simulated data and the stopwatch, nothing of the package `helpers`, and runs in any of the environments. No
number leaves the device inside an epoch, a batch is one index selection from a random permutation, and the
optimiser is torch's fused one (`--plain` takes the default one, which the peers use).
"""

import simulated
import stopwatch
import torch
from torch import Tensor, nn


class ScviNet(nn.Module):
    """SCVI's network for one batch of cells and gene-wise dispersion (Lopez et al. 2018), loss included."""

    averages = True  # the optimiser steps on the mean over the batch

    def __init__(self, n_vars: int, n_hidden: int = 128, n_latent: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_scvi_stack(n_vars, n_hidden, dropout=0.1))
        self.mean = nn.Linear(n_hidden, n_latent)
        self.logvar = nn.Linear(n_hidden, n_latent)
        self.decoder = nn.Sequential(*_scvi_stack(n_latent, n_hidden, dropout=0.0))
        self.scale = nn.Linear(n_hidden, n_vars)
        self.log_theta = nn.Parameter(torch.randn(n_vars))

    def forward(self, x: Tensor, epoch: int) -> Tensor:
        """Loss summed over the batch, in nats, with the KL term warmed up over 400 epochs as SCVI does."""
        hidden = self.encoder(torch.log1p(x))
        mean, var = self.mean(hidden), self.logvar(hidden).exp() + 1e-4
        z = mean + var.sqrt() * torch.randn_like(mean)
        rate = x.sum(1, keepdim=True) * self.scale(self.decoder(z)).softmax(-1)
        nll = -negative_binomial(x, rate, self.log_theta.exp()).sum(-1)
        return (nll + epoch / 400 * gaussian_kl(mean, var)).sum()


class VarixNet(nn.Module):
    """Varix with two hidden layers, each a quarter of the one before, loss included."""

    averages = False  # the optimiser steps on the sum over the batch

    def __init__(self, n_vars: int, n_latent: int = 8, beta: float = 0.1) -> None:
        super().__init__()
        first = max(n_vars // 4, n_latent)
        second = max(first // 4, n_latent)
        self.beta = beta
        self.encoder = nn.Sequential(*_varix_block(n_vars, first), *_varix_block(first, second))
        self.mean = nn.Linear(second, n_latent)
        self.logvar = nn.Linear(second, n_latent)
        inner = [*_varix_block(n_latent, second), *_varix_block(second, first)]
        self.decoder = nn.Sequential(*inner, nn.Linear(first, n_vars))
        self.apply(_xavier)

    def forward(self, x: Tensor, epoch: int) -> Tensor:
        """Summed squared error plus beta times the KL, both summed over the batch."""
        hidden = self.encoder(x)
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        squared = nn.functional.mse_loss(self.decoder(z), x, reduction="sum")
        return squared + self.beta * gaussian_kl(mean, logvar.exp()).sum()


def negative_binomial(x: Tensor, mu: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    """log NB(x; mean mu, inverse dispersion theta), [batch, n_vars], written out term by term."""
    log_theta_mu = torch.log(theta + mu + eps)
    gammas = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return gammas + theta * (torch.log(theta + eps) - log_theta_mu) + x * (torch.log(mu + eps) - log_theta_mu)


def gaussian_kl(mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats per sample, [batch]."""
    return 0.5 * (mean.square() + var - var.log() - 1).sum(-1)


def _scvi_stack(n_in: int, n_hidden: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in (n_in, n_hidden):
        norm = nn.BatchNorm1d(n_hidden, momentum=0.01, eps=0.001)
        layers += [nn.Linear(width, n_hidden), norm, nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return layers


def _varix_block(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.Dropout(0.1), nn.ReLU()]


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.constant_(module.bias, 0.01)


def run_epochs(
    net: ScviNet | VarixNet, x: Tensor, optimiser: torch.optim.Optimizer, n_epochs: int, batch_size: int
) -> tuple[stopwatch.Laps, float]:
    """Train; returns the laps and the mean loss per sample of the last epoch."""
    laps = stopwatch.Laps()
    for epoch in range(n_epochs):
        total = torch.zeros((), device=x.device)
        for index in torch.randperm(len(x), device=x.device).split(batch_size):
            loss = net(x[index], epoch)
            optimiser.zero_grad()
            (loss / len(index) if net.averages else loss).backward()
            optimiser.step()
            total += loss.detach()
        final = float(total) / len(x)
        laps.lap()
    return laps, final


def main() -> None:
    parser = stopwatch.arguments("Time a bare training loop.")
    parser.add_argument("--model", choices=["scvi", "varix"], required=True)
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--plain", action="store_true", help="torch's default optimiser, as the peers use it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    scvi = options.model == "scvi"
    matrix = (simulated.counts if scvi else simulated.gaussian)(
        options.n_obs or (8000 if scvi else 5000), options.n_vars, seed=options.seed
    )
    x = torch.from_numpy(matrix).to(options.device)
    net = (ScviNet if scvi else VarixNet)(options.n_vars).to(options.device)
    fused = None if options.plain else True  # one pass over the parameters in place of ten
    if scvi:
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6, fused=fused)
    else:
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, fused=fused)
    laps, final = run_epochs(net, x, optimiser, options.epochs + 1, options.batch_size)
    stopwatch.report(
        laps,
        options.epochs,
        final,
        tool=f"bare loop {options.model}" + " plain" * options.plain,
        version="",
        torch=torch.__version__,
        n_obs=len(x),
        n_vars=options.n_vars,
        widths=[layer.out_features for layer in net.encoder if isinstance(layer, nn.Linear)],
        n_latent=net.mean.out_features,
        batch_size=options.batch_size,
        threads=torch.get_num_threads(),
        device=str(x.device),
    )


if __name__ == "__main__":
    main()
