"""The benchmark's cases in SPU (SecretFlow): ABY3 with a 64-bit ring, three processes that talk over loopback.

Run by ``encml bench --peer spu=PYTHON`` with a Python that has ``spu``; imports nothing of encml. Argument: JSON with
the cases; standard output: a line of JSON for each. Weights and inputs are secret; figures go from shares to shares.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spu
from spu import libspu
from spu.utils import frontend

OUTPUT = 9
"""The file descriptor that lines for encml are written to."""
PARTIES = 3
FRACTION_BITS = 18
"""SPU's default for a 64-bit ring."""
_SENT = re.compile(r"total send bytes (\d+), recv bytes \d+, send actions (\d+)")

Array = Any
Function = Callable[..., Array]


def normal(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (np.round(values * 2.0**16) / 2.0**16).astype(np.float32)


def spread(count: int, low: float, high: float) -> Array:
    values = np.geomspace(low, high, count) if low > 0 else np.linspace(low, high, count)
    return (np.round(values * 2.0**16) / 2.0**16).astype(np.float32)


# The functions -----------------------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def softmax(x: Array) -> Array:
    return jax.nn.softmax(x, axis=-1)


def convolution(x: Array, kernels: Array, stride: int = 1, padding: Any = "SAME") -> Array:
    form = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, kernels, (stride, stride), padding, dimension_numbers=form)


def max_pool(x: Array) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def pool(x: Array) -> Array:
    n, channels, height, width = x.shape
    x = x[:, :, : height // 2 * 2, : width // 2 * 2].reshape(n, channels, height // 2, 2, width // 2, 2)
    return x.mean((3, 5))


def seed_network(x: Array, *weights: Array) -> Array:
    for layer in range(3):
        kernels, bias = weights[2 * layer : 2 * layer + 2]
        x = jax.nn.relu(pool(convolution(x, kernels) + bias[None, :, None, None]))
    return x.reshape(x.shape[0], -1) @ weights[-2] + weights[-1]


def dense(x: Array, weights: Sequence[Array]) -> Array:
    """Linear layers with ReLU in between; ``weights``: matrix and bias of each."""
    x = x.reshape(x.shape[0], -1)
    for layer in range(0, len(weights), 2):
        x = (jax.nn.relu(x) if layer else x) @ weights[layer] + weights[layer + 1]
    return x


def two_convolutions(x: Array, weights: Sequence[Array]) -> Array:
    """Networks B and C."""
    for layer in (0, 2):
        x = convolution(x, weights[layer], padding="VALID") + weights[layer + 1][None, :, None, None]
        x = jax.nn.relu(max_pool(x))
    return dense(x, weights[4:])


def network_d(x: Array, weights: Sequence[Array]) -> Array:
    x = convolution(x, weights[0], 2, [(2, 2), (2, 2)]) + weights[1][None, :, None, None]
    return dense(jax.nn.relu(x), weights[2:])


def squared_error(scores: Array, y: Array) -> Array:
    return jnp.mean((scores - y) ** 2)


def cross_entropy(scores: Array, y: Array) -> Array:
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(scores, axis=-1), axis=-1))


def step(network: Function, loss: Function) -> Function:
    def train(x: Array, y: Array, *weights: Array) -> list[Array]:
        gradients = jax.grad(lambda w: loss(network(x, w), y))(list(weights))
        return [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]

    return train


# The cases ---------------------------------------------------------------------------------------------------------

# Each gives the function, its inputs, and the true result where there is one to compare with.
Prepared = tuple[Function, list[Array], Array | None]


def of_normal(f: Function, truth: Function | None, inputs: int = 1) -> Callable[[dict[str, Any]], Prepared]:
    def prepare(case: dict[str, Any]) -> Prepared:
        values = [normal(*case["size"], seed=i) for i in range(inputs)]
        return f, values, None if truth is None else truth(*(v.astype(np.float64) for v in values))

    return prepare


def of_spread(f: Function, truth: Function) -> Callable[[dict[str, Any]], Prepared]:
    def prepare(case: dict[str, Any]) -> Prepared:
        values = spread(case["size"][0], *case["domain"])
        return f, [values], truth(values.astype(np.float64))

    return prepare


