"""The network of the demonstration."""

from __future__ import annotations

from torch import nn


def seed_network() -> nn.Sequential:
    """A small convolutional network for 28 x 28 grey images (N, 1, 28, 28), ten classes, 29,066 parameters.

    Three times convolution 3 x 3, average pooling, ReLU (16, 32, 64 channels), then one linear layer. Pooling before
    the ReLU is deliberate: on shares a comparison is dear and a mean is free, and so only a quarter of the elements is
    compared.
    """
    layers: list[nn.Module] = []
    channels = 1
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.AvgPool2d(2), nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 3 * 3, 10))
