"""Who owns what in training: features public and labels secret, or the reverse, with secret weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import SharedTensor

N, FEATURES, CLASSES = 24, 6, 3
Loss = Callable[[Tensor, Tensor], Tensor]

CLASS = torch.arange(N) * 7 % CLASSES
ONE_HOT = F.one_hot(CLASS, CLASSES).double()
EITHER = (torch.arange(N) * 5 % 2).double().unsqueeze(1)
LOSSES: dict[str, tuple[Loss, Tensor, int]] = {
    "classes": (F.cross_entropy, CLASS, CLASSES),
    "one-hot rows": (F.cross_entropy, ONE_HOT, CLASSES),
    "0 or 1": (F.binary_cross_entropy_with_logits, EITHER, 1),
    "numbers": (F.mse_loss, grid(N, 2, seed=3), 2),
}


def networks(outputs: int) -> dict[str, nn.Module]:
    """Two kinds of model with weights on the grid of fixed point, so that sharing them is exact."""
    deep = nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, outputs))
    models = {"logistic regression": nn.Linear(FEATURES, outputs), "hidden layer": deep}
    for model in models.values():
        model.double()
        for i, parameter in enumerate(model.parameters()):
            parameter.data = grid(*parameter.shape, seed=40 + i) / 2
            parameter.data = torch.round(parameter.data / ULP) * ULP
    return models


@pytest.mark.parametrize("model", ["logistic regression", "hidden layer"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("secret", ["labels", "features", "both"])
def test_values_and_gradients(model: str, loss: str, secret: str) -> None:
    f, y, outputs = LOSSES[loss]
    x = grid(N, FEATURES, seed=1)
    plain = networks(outputs)[model]
    shared = encml.share(plain)
    expected = f(plain(x), y)
    expected.backward()

    found = f(
        shared(x if secret == "labels" else encml.share(x)),
        y if secret == "features" else encml.share(y),
    )
    assert isinstance(found, SharedTensor)
    found.backward()
    # Softmax, sigmoid and softplus are good to some units, inputs of up to 2 magnify that, and a mean divides it again.
    near(found.detach().reveal(), expected.detach(), 4)
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        assert p.grad is not None
        assert isinstance(q.grad, SharedTensor)
        near(q.grad.reveal(), p.grad, 16)


@pytest.mark.parametrize("loss", ["classes", "0 or 1"])
@pytest.mark.parametrize("secret", ["labels", "features"])
def test_training_goes_where_plain_training_goes(loss: str, secret: str) -> None:
    """Five steps of stock SGD in batches cut from the whole by public indices."""
    f, y, outputs = LOSSES[loss]
    x = grid(N, FEATURES, seed=1)
    data = {
        "labels": (x, encml.join_rows([y[:5], y[5:9], y[9:]])),
        "features": (encml.join_columns([x[:, :2], None, x[:, 2:]]), y),
    }
    plain = networks(outputs)["hidden layer"]
    models: list[tuple[nn.Module, Tensor, Tensor]] = [(plain, x, y), (encml.share(plain), *data[secret])]
    for model, features, labels in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
        for step in range(5):
            rows = torch.arange(step, N, 2)
            optimizer.zero_grad()
            f(model(features[rows]), labels[rows]).backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), models[1][0].parameters(), strict=True):
        assert isinstance(q, SharedTensor)
        near(q.detach().reveal(), p.detach(), 24)
