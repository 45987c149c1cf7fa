"""Optimizers for secret parameters whose stock versions fixed point cannot hold. torch.optim.SGD needs none."""

from encml.optim.adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
