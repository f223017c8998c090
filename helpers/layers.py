"""Layers that several encoders and decoders share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def hidden_widths(n_in: int, n_latent: int, n_layers: int = 2, factor: float = 4.0) -> list[int]:
    """Widths of the hidden layers, h_i = max(floor(h_{i-1} / factor), n_latent) with h_0 = n_in.

    `n_layers` counts hidden layers, as the paper's text does (AUTOENCODIX, equation 1). The paper's code counts
    the latent layer too, so its default of 2 is `n_layers=1` here. Introduced in notebook 01.
    """
    if factor < 1 or n_layers < 0 or n_latent < 1:
        raise ValueError(f"need factor >= 1, n_layers >= 0, n_latent >= 1; got {factor}, {n_layers}, {n_latent}")
    widths = [n_in]
    for _ in range(n_layers):
        widths.append(max(int(widths[-1] // factor), n_latent))
    return widths[1:]


def dense_block(n_in: int, n_out: int, dropout: float = 0.1) -> nn.Sequential:
    """Linear, batch normalisation, dropout, ReLU (AUTOENCODIX, Methods). Introduced in notebook 01."""
    return nn.Sequential(linear(n_in, n_out), nn.BatchNorm1d(n_out), Dropout(dropout), nn.ReLU())


class Dropout(nn.Module):
    """Each value is zero with probability `p` in training, and the others grow by 1 / (1 − p).

    On a CPU, torch draws one random number per value, which costs more than the layer's other work; here every
    64-bit draw serves four values, so that p is rounded to a multiple of 2⁻¹⁶. Introduced in notebook 01.
    """

    def __init__(self, p: float = 0.1):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p}")
        self.p, self.n_dropped = p, round(p * 2**16)  # of 2¹⁶ equally likely draws

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.n_dropped == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = bits.view(torch.int16)[: x.numel()].view_as(x)  # −2¹⁵ … 2¹⁵ − 1
        keep = (draws >= self.n_dropped - 2**15).to(x.dtype)
        return x * keep.mul_(1 / (1 - self.n_dropped / 2**16))

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def dense_stack(widths: Sequence[int], dropout: float = 0.1) -> nn.Sequential:
    """Dense blocks from widths[0] to widths[-1]; the identity for a single width. Introduced in notebook 01."""
    return nn.Sequential(*(dense_block(a, b, dropout) for a, b in zip(widths, widths[1:], strict=False)))


def linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and biases of 0.01, as published. Introduced in notebook 01."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.constant_(layer.bias, 0.01)
    return layer


class LinkedLinear(nn.Module):
    """A linear layer with weights only where `links` [n_out, n_in] says so; every other weight is exactly zero.

    A parameter exists per link and for nothing else, so that no optimiser step, no weight decay and no saved file
    can hold a weight without a link (the original masks the weights before the optimiser's step, which leaks one
    step into every forward pass and into the saved model). `nonnegative` uses absolute values as weights. An
    output without any link gives its bias. Introduced in notebook 03.
    """

    def __init__(self, links: np.ndarray, nonnegative: bool = False):
        super().__init__()
        self.n_out, self.n_in = links.shape
        self.nonnegative = nonnegative
        self.register_buffer("place", torch.from_numpy(np.flatnonzero(links)))  # [n_links] in the flat weight
        bound = torch.from_numpy(np.sqrt(6 / (links.sum(1, keepdims=True) + links.sum(0, keepdims=True) + 1e-9))[links])
        self.strength = nn.Parameter((2 * torch.rand(len(self.place)) - 1) * bound.float())  # Xavier, by link counts
        self.bias = nn.Parameter(torch.full((self.n_out,), 0.01))

    @property
    def weight(self) -> Tensor:
        """The whole matrix [n_out, n_in]."""
        strength = self.strength.abs() if self.nonnegative else self.strength
        flat = strength.new_zeros(self.n_out * self.n_in)
        return flat.index_copy(0, self.place, strength).view(self.n_out, self.n_in)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, n_in] -> [batch, n_out]."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.n_in} -> {self.n_out}, {len(self.place)} of {self.n_in * self.n_out} links"