def matmul(case: dict[str, Any]) -> Prepared:
    rows, inner, columns = case["size"]
    x, y = normal(rows, inner), normal(inner, columns, seed=1)
    return jnp.matmul, [x, y], x.astype(np.float64) @ y.astype(np.float64)


def layer(case: dict[str, Any]) -> Prepared:
    batch, before, after, side = case["size"]
    return convolution, [normal(batch, before, side, side), normal(after, before, 3, 3, seed=1)], None


def divide(case: dict[str, Any]) -> Prepared:
    above, below = spread(case["size"][0], -8, 8), spread(case["size"][0], *case["domain"])
    return jnp.divide, [above, below], above.astype(np.float64) / below


def rows_of_scores(case: dict[str, Any]) -> Prepared:
    rows, columns = case["size"]
    values = np.random.default_rng(0).permutation(spread(rows * columns, *case["domain"])).reshape(rows, columns)
    powers = np.exp(values.astype(np.float64))
    return softmax, [values], powers / powers.sum(-1, keepdims=True)


def inference(case: dict[str, Any]) -> Prepared:
    weights, channels = [], 1
    for wider in (16, 32, 64):
        weights += [
            normal(wider, channels, 3, 3) * np.float32((2 / (9 * channels)) ** 0.5),
            np.zeros(wider, np.float32),
        ]
        channels = wider
    weights += [normal(576, 10) * np.float32(0.02), np.zeros(10, np.float32)]
    return seed_network, [normal(case["size"][0], 1, 28, 28).clip(0, 1), *weights], None


def training(network: Function, loss: Function, *shapes: tuple[int, ...]) -> Callable[[dict[str, Any]], Prepared]:
    """``shapes``: of kernels (after, before, 5, 5) and of matrices (before, after), in order."""

    def prepare(case: dict[str, Any]) -> Prepared:
        batch = case["size"][0]
        weights: list[Array] = []
        for shape in shapes:
            outputs = shape[0] if len(shape) == 4 else shape[1]
            inputs = np.prod(shape) / outputs
            weights += [normal(*shape) * np.float32(inputs**-0.5), np.zeros(outputs, np.float32)]
        labels = np.eye(10, dtype=np.float32)[np.arange(batch) % 10]
        return step(network, loss), [normal(batch, 1, 28, 28).clip(0, 1), labels, *weights], None

    return prepare


NETWORK_A = ((784, 128), (128, 128), (128, 10))
NETWORK_B = ((16, 1, 5, 5), (16, 16, 5, 5), (256, 100), (100, 10))
NETWORK_C = ((20, 1, 5, 5), (50, 20, 5, 5), (800, 500), (500, 10))
NETWORK_D = ((5, 1, 5, 5), (980, 100), (100, 10))

