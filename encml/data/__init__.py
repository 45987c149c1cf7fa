"""Data sets: MNIST, and its split over simulated clients; an owner's own tables."""

from encml.data.mnist import CLASSES, FLOAT_RANGE, MEAN, STD, MnistData, load_mnist, load_subset, to_float
from encml.data.partition import split_dirichlet, split_iid
from encml.data.tables import Table, read_table

__all__ = [
    "CLASSES",
    "FLOAT_RANGE",
    "MEAN",
    "STD",
    "MnistData",
    "Table",
    "load_mnist",
    "load_subset",
    "read_table",
    "split_dirichlet",
    "split_iid",
    "to_float",
]
