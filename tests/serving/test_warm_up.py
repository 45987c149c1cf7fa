"""A party compiles before it meets the others, not in its first request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib, pkgutil, sys
import torch
from numba.core.dispatcher import Dispatcher
import encml.ring.kernels
from encml import Session, share
from encml.models import network_b, network_d, seed_network
from encml.serving.engine import _warm_up
from encml.serving.export import export_model

def compiled():
    names = [m.name for m in pkgutil.walk_packages(encml.ring.kernels.__path__, "encml.ring.kernels.")]
    modules = [importlib.import_module(name) for name in names]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    return {(kernel.py_func.__name__, signature) for kernel in found for signature in kernel.signatures}

def ask(parties):
    with Session(parties.net, seed=1) as session, torch.no_grad():
        for graph, weights, x in WORK:
            shared = {key: share(value) for key, value in weights.items()}
            graph.run(shared, share(x)).reveal()

if __name__ == "__main__":
    torch.set_num_threads(1)
    _warm_up()
    before = compiled()
    assert len(before) > 10, before
    sys.path.append(sys.argv[1])
    from party_threads import run_apart
    torch.manual_seed(0)
    WORK = []
    for make in (seed_network, network_b, network_d):
        for batch in (1, 3):
            x = torch.rand(batch, 1, 28, 28)
            WORK.append((*export_model(make().eval(), x, input_range=(0.0, 1.0)), x))
    run_apart(ask, 1)
    late = compiled() - before
    assert not late, late
"""


def test_nothing_is_compiled_in_the_first_request(tmp_path: Path) -> None:
    script = tmp_path / "warm.py"
    script.write_text(PROGRAM)
    helpers = Path(__file__).parents[1] / "mpc"
    done = subprocess.run(
        [sys.executable, str(script), str(helpers)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