CASES: dict[str, Callable[[dict[str, Any]], Prepared]] = {
    "product-truncate": of_normal(jnp.multiply, np.multiply, 2),
    "positive": of_normal(lambda x: (x > 0).astype(jnp.float32), lambda x: 1.0 * (x > 0)),
    "relu": of_normal(lambda x: jnp.maximum(x, 0), lambda x: np.maximum(x, 0)),
    "matmul-512": matmul,
    "matmul-layer": matmul,
    "convolution": layer,
    "exp": of_spread(jnp.exp, np.exp),
    "log": of_spread(jnp.log, np.log),
    "reciprocal": of_spread(jnp.reciprocal, np.reciprocal),
    "divide": divide,
    "sqrt": of_spread(jnp.sqrt, np.sqrt),
    "rsqrt": of_spread(jax.lax.rsqrt, lambda x: x**-0.5),
    "sigmoid": of_spread(jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": of_spread(jnp.tanh, np.tanh),
    "gelu": of_spread(gelu, lambda x: np.asarray(gelu(jnp.asarray(x, jnp.float32)), np.float64)),
    "softmax": rows_of_scores,
    "seed-1": inference,
    "seed-64": inference,
    "network-a-mse": training(dense, squared_error, *NETWORK_A),
    "network-a-cross-entropy": training(dense, cross_entropy, *NETWORK_A),
    "network-b-cross-entropy": training(two_convolutions, cross_entropy, *NETWORK_B),
    "network-c-cross-entropy": training(two_convolutions, cross_entropy, *NETWORK_C),
    "network-d-cross-entropy": training(network_d, cross_entropy, *NETWORK_D),
}


# Running them ------------------------------------------------------------------------------------------------------


def config(threads: int, profile: bool = False) -> Any:
    settings = libspu.RuntimeConfig(
        protocol=libspu.ProtocolKind.ABY3, field=libspu.FieldType.FM64, fxp_fraction_bits=FRACTION_BITS
    )
    settings.max_concurrency = threads
    settings.enable_pphlo_profile = profile
    return settings


def party(rank: int, ports: list[int], folder: str, threads: int, repeats: int, pipe: Any) -> None:
    """One of the three processes: runs what it is sent, with its shares, and sends back times, costs and shares."""
    log = Path(folder) / f"party-{rank}.log"
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(log)
    libspu.logging.setup_logging(options)
    meeting = libspu.link.Desc()
    meeting.recv_timeout_ms = 600_000
    for other, port in enumerate(ports):
        meeting.add_party(f"party-{other}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(meeting, rank)
    while (task := pipe.recv()) is not None:
        code, inputs, outputs, shares = task
        program = libspu.Executable(name="case", input_names=inputs, output_names=outputs, code=code)
        try:
            seconds: list[float] = []
            for repeat in range(repeats + 1):
                # The first run is counted, not timed: counting writes to the log.
                runtime = spu.Runtime(link, config(threads, profile=repeat == 0))
                for name, share in zip(inputs, shares, strict=True):
                    runtime.set_var(name, share)
                link.barrier()
                start = time.perf_counter()
                runtime.run(program)
                if repeat:
                    seconds.append(time.perf_counter() - start)
            counted = _SENT.findall(log.read_text(errors="replace"))[-1]
            pipe.send((seconds, int(counted[0]), int(counted[1]), [runtime.get_var(name) for name in outputs]))
        except (RuntimeError, ValueError) as error:
            pipe.send(str(error))


def run(case: dict[str, Any], pipes: list[Any], io: Any, floor: float) -> dict[str, Any]:
    if case["name"] not in CASES:
        return {"name": case["name"], "problem": ""}
    f, values, truth = CASES[case["name"]](case)
    names = [f"in{i}" for i in range(len(values))]
    try:
        program, _ = frontend.compile(
            frontend.Kind.JAX,
            f,
            values,
            {},
            names,
            [libspu.Visibility.VIS_SECRET] * len(values),
            lambda found: [f"out{i}" for i in range(len(found))],
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return {"name": case["name"], "problem": str(error).splitlines()[0]}
    shares = [io.make_shares(value, libspu.Visibility.VIS_SECRET) for value in values]
    for rank, pipe in enumerate(pipes):
        task = (program.code, list(program.input_names), list(program.output_names), [each[rank] for each in shares])
        pipe.send(task)
    found = [pipe.recv() for pipe in pipes]
    failed = [reply for reply in found if isinstance(reply, str)]
    if failed:
        return {"name": case["name"], "problem": failed[0].splitlines()[0]}
    result: dict[str, Any] = {
        "name": case["name"],
        "seconds": [max(times) for times in zip(*(reply[0] for reply in found), strict=True)],
        "bytes_per_party": sum(reply[1] for reply in found) / PARTIES,
        "rounds": max(reply[2] for reply in found),
    }
    if truth is not None:
        opened = io.reconstruct([reply[3][0] for reply in found]).astype(np.float64)
        off = np.abs(opened - truth) / np.maximum(np.abs(truth), floor)
        result["worst_error"] = float(np.nan_to_num(off, nan=np.inf).max())
    return result


def free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(PARTIES)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


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
    threading.Thread(target=end_with_stdin, daemon=True).start()
    setting = "three processes on loopback without TLS, ABY3, 64-bit ring, 18 fraction bits"
    say({"version": spu.__version__, "setting": setting})
    spawn = multiprocessing.get_context("spawn")
    ports = free_ports()
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(PARTIES):
            ours, theirs = spawn.Pipe()
            given = (rank, ports, folder, order["threads"], order["repeats"], theirs)
            processes.append(spawn.Process(target=party, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        io = spu.Io(PARTIES, config(order["threads"]))
        for case in order["cases"]:
            say(run(case, pipes, io, order["error_floor"]))
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(10)


if __name__ == "__main__":
    main()
