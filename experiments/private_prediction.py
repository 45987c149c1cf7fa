"""Private prediction in three acts, each to be played in its own terminal, in this order:

    python experiments/private_prediction.py train    a model learns MNIST, in plain PyTorch, and is saved
    python experiments/private_prediction.py serve    three workers share it and serve it for three requests, then stop
    python experiments/private_prediction.py ask      a client asks for the first three test images

Nobody but the owner (train, serve) has the weights, nobody but the client (ask) sees the images and the answers: the
workers are three processes that hold shares and talk over mutual TLS. Here they run on one machine, where whoever owns
the machine could put the shares together; with `encml party` they run on three.

--data names a folder that holds MNIST/raw; without it the small subset that ships with encml is used.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from encml.data import FLOAT_RANGE, load_mnist, to_float
from encml.errors import EncmlError
from encml.models import seed_network
from encml.serving import Client, Cluster

MODEL = "mnist"
CLUSTER_FILE = "cluster.yaml"
BATCH = 64


def train(folder: Path, data: Path | None, epochs: int, images: int) -> None:
    """Act one, at the owner: ordinary training."""
    mnist = load_mnist(data)
    print(f"Training on {mnist.source}")
    x, y = to_float(mnist.train_images[:images]), mnist.train_labels[:images]
    torch.manual_seed(0)
    model = seed_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for batch in torch.split(order, BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            predicted = model(to_float(mnist.test_images)).argmax(1)
        accuracy = float((predicted == mnist.test_labels).float().mean())
        print(f"Epoch {epoch + 1}: {accuracy:.1%} of the test images are classified correctly")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    print(f"Saved {folder / 'model.safetensors'}")


def serve(folder: Path, requests: int) -> None:
    """Act two, at the owner, with three workers: share, serve, stop."""
    model = seed_network()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with Cluster.local(folder) as cluster:
        cluster.share(model, torch.zeros(1, 1, 28, 28), MODEL, input_range=FLOAT_RANGE)
        cluster.serve(num_requests=requests, name=MODEL)
        print(f"Three workers serve {MODEL!r} for {requests} requests; ask them from another terminal", flush=True)
        cluster.wait_served(MODEL)
    print("All requests are answered; the workers have stopped")


def ask(folder: Path, data: Path | None, images: int) -> None:
    """Act three, at a client that has nothing of the owner's but the cluster file and its own keys."""
    mnist = load_mnist(data)
    with Client(folder / CLUSTER_FILE) as client:
        for image, label in zip(to_float(mnist.test_images[:images]), mnist.test_labels, strict=False):
            start = time.perf_counter()
            scores = client.query_model(image.unsqueeze(0), MODEL)
            milliseconds = 1000 * (time.perf_counter() - start)
            print(f"actual {int(label)}, predicted {int(scores.argmax())}   ({milliseconds:.0f} ms)")


def main() -> None:
    """Read the command line and play one act."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("train", "serve", "ask"))
    parser.add_argument("--folder", type=Path, default=Path("runs/private_prediction"), help="shared by the three acts")
    parser.add_argument("--data", type=Path, help="a folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-images", type=int, default=60_000, help="use at most so many")
    parser.add_argument("--requests", type=int, default=3, help="how many images are served and asked for")
    arguments = parser.parse_args()
    try:
        if arguments.act == "train":
            train(arguments.folder, arguments.data, arguments.epochs, arguments.train_images)
        elif arguments.act == "serve":
            serve(arguments.folder, arguments.requests)
        else:
            ask(arguments.folder, arguments.data, arguments.requests)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: play the acts in the order train, serve, ask, with the same --folder")
    except EncmlError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
