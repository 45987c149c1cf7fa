"""The benchmark's cases in CrypTen: two parties and a dealer of triples, three processes that talk over loopback.

Run by ``encml bench --peer crypten=PYTHON`` with a Python that has ``crypten``; imports nothing of encml. Argument:
JSON with the cases; standard output: a line of JSON for each. Weights and inputs are secret; figures go from shares to
shares.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import crypten
import torch
from crypten import communicator, mpc
from torch import Tensor

OUTPUT = 9
"""The file descriptor that lines for encml are written to."""
PARTIES = 2

Secret = Any
Job = tuple[Callable[[], Any], Tensor | None]
"""What to run, and the true result where there is one to compare with."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.round(values * 2.0**16) / 2.0**16


def spread(count: int, low: float, high: float) -> Tensor:
    if low > 0:
        values = torch.logspace(0, 1, count, base=high / low, dtype=torch.float64) * low
    else:
        values = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.round(values * 2.0**16) / 2.0**16


def of_normal(
    f: Callable[..., Secret], truth: Callable[..., Tensor], inputs: int = 1
) -> Callable[[dict[str, Any]], Job]:
    def prepare(case: dict[str, Any]) -> Job:
        values = [normal(*case["size"], seed=i) for i in range(inputs)]
        secrets = [crypten.cryptensor(value) for value in values]
        return lambda: f(*secrets), truth(*(value.double() for value in values))

    return prepare


def of_spread(f: Callable[[Secret], Secret], truth: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], Job]:
    def prepare(case: dict[str, Any]) -> Job:
        values = spread(case["size"][0], *case["domain"])
        secret = crypten.cryptensor(values)
        return lambda: f(secret), truth(values)

    return prepare


def matmul(case: dict[str, Any]) -> Job:
    rows, inner, columns = case["size"]
    x, y = normal(rows, inner), normal(inner, columns, seed=1)
    left, right = crypten.cryptensor(x), crypten.cryptensor(y)
    return lambda: left.matmul(right), x.double() @ y.double()


def convolution(case: dict[str, Any]) -> Job:
    batch, before, after, side = case["size"]
    x, w = normal(batch, before, side, side), normal(after, before, 3, 3, seed=1)
    images, kernels = crypten.cryptensor(x), crypten.cryptensor(w)
    truth = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    return lambda: images.conv2d(kernels, padding=1), truth


def divide(case: dict[str, Any]) -> Job:
    above, below = spread(case["size"][0], -8, 8), spread(case["size"][0], *case["domain"])
    x, y = crypten.cryptensor(above), crypten.cryptensor(below)
    return lambda: x.div(y), above / below


def softmax(case: dict[str, Any]) -> Job:
    rows, columns = case["size"]
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
    values = spread(rows * columns, *case["domain"])[order].view(rows, columns)
    x = crypten.cryptensor(values)
    return lambda: x.softmax(1), torch.softmax(values, 1)


def inference(case: dict[str, Any]) -> Job:
    layers: list[Any] = []
    channels = 1
    for wider in (16, 32, 64):
        layers += [crypten.nn.Conv2d(channels, wider, 3, padding=1), crypten.nn.AvgPool2d(2), crypten.nn.ReLU()]
        channels = wider
    model = crypten.nn.Sequential(*layers, crypten.nn.Flatten(), crypten.nn.Linear(576, 10)).encrypt()
    model.eval()
    images = crypten.cryptensor(normal(case["size"][0], 1, 28, 28).clamp(0, 1))

    def run() -> Secret:
        with crypten.no_grad():
            return model(images)

    return run, None


def dense(*widths: int) -> list[Any]:
    """Linear layers with ReLU in between."""
    layers: list[Any] = []
    for inner, outer in pairwise(widths):
        layers += [crypten.nn.Linear(inner, outer), crypten.nn.ReLU()]
    return layers[:-1]


def two_convolutions(first: int, second: int, *widths: int) -> list[Any]:
    """Networks B and C."""
    layers: list[Any] = []
    for inner, outer in ((1, first), (first, second)):
        layers += [crypten.nn.Conv2d(inner, outer, 5), crypten.nn.MaxPool2d(2), crypten.nn.ReLU()]
    return [*layers, crypten.nn.Flatten(), *dense(*widths)]


def network_a() -> list[Any]:
    return [crypten.nn.Flatten(), *dense(784, 128, 128, 10)]


def network_b() -> list[Any]:
    return two_convolutions(16, 16, 256, 100, 10)


def network_c() -> list[Any]:
    return two_convolutions(20, 50, 800, 500, 10)


def network_d() -> list[Any]:
    convolution = crypten.nn.Conv2d(1, 5, 5, stride=2, padding=2)
    return [convolution, crypten.nn.ReLU(), crypten.nn.Flatten(), *dense(980, 100, 10)]


