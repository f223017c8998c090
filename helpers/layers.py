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


def halvings(size: Sequence[int], smallest: int = 4) -> list[tuple[int, int]]:
    """Sizes (height, width) of an image as convolutions of stride 2 see it, from itself down to a shorter side of
    `smallest` to 2 · `smallest` − 1 pixels: as many as the size asks for. Introduced in notebook 04.
    """
    sizes = [(int(size[0]), int(size[1]))]
    while min(sizes[-1]) >= 2 * smallest:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def channel_widths(n_layers: int, width: int = 16) -> list[int]:
    """Channels after every convolution: width, 2 width, 4 width, and 8 width from then on (AUTOENCODIX's ImageVAE).

    Introduced in notebook 04.
    """
    return [width * min(2**i, 8) for i in range(n_layers)]


class Convolution(nn.Module):
    """Flat pictures [batch, height · width · channels] -> flat features [batch, n_out].

    `shape` is (height, width, channels), of any size from 8 × 8. Strided convolutions (kernel 4, stride 2, padding 1),
    with batch normalisation from the second on and LeakyReLU(0.2), halve the picture as often as its size asks for,
    rounding down where a side is odd. Source: AUTOENCODIX, Methods, image VAE. Introduced in notebook 04.
    """

    def __init__(self, shape: Sequence[int], width: int = 16):
        super().__init__()
        self.shape = check_shape(shape)
        self.sizes = halvings(shape)
        widths = [self.shape[2], *channel_widths(len(self.sizes) - 1, width)]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.body = nn.Sequential(*(conv_block(a, b, normalised=i > 0) for i, (a, b) in enumerate(pairs)))
        self.n_out = widths[-1] * self.sizes[-1][0] * self.sizes[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.unflatten(-1, self.shape).permute(0, 3, 1, 2)  # [batch, channels, height, width]
        return self.body(pictures).flatten(1)


class Deconvolution(nn.Module):
    """Features [batch, n_in] -> flat pictures [batch, height · width · channels]: the mirror image of `Convolution`.

    Where a side was odd on the way down, the transposed convolution adds the line again, so that any size comes out
    as it went in. `skip` adds a linear path from the features to the pixels, `path`, beside the convolutions, whose
    own contribution then begins at zero. Introduced in notebook 04.
    """

    def __init__(self, n_in: int, shape: Sequence[int], width: int = 16, skip: bool = False):
        super().__init__()
        self.shape = check_shape(shape)
        sizes = halvings(shape)[::-1]
        widths = [*channel_widths(len(sizes) - 1, width)[::-1], self.shape[2]]
        self.small = (widths[0], *sizes[0])
        self.begin = nn.Sequential(linear(n_in, widths[0] * sizes[0][0] * sizes[0][1]), nn.ReLU())
        blocks = []
        for i, (small, large) in enumerate(zip(sizes, sizes[1:], strict=False)):
            line = (large[0] - 2 * small[0], large[1] - 2 * small[1])  # one where the larger side is odd
            blocks.append(nn.ConvTranspose2d(widths[i], widths[i + 1], 4, 2, 1, output_padding=line))
            blocks += [nn.BatchNorm2d(widths[i + 1]), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*blocks[:-2])  # the last one speaks for the pixels themselves
        self.path = linear(n_in, int(np.prod(self.shape))) if skip else None
        if skip:
            nn.init.zeros_(self.body[-1].weight)
            nn.init.zeros_(self.body[-1].bias)

    def forward(self, h: Tensor) -> Tensor:
        pictures = self.body(self.begin(h).unflatten(-1, self.small)).permute(0, 2, 3, 1).flatten(1)
        return pictures if self.path is None else pictures + self.path(h)


def conv_block(n_in: int, n_out: int, normalised: bool = True) -> nn.Sequential:
    """Convolution of stride 2, batch normalisation where asked for, LeakyReLU(0.2). Introduced in notebook 04."""
    norm = [nn.BatchNorm2d(n_out)] if normalised else []
    return nn.Sequential(nn.Conv2d(n_in, n_out, 4, 2, 1, bias=not normalised), *norm, nn.LeakyReLU(0.2))


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(height, width, channels) of pictures; a `ValueError` where it is not that or smaller than 8 × 8."""
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 1:
        raise ValueError(f"pictures need a shape (height, width, channels) of at least 8 × 8 × 1, got {tuple(shape)}")
    return tuple(int(n) for n in shape)
