"""Data sets: MNIST, and its split over simulated clients."""

from encml.data.mnist import CLASSES, MEAN, STD, MnistData, load_mnist, load_subset, to_float
from encml.data.partition import split_dirichlet, split_iid

__all__ = [
    "CLASSES",
    "MEAN",
    "STD",
    "MnistData",
    "load_mnist",
    "load_subset",
    "split_dirichlet",
    "split_iid",
    "to_float",
]
