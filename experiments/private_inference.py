"""What private_resnet18.py and private_transformer.py share: a model on secret inputs, beside itself in the clear.

The model's owner shares the weights, the client shares the input; neither sees the other's, and only the result is
revealed. Here all three computing parties live in one process, which protects nothing but runs the very protocol, so
that rounds, bytes and errors are those of real parties.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import encml
from encml.errors import EncmlError

OWNER, CLIENT = 0, 1
"""Which party shares the model, and which the input."""

console = Console(highlight=False)


def compare(model: nn.Module, inputs: Tensor, arguments: argparse.Namespace, bound: float) -> bool:
    """Private inference against plain float64; prints progress, agreement and the costs by module.

    model: in eval mode, its output (..., classes). bound: how far outputs may be off at 16 fraction bits or more, as a
    share of the largest; twice as far for each bit less. Returns whether they are within it.
    """
    start = time.perf_counter()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(inputs.double() if inputs.is_floating_point() else inputs)
    plain_seconds = time.perf_counter() - start
    console.print(f"In the clear, in float64: {plain_seconds:.2f} s")

    with encml.Session(fraction_bits=arguments.fraction_bits) as session, torch.no_grad():
        with console.status("Sharing the model and the input"), session.ledger.measure() as sharing:
            secret_model = encml.share(model, owner=OWNER)
            secret_inputs = encml.share(inputs, owner=CLIENT)
        weights = sum(p.numel() for p in model.parameters())
        console.print(
            f"Shared {weights:,} weights and the input: {sharing[0].bytes / 1e6:,.1f} MB, {sharing[0].seconds:.1f} s"
        )
        checking = encml.check(secret_model, stop=False) if arguments.check else nullcontext()
        with (
            checking as report,
            encml.profile(secret_model) as costs,
            progress(secret_model, layer_calls(model, inputs)),
        ):
            outputs = secret_model(secret_inputs).reveal(to=CLIENT)

        if report is None:
            with console.status("Answering a second request"), encml.profile(secret_model) as second:
                secret_model(secret_inputs).reveal(to=CLIENT)

    loosened = bound * 2.0 ** max(0, 16 - arguments.fraction_bits)
    within = agreement(outputs.double(), expected, loosened)
    console.print(costs.table(depth=arguments.depth))
    if report is None:
        console.print(
            f"A second request: {second.total.rounds:,} rounds, {second.total.bytes_per_party / 1e6:,.2f} MB a party, "
            f"{second.seconds:.2f} s; what depends on the weights alone is worked out once"
        )
    else:
        console.print(report)
    return within


def agreement(outputs: Tensor, expected: Tensor, bound: float) -> bool:
    """Print how well the private outputs agree with the plain ones; whether they are within the bound."""
    worst, largest = float((outputs - expected).abs().max()), float(expected.abs().max())
    within = worst <= bound * largest
    console.print(
        f"Outputs: the largest error is {worst:.2e}, {worst / largest:.3%} of the largest output, {largest:.3g}; "
        f"the bound is {bound:.2%}: {'[green]within it' if within else '[red]exceeded'}[/]"
    )
    same = outputs.argmax(-1) == expected.argmax(-1)
    best = expected.topk(2, -1).values
    doubtful = int((best[..., 0] - best[..., 1] <= 2 * bound * largest)[~same].sum())
    console.print(
        f"Top-1: {int(same.sum()):,} of {same.numel():,} private answers are those of plain PyTorch"
        + (f"; {doubtful} of the others were closer than the bound" if not bool(same.all()) else "")
    )
    return within


def layer_calls(model: nn.Module, inputs: Tensor) -> int:
    """How often the model calls a module without children, for the progress bar."""
    calls: list[nn.Module] = []
    with _after_each_layer(model, lambda layer: calls.append(layer)), torch.no_grad():
        model(inputs)
    return len(calls)


@contextmanager
def progress(model: nn.Module, layers: int) -> Iterator[None]:
    """A bar that moves on with every layer of ``model``."""
    names = {module: name for name, module in model.named_modules()}
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn("Private inference"), *columns, TextColumn("{task.fields[at]}"), console=console) as bar:
        task = bar.add_task("", total=layers, at="")
        with _after_each_layer(model, lambda layer: bar.update(task, advance=1, at=f"{names[layer]} done")):
            yield
        bar.update(task, at="")


@contextmanager
def _after_each_layer(model: nn.Module, then: Callable[[nn.Module], None]) -> Iterator[None]:
    layers = [module for module in model.modules() if not [*module.children()]]
    handles = [layer.register_forward_hook(lambda module, args, output: then(module)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def arguments_of(
    description: str, models: dict[str, str], extend: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """Read the command line: the options that both scripts have, and what ``extend`` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = "; ".join(f"{name}: {what}" for name, what in models.items())
    parser.add_argument("--model", choices=models, default=next(iter(models)), help=f"{known} (default: %(default)s)")
    extend(parser)
    parser.add_argument("--fraction-bits", type=int, default=16, help="of fixed-point numbers, 4 to 24 (default: 16)")
    parser.add_argument("--depth", type=int, help="levels of modules in the table of costs (default: all)")
    parser.add_argument("--check", action="store_true", help="also compare every operation with float64 (slower)")
    parser.add_argument("--seed", type=int, default=0, help="of the model's random weights (default: 0)")
    return parser.parse_args()


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an option whose value is a whole number from ``lowest``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from {lowest}")
        return int(text)

    return number


def run(main: Callable[[], bool]) -> None:
    """Run a script's ``main`` and turn what it returns or raises into an exit status."""
    logging.basicConfig(format="%(message)s")
    try:
        sys.exit(0 if main() else 1)
    except KeyboardInterrupt:
        console.print("Interrupted")
        sys.exit(130)  # as shells expect it
    except EncmlError as error:
        sys.exit(f"{type(error).__name__}: {error}")
