"""Dropout drops what it says and keeps the mean; its gradient is its mask."""

import pytest
import torch

from helpers.layers import Dropout, dense_stack


def test_share_dropped_and_mean_kept():
    torch.manual_seed(0)
    layer, x = Dropout(0.3), torch.ones(500, 401)
    y = layer(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / x.numel()) ** 0.5)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7), rtol=1e-4, atol=0)


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(4000, 64)) == 0).float()
    correlation = torch.corrcoef(dropped.T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_gradient_is_the_mask_and_evaluation_the_identity():
    layer, x = Dropout(0.5), torch.ones(8, 6, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert layer.eval()(x) is x and Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match="below 1, got 1"):
        Dropout(1.0)


def test_dropout_follows_the_global_seed():
    layer, x = Dropout(0.2), torch.ones(5, 7)
    drawn = [torch.manual_seed(3) and layer(x) for _ in range(2)]
    assert torch.equal(*drawn)


def test_stack_has_a_block_per_width():
    stack = dense_stack([10, 6, 3], dropout=0.1)
    assert [type(m).__name__ for m in stack[0]] == ["Linear", "BatchNorm1d", "Dropout", "ReLU"]
    assert stack(torch.randn(4, 10)).shape == (4, 3) and len(dense_stack([10])) == 0