def training(make: Callable[[], list[Any]], make_loss: Callable[[], Any]) -> Callable[[dict[str, Any]], Job]:
    def prepare(case: dict[str, Any]) -> Job:
        batch = case["size"][0]
        model = crypten.nn.Sequential(*make()).encrypt()
        model.train()
        loss = make_loss()
        x = crypten.cryptensor(normal(batch, 1, 28, 28).clamp(0, 1))
        y = crypten.cryptensor(torch.nn.functional.one_hot(torch.arange(batch) % 10, 10).float())

        def run() -> None:
            model.zero_grad()
            loss(model(x), y).backward()
            model.update_parameters(0.01)

        return run, None

    return prepare


CASES: dict[str, Callable[[dict[str, Any]], Job]] = {
    "product-truncate": of_normal(lambda x, y: x * y, lambda x, y: x * y, 2),
    "positive": of_normal(lambda x: x > 0, lambda x: (x > 0).double()),
    "relu": of_normal(lambda x: x.relu(), torch.relu),
    "matmul-512": matmul,
    "matmul-layer": matmul,
    "convolution": convolution,
    "exp": of_spread(lambda x: x.exp(), torch.exp),
    "log": of_spread(lambda x: x.log(), torch.log),
    "reciprocal": of_spread(lambda x: x.reciprocal(), torch.reciprocal),
    "divide": divide,
    "sqrt": of_spread(lambda x: x.sqrt(), torch.sqrt),
    "rsqrt": of_spread(lambda x: x.inv_sqrt(), torch.rsqrt),
    "sigmoid": of_spread(lambda x: x.sigmoid(), torch.sigmoid),
    "tanh": of_spread(lambda x: x.tanh(), torch.tanh),
    "softmax": softmax,
    "seed-1": inference,
    "seed-64": inference,
    "network-a-mse": training(network_a, crypten.nn.MSELoss),
    "network-a-cross-entropy": training(network_a, crypten.nn.CrossEntropyLoss),
    "network-b-cross-entropy": training(network_b, crypten.nn.CrossEntropyLoss),
    "network-c-cross-entropy": training(network_c, crypten.nn.CrossEntropyLoss),
    "network-d-cross-entropy": training(network_d, crypten.nn.CrossEntropyLoss),
}


def run(case: dict[str, Any], repeats: int, floor: float) -> dict[str, Any]:
    if case["name"] not in CASES:
        return {"name": case["name"], "problem": ""}
    job, truth = CASES[case["name"]](case)
    job()
    wire = communicator.get()
    wire.reset_communication_stats()
    crypten.cfg.communicator.verbose = True
    result = job()
    crypten.cfg.communicator.verbose = False
    costs = wire.get_communication_stats()
    seconds: list[float] = []
    for _ in range(repeats):
        wire.barrier()
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    record = {
        "name": case["name"],
        "seconds": seconds,
        "bytes_per_party": costs["bytes"] / 2,
        "rounds": costs["rounds"],
    }
    if truth is not None:
        # get_plain_text() is off by 1 for negative values just above an integer, which is not the protocol's error.
        opened = result.reveal().double() / result.encoder.scale
        error = (opened - truth).abs() / truth.abs().clamp(min=floor)
        record["worst_error"] = float(error.nan_to_num(nan=torch.inf).max())
    return record


@mpc.run_multiprocess(world_size=PARTIES)  # type: ignore[untyped-decorator]
def parties(order: dict[str, Any]) -> None:
    """What both parties run; the first of them reports. Both fail in the same way where a function is missing."""
    torch.set_num_threads(order["threads"])
    for case in order["cases"]:
        try:
            record = run(case, order["repeats"], order["error_floor"])
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            record = {"name": case["name"], "problem": f"{type(error).__name__}: {error}"}
        if communicator.get().get_rank() == 0:
            say(record)


def end_with_stdin() -> None:
    """Standard input ends with the process that started this script; so do all processes of its group."""
    while os.read(0, 4096):  # sys.stdin has a lock, which a forked process could not get
        pass
    os.killpg(0, signal.SIGKILL)


def say(record: dict[str, Any]) -> None:
    """A line for encml, on the standard output that this script was given."""
    os.write(OUTPUT, (json.dumps(record) + "\n").encode())


def main() -> None:
    # Libraries that log to standard output must not get between the lines.
    os.dup2(sys.stdout.fileno(), OUTPUT)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    order = json.loads(sys.argv[1])
    crypten.cfg.mpc.provider = "TTP"
    torch.set_num_threads(order["threads"])
    setting = (
        "two parties and a dealer of triples, three processes on loopback without TLS (gloo), 64-bit ring, 16 fraction "
        "bits; what it sends is half of what it counts, which is sent and received"
    )
    say({"version": crypten.__version__, "setting": setting})
    threading.Thread(target=end_with_stdin, daemon=True).start()
    parties(order)


if __name__ == "__main__":
    main()
