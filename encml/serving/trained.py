"""A model that was trained on shares goes on to private predictions from its shares: nothing is opened in between.

    model = encml.share(network_a())                                  # at every party, and train it
    save_trained_shares(model, images, f"for-party-{rank}", "digits")

Every party writes its own file, in the format of ``encml.serving.model_store``, and installs it at its own party server
(``encml install``); three files of one process go to a cluster with ``Cluster.share_saved``.

The graph comes from the architecture alone, with public numbers in place of the weights. Batch norms are folded into
the weights before them on shares.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from encml.errors import InvalidTensor, ProtocolError
from encml.mpc.session import Session
from encml.serving.export import graph_of, run_on_shares, trace
from encml.serving.graph import Graph
from encml.serving.model_store import PartyModel, check_model_name, party_file
from encml.tensor import SharedTensor
from encml.tensor.handlers.norms import prepare
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import secret

_OPERATION = "save for serving"
_DIGEST_WORDS = 4


def save_trained_shares(model: nn.Module, example: Tensor, folder: str | Path, name: str = "model") -> list[Path]:
    """Write the files from which parties serve a model whose weights are shared; see ``trained_shares``.

    Returns the paths ``folder``/party-<rank>.safetensors, one for each party of this process: each for its own party
    and for nobody else, mode 0600. **In one process these are all three: whoever has the folder has the model.**
    """
    parts = trained_shares(model, example, name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [party_file(folder, part.rank) for part in parts]
    for part, path in zip(parts, paths, strict=True):
        part.save(path)
    return paths


def trained_shares(model: nn.Module, example: Tensor, name: str = "model") -> tuple[PartyModel, ...]:
    """What the parties of this process hold of a served model, from a model whose weights are SharedTensors.

    model: any nn.Module that ``encml.share`` gave, trained or not; it is served in evaluation mode and stays as it is.
        What is plain in it (a frozen part, a mask) is public, and party 0's counts.
    example: an input (batch, ...), plain or shared, of which only the shape matters.

    All parties call it together. Their shares of every weight are dealt anew, so that no older file of another party
    fits to them, and the id that the three parts have in common is random. Reveals nothing.

    Rounds: 3, a few more for weights that are still to be rounded, and for batch norms those of
    ``encml.serving.folding``. Sends 8 bytes a party and element of the weights.

    Raises UnsupportedOperation for what cannot be served; InvalidTensor for a model without shared weights, or an
    example of no shape; ProtocolError where parties save models of different architecture, name or example.
    """
    check_model_name(name)
    if example.ndim < 1:
        raise InvalidTensor("the example is a single number; expected an input (batch, ...)")
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    values = {key: tensor for key, tensor in tensors if isinstance(tensor, SharedTensor)}
    session = _session_of(values)
    numbers = torch.Generator().manual_seed(0)
    row = torch.rand(1, *example.shape[1:], generator=numbers)
    program = trace(_with_stand_ins(model, values, numbers), row)
    known = {**program.state_dict, **program.constants}
    graph, stand_ins = graph_of(program, row, known, session.fraction_bits)
    run_on_shares(graph, stand_ins, row, session.fraction_bits)
    with session.whole(), session.ledger.operation(_OPERATION):
        _check_alike(session, name, graph)
        prepare(
            session,
            [(m.running_var, m.weight, m.eps) for m in model.modules() if isinstance(m, _BatchNorm)],
        )
        weights = {key: values.get(key, tensor) for key, tensor in known.items()}
        payloads = _dealt_anew(session, graph_of(program, row, weights, session.fraction_bits)[1])
        # A ticket that nobody showed before, so the session's next choice.
        words = session.coins.choice(secrets.randbits(62), _OPERATION).words((2,))
    held = {key: session.parties.held(payload) for key, payload in payloads.items()}
    return tuple(
        PartyModel(
            name=name,
            model_id=words.numpy().tobytes().hex(),
            rank=rank,
            fraction_bits=session.fraction_bits,
            graph=graph,
            tensors={key: torch.stack(halves[place]) for key, halves in held.items()},
        )
        for place, rank in enumerate(session.parties.local)
    )


def _session_of(values: Mapping[str, SharedTensor]) -> Session:
    sessions = {id(value.session): value.session for value in values.values()}
    if len(sessions) != 1:
        found = "no weight of the model is shared" if not sessions else "the model's weights are of several sessions"
        raise InvalidTensor(f"{found}; a plain model is shared for serving by save_model_shares or Cluster.share")
    ((_, session),) = sessions.items()
    return session


def _with_stand_ins(model: nn.Module, values: Mapping[str, SharedTensor], numbers: torch.Generator) -> nn.Module:
    """A copy of the model in evaluation mode with public numbers in place of what is shared.

    Between 0 and 1 / the number of a row's weights: sums of products stay small, and variances are positive.
    """
    copies: dict[int, Tensor] = {}
    for value in values.values():
        if id(value) in copies:
            continue
        stand_in = torch.rand(value.shape, generator=numbers) / max(1, value[0].numel() if value.ndim > 1 else 1)
        if not value.is_floating_point():
            stand_in = stand_in.to(value.dtype)
        copies[id(value)] = nn.Parameter(stand_in) if isinstance(value, nn.Parameter) else stand_in
    return copy.deepcopy(model, dict(copies)).eval()


def _check_alike(session: Session, name: str, graph: Graph) -> None:
    """Neighbours tell each other what they are about to save. 1 round, 32 bytes a party."""
    facts = f"{name} {session.fraction_bits} {graph.model_dump_json()}"
    digest = hashlib.blake2b(facts.encode(), digest_size=8 * _DIGEST_WORDS).digest()
    own = torch.frombuffer(bytearray(digest), dtype=torch.int64).repeat(session.parties.here, 1)
    if not torch.equal(session.parties.net.rotate(own, +1, _OPERATION), own):
        raise ProtocolError(
            "the parties save different models for serving: name, architecture and the example's shape must be the "
            "same at all three"
        )


def _dealt_anew(session: Session, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh payloads (S, *shape) of the same values, at the session's fraction bits. 1 round, 8 B an element."""
    held = {
        key: secret(value) if isinstance(value, SharedTensor) else Secret.of_public(session, value)
        for key, value in weights.items()
    }
    settle_all(*held.values())
    parties, bits = session.parties, session.fraction_bits
    # Replicated shares as additive rows: party i contributes x_i.
    rows = [value.at_bits(bits)[: parties.here] for value in held.values()]
    fresh = parties.together(*(partial(parties.reshare, row, _OPERATION) for row in rows))
    return dict(zip(held, fresh, strict=True))
