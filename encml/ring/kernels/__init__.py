"""Bilinear and linear maps over Z_2^64 that torch lacks, or lacks for int64, in plain wrap-around arithmetic.

All tensors are int64. Products and sums wrap modulo 2^64, as the ring wants. Tensors in the processor's memory are
multiplied by compiled loops, others, wherever they lie, as ``encml.ring.kernels.anywhere`` says.
"""

from encml.ring.kernels.adding import Adding
from encml.ring.kernels.convolve import convolution, input_gradient, weight_gradient
from encml.ring.kernels.matrices import matmul
from encml.ring.kernels.pooling import (
    adaptive_places,
    fold,
    look_up,
    put_back,
    sum_pool,
    sum_pool_gradient,
    unfold,
    window_places,
)

__all__ = [
    "Adding",
    "adaptive_places",
    "convolution",
    "fold",
    "input_gradient",
    "look_up",
    "matmul",
    "put_back",
    "sum_pool",
    "sum_pool_gradient",
    "unfold",
    "weight_gradient",
    "window_places",
]
