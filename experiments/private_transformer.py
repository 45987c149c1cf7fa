"""Private inference with Transformers and an LSTM of torch.nn, unmodified: python experiments/private_transformer.py

Three small models, each trained here in the clear for some seconds and then run on shares: nobody but the owner has the
weights, nobody but the client has the input and the answers.

    python experiments/private_transformer.py                  nn.TransformerEncoder reads a digit's rows of pixels
    python experiments/private_transformer.py --model lstm     nn.LSTM reads the same rows
    python experiments/private_transformer.py --model gpt      a decoder with a causal mask goes on with a secret text
    python experiments/private_transformer.py --check          name the first operation that leaves its range, if any

It says how well the outputs agree with those in the clear, and prints what each module costs in rounds, bytes and
seconds. All three parties live in this process, which protects nothing; rounds, bytes and errors are those of real
parties.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from private_inference import arguments_of, at_least, compare, console, run
from torch import Tensor, nn

from encml.data import CLASSES, load_mnist, to_float

MODELS = {"encoder": "a Transformer encoder", "lstm": "an LSTM", "gpt": "a decoder with a causal mask"}
BOUND = 2.0**-11
"""What rounding to 16 fraction bits may amount to, as a share of the largest output."""
ROWS, PIXELS = 28, 28
TEXT = Path(__file__).parents[1] / "README.md"
SYMBOLS = 128  # ASCII
BATCH = 64


class Encoder(nn.Module):
    """Rows of pixels (N, 28, 28) to class scores (N, 10): the mean of what a Transformer encoder makes of them."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, width)
        self.position = nn.Parameter(0.1 * torch.randn(ROWS, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(rows) + self.position).mean(1))


class Recurrent(nn.Module):
    """Rows of pixels (N, 28, 28) to class scores (N, 10): from the last state of an LSTM."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(PIXELS, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.lstm(rows)
        return self.head(states[:, -1])


class Block(nn.Module):
    """Attention to what came before, then a perceptron, each added to its input (GPT-2's order of norms)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.perceptron(self.norm2(x))


class Decoder(nn.Module):
    """Symbols (N, T) to scores of each next symbol (N, T, 128)."""

    def __init__(self, length: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).triu(1))  # True: not to be seen

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embed(symbols) + self.position
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


def trained(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    """Plain training on ``steps`` batches of inputs and targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    last = math.nan
    with console.status("Training in the clear") as status:
        for step in range(steps):
            inputs, targets = batch()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
            loss.backward()
            optimizer.step()
            last = loss.item()
            status.update(f"Training in the clear: step {step + 1} of {steps}, loss {last:.2f}")
    console.print(f"Trained in the clear for {steps} steps; the last loss is {last:.2f}")
    return model.eval()


def digits(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """A model that classifies digits by their rows, and test images."""
    mnist = load_mnist(arguments.data)
    console.print(f"Digits by their rows of pixels, from {mnist.source}")

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(mnist.train_labels), (BATCH,))
        return to_float(mnist.train_images[chosen]).squeeze(1), mnist.train_labels[chosen]

    model = trained(Encoder() if arguments.model == "encoder" else Recurrent(), batch, arguments.steps)
    return model, to_float(mnist.test_images[: arguments.inputs]).squeeze(1)


def prose(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """A model that goes on with a text, and pieces of one."""
    text = torch.tensor([*TEXT.read_bytes().decode().encode("ascii", "replace")])
    console.print(f"Pieces of {arguments.length} letters from {TEXT.name}, {len(text):,} letters long")
    span = torch.arange(arguments.length + 1)

    def batch() -> tuple[Tensor, Tensor]:
        pieces = text[torch.randint(len(text) - len(span), (BATCH // 2, 1)) + span]
        return pieces[:, :-1], pieces[:, 1:]

    model = trained(Decoder(arguments.length), batch, arguments.steps)
    return model, text[: arguments.inputs * arguments.length].view(arguments.inputs, arguments.length)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", type=at_least(1), default=1, help="images or pieces of text in one batch (default: 1)"
    )
    parser.add_argument(
        "--length", type=at_least(1), default=16, help="letters of a piece of text, for gpt (default: 16)"
    )
    parser.add_argument("--steps", type=at_least(0), default=200, help="of training in the clear (default: 200)")
    parser.add_argument("--data", type=Path, help="a folder that holds MNIST/raw (default: the subset in the package)")


def main() -> bool:
    """Train a model, compare it with itself on shares."""
    arguments = arguments_of(str(__doc__), MODELS, options)
    torch.manual_seed(arguments.seed)
    model, inputs = prose(arguments) if arguments.model == "gpt" else digits(arguments)
    return compare(model, inputs, arguments, BOUND)


if __name__ == "__main__":
    run(main)
