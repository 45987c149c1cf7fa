"""A model trained on secret data that may be revealed: DP-SGD on shares, at several budgets.

    python experiments/private_training.py                          epsilon 1, 3 and 8
    python experiments/private_training.py --epsilon 2 --steps 60

Logistic regression on scikit-learn's breast-cancer data: do 30 measurements say that a tumour is benign? Patients,
diagnoses and model are secret from beginning to end. Every patient's gradient is clipped, and noise that no party knows
is added to each sum, before anybody could see one; only then is the model revealed. What that says about a single
patient at most is printed beside what the model is worth on patients that it has not seen.

All three parties live in this process, so nothing is hidden from it. Measurements are scaled by fixed, public numbers:
means and deviations of the data itself would be further answers about the patients, which no noise protects.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import encml
from encml.privacy.encrypted import PrivateTraining

DELTA = 1e-4
HELD_OUT = 113
# What such measurements are usually like; known before the data is.
USUAL = (14.0, 19.0, 92.0, 650.0, 0.1, 0.1, 0.09, 0.05, 0.18, 0.06)
SPREAD = (3.5, 4.3, 24.0, 350.0, 0.015, 0.05, 0.08, 0.04, 0.03, 0.007)
PARTS = ((1.0, 1.0), (0.06, 0.08), (1.2, 1.4))
"""Means, standard errors and worst values of the ten measurements, beside the mean's centre and spread."""


def patients() -> tuple[Tensor, Tensor]:
    """30 measurements a patient, about 1 in size, and whether the tumour is benign; in a fixed random order."""
    data = load_breast_cancer()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(1))
    centre = torch.cat([torch.tensor(USUAL) * part for part, _ in PARTS])
    spread = torch.cat([torch.tensor(SPREAD) * part for _, part in PARTS])
    x = ((torch.tensor(data.data, dtype=torch.float32) - centre) / spread).clamp(-3, 3)
    return x[order] / 5, torch.tensor(data.target)[order]


def train(x: Tensor, y: Tensor, epsilon: float, steps: int) -> tuple[nn.Module, PrivateTraining]:
    """The usual loop; only the second line is new."""
    model = encml.share(nn.Linear(30, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.5)
    private = PrivateTraining(
        model,
        optimizer,
        examples=len(x),
        batch_size=64,
        max_grad_norm=1.0,
        delta=DELTA,
        target_epsilon=epsilon,
        steps=steps,
    )
    for chosen in private.batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return model, private


def main(arguments: Sequence[str] | None = None) -> None:
    """Train at every budget and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0], help="budgets, one run for each")
    parser.add_argument("--steps", type=int, default=40, help="batches of 64 patients on average")
    options = parser.parse_args(arguments)
    x, y = patients()
    secret_x = encml.share(x[HELD_OUT:])
    secret_y = encml.share(F.one_hot(y[HELD_OUT:], 2).float())
    for epsilon in options.epsilon:
        model, private = train(secret_x, secret_y, epsilon, options.steps)
        weight, bias = (p.reveal() for p in model.parameters())
        right = ((x[:HELD_OUT] @ weight.T + bias).argmax(1) == y[:HELD_OUT]).sum()
        print(f"{right} of {HELD_OUT} patients right. {private.statement()}\n")


if __name__ == "__main__":
    main()
