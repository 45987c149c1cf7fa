"""Private inference with torchvision's ResNet-18, unmodified: python experiments/private_resnet18.py

A model's owner and a client let three parties classify images: nobody but the owner has the weights, nobody but the
client sees the images and the answers. The script runs the model from torchvision's own package on shares and in the
clear, says how well the outputs agree, and prints what each module costs in rounds, bytes and seconds.

    python experiments/private_resnet18.py --size 32 --images 4
    python experiments/private_resnet18.py --model mobilenet_v2 --depth 2
    python experiments/private_resnet18.py --check         name the first operation that leaves its range, if any does

No trained weights ship with encml: they are random, and the statistics of the batch normalisations are made realistic
by showing the model real images first (MNIST, enlarged, as three equal colours). All three parties live in this
process, which protects nothing; rounds, bytes and errors are those of real parties.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from private_inference import arguments_of, at_least, compare, console, run
from torch import Tensor, nn

from encml.data import load_mnist, to_float

# isort: split
from torchvision import models  # after encml.data, which makes it work in an installation without CUDA

MODELS = {"resnet18": "11.7 million weights", "vgg16": "138 million", "mobilenet_v2": "3.5 million"}
BOUNDS = {"resnet18": 2.0**-8, "vgg16": 2.0**-8, "mobilenet_v2": 2.0**-5}
"""What rounding to 16 fraction bits may amount to, as a share of the largest output. Most of it is the rounding of the
weights. In an untrained MobileNet some channels hardly vary, and what is left of them is divided by almost nothing."""
WARM_UP_BATCHES, WARM_UP_BATCH = 4, 32


def enlarged(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 28, 28) to float32 (N, 3, size, size)."""
    grey = F.interpolate(to_float(images), size=(size, size), mode="bilinear", antialias=True)
    return grey.expand(-1, 3, -1, -1).contiguous()


def with_realistic_statistics(model: nn.Module, images: Tensor, size: int) -> nn.Module:
    """Let batch normalisations average over real images, then fix them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all batches
    model.train()
    with torch.no_grad():
        for batch in images[: WARM_UP_BATCHES * WARM_UP_BATCH].split(WARM_UP_BATCH):
            model(enlarged(batch, size))
    return model.eval()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=at_least(1), default=1, help="classified in one batch (default: 1)")
    parser.add_argument("--size", type=at_least(32), default=64, help="of the images, in pixels, from 32 (default: 64)")
    parser.add_argument("--data", type=Path, help="a folder that holds MNIST/raw (default: the subset in the package)")


def main() -> bool:
    """Build the model, compare it with itself on shares."""
    arguments = arguments_of(str(__doc__), MODELS, options)
    torch.manual_seed(arguments.seed)
    mnist = load_mnist(arguments.data)
    images = enlarged(mnist.test_images[: arguments.images], arguments.size)
    console.print(
        f"torchvision's {arguments.model}, random weights; images in a batch: {len(images)}, from {mnist.source}"
    )
    with console.status("Showing it real images for its batch normalisations"):
        model = with_realistic_statistics(
            models.get_model(arguments.model, weights=None), mnist.train_images, arguments.size
        )
    return compare(model, images, arguments, BOUNDS[arguments.model])


if __name__ == "__main__":
    run(main)
