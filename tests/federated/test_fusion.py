"""Fused models compute the same function with the same parameters; what cannot be fused is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from encml.federated.fusion import PooledConv2d, fused
from encml.models import seed_network


def same(model: nn.Module, x: torch.Tensor) -> None:
    """Outputs, gradients, names and order of parameters agree, and the model itself is untouched."""
    twin = fused(model)
    before = [p.detach().clone() for p in model.parameters()]
    outputs = [m(x) for m in (model, twin)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    for p, q, kept in zip(model.parameters(), twin.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)
        assert p.data_ptr() != q.data_ptr()
        assert torch.equal(p, kept)


def test_the_seed_network_is_what_the_documents_say() -> None:
    model = seed_network()
    assert sum(p.numel() for p in model.parameters()) == 29_066
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Conv2d", "AvgPool2d", "ReLU"] * 3 + ["Flatten", "Linear"]


def test_the_seed_network_is_fused_throughout() -> None:
    model = seed_network().double()
    assert sum(isinstance(m, PooledConv2d) for m in fused(model).modules()) == 3
    same(model, torch.randn(3, 1, 28, 28, dtype=torch.float64))


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "padding", "groups"), [(3, 1, 1), ((3, 5), (0, 2), 2), (1, 0, 4), (2, 3, 1)])
def test_any_kernel_padding_groups_and_pooling(
    kernel: int | tuple[int, int], padding: int | tuple[int, int], groups: int, bias: bool, pool: int
) -> None:
    layer = nn.Conv2d(4, 8, kernel, padding=padding, groups=groups, bias=bias)
    model = nn.Sequential(nn.Tanh(), nn.Sequential(layer, nn.AvgPool2d(pool)), nn.Flatten()).double()
    assert any(isinstance(m, PooledConv2d) for m in fused(model).modules())
    same(model, torch.randn(2, 4, 11, 14, dtype=torch.float64))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(1, 2, 3, stride=2), nn.AvgPool2d(2)),
        (nn.Conv2d(1, 2, 3, dilation=2), nn.AvgPool2d(2)),
        (nn.Conv2d(1, 2, 3, padding="same"), nn.AvgPool2d(2)),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(2)),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d(3, stride=2)),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d((2, 3))),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, padding=1)),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, ceil_mode=True)),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, divisor_override=3)),
        (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2)),
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)),
    ],
)
def test_what_cannot_be_fused_is_left_alone(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers).double()
    assert not any(isinstance(m, PooledConv2d) for m in fused(model).modules())
    same(model, torch.randn(2, 1, 12, 12, dtype=torch.float64))


def test_layers_with_hooks_are_left_alone() -> None:
    layer = nn.Conv2d(1, 2, 3)
    layer.register_forward_hook(lambda module, args, output: None)
    assert not any(isinstance(m, PooledConv2d) for m in fused(nn.Sequential(layer, nn.AvgPool2d(2))).modules())


def test_a_fused_layer_says_so() -> None:
    assert "pool=2" in repr(fused(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2))))
