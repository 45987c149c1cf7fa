"""The network of the demonstration, and the four on which encrypted training is compared in the literature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

_CONVOLUTION_GAIN = 1.5  # makes up for what the pooling averages away
_LINEAR_GAIN = 0.5  # the first predictions are nearly even


def seed_network() -> nn.Sequential:
    """A small convolutional network for 28 x 28 grey images (N, 1, 28, 28), ten classes, 29,066 parameters.

    Three times convolution 3 x 3, average pooling, ReLU (16, 32, 64 channels), then one linear layer. Pooling before
    the ReLU is deliberate: on shares a comparison is dear and a mean is free, and so only a quarter of the elements is
    compared.

    The first weights, drawn from torch's generator, are those of He et al. 2015 enlarged by ``_CONVOLUTION_GAIN``,
    the biases zero. With PyTorch's own the features reach the linear layer at a standard deviation of 0.04, so that an
    image's gradient is hardly more than that of the last bias, and clipping leaves little but the noise: three epochs
    of DP-SGD at ε = 3 gave 81 to 83 % on MNIST, with these weights 94 %.
    """
    layers: list[nn.Module] = []
    channels = 1
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.AvgPool2d(2), nn.ReLU()]
        channels = wider
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 3 * 3, 10))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            deviation = _CONVOLUTION_GAIN * math.sqrt(2 / layer.weight[0].numel())
        elif isinstance(layer, nn.Linear):
            deviation = _LINEAR_GAIN / math.sqrt(layer.in_features)
        else:
            continue
        nn.init.normal_(layer.weight, std=deviation)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


_CLASSES = 10


def network_a() -> nn.Sequential:
    """784-128-128-10 with ReLU, for (N, 1, 28, 28) or (N, 784): network A of SecureML (Mohassel and Zhang 2017).

    118,282 parameters.
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, _CLASSES)
    )


def network_b() -> nn.Sequential:
    """Two convolutions and two linear layers, for (N, 1, 28, 28): network B, of MiniONN (Liu et al. 2017).

    33,542 parameters. The maximum is taken before the ReLU, which is the same function and compares a quarter as often.
    """
    return nn.Sequential(
        *_convolution(1, 16), *_convolution(16, 16), nn.Flatten(), *_dense(256, 100), nn.Linear(100, _CLASSES)
    )


def network_c() -> nn.Sequential:
    """LeNet, for (N, 1, 28, 28): network C (LeCun et al. 1998, in the form of SecureNN, Wagh et al. 2019).

    431,080 parameters; maximum and ReLU as in ``network_b``.
    """
    return nn.Sequential(
        *_convolution(1, 20), *_convolution(20, 50), nn.Flatten(), *_dense(800, 500), nn.Linear(500, _CLASSES)
    )


def network_d() -> nn.Sequential:
    """One convolution with stride 2 and two linear layers, for (N, 1, 28, 28): network D, of Chameleon (Riazi et al.
    2018) and Sarda (Agrawal et al. 2019).

    99,240 parameters.
    """
    return nn.Sequential(
        nn.Conv2d(1, 5, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        *_dense(980, 100),
        nn.Linear(100, _CLASSES),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 5), nn.MaxPool2d(2), nn.ReLU()


def _dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.ReLU()


NETWORKS: Mapping[str, Callable[[], nn.Sequential]] = MappingProxyType(
    {
        "seed_cnn": seed_network,
        "network_a": network_a,
        "network_b": network_b,
        "network_c": network_c,
        "network_d": network_d,
    }
)
"""The networks that an experiment's file can name."""
