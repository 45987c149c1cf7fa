"""What kind of operator one of the database is: the chapters of the table."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

KINDS = (
    "Element-wise functions of one number",
    "Element-wise functions of two numbers and more",
    "Comparisons and truth values",
    "Sums, products and statistics",
    "Order",
    "Matrix products and linear algebra",
    "Views, copies and indexing",
    "Neural networks",
    "Special functions",
    "Masked reductions",
    "Fourier transforms",
    "New tensors and random numbers",
)

_ONE, _TWO, _TRUTH, _SUMS, _ORDER, _LINEAR, _VIEWS, _NETWORKS, _SPECIAL, _MASKED, _FOURIER, _NEW = KINDS

_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        _NETWORKS,
        "nn.functional.* _batch_norm_with_update _native_batch_norm_legit native_* _softmax_backward_data "
        "softmax* log_softmax* *_safe_softmax* max_pool2d_with_indices_backward grid_sampler_* _upsample_*",
    ),
    (
        _MASKED,
        "masked.*",
    ),
    (
        _FOURIER,
        "fft.* stft istft",
    ),
    (
        _NEW,
        "signal.windows.* *_like new_* empty* full zeros ones eye arange linspace* logspace* scalar_tensor rand* "
        "normal* bernoulli multinomial uniform cauchy exponential geometric log_normal polar complex",
    ),
    (
        _SPECIAL,
        "special.* i0 lgamma digamma polygamma* mvlgamma* igamma* erfinv",
    ),
    (
        _LINEAR,
        "linalg.* addmm* addmv addbmm addr baddbmm bmm* mm mv dot vdot inner outer matmul __rmatmul__ einsum "
        "tensordot kron trace cholesky* lu* qr svd* pca_lowrank pinverse matrix_exp triangular_solve geqrf ormqr "
        "logdet chain_matmul cross cov corrcoef sparse.*",
    ),
    (
        _TRUTH,
        "all any eq ne lt le gt ge equal allclose is* logical_* count_nonzero signbit argwhere nonzero*",
    ),
    (
        _ORDER,
        "sort msort argsort topk kthvalue *median* mode *quantile argmax argmin amax amin aminmax max.* min.* "
        "maximum minimum fmax fmin cummax cummin searchsorted bucketize unique* hist*",
    ),
    (
        _SUMS,
        "sum* mean prod nansum nanmean std* var* cum* norm* renorm dist cdist logsumexp logcumsumexp trap* diff "
        "gradient _segment_reduce* scatter_reduce* index_reduce*",
    ),
    (
        _VIEWS,
        "bfloat16 bool byte cdouble cfloat chalf char double float half int long short real conj* fill positive",
    ),
    (
        _TWO,
        "addcmul addcdiv lerp jiterator_* clamp where logaddexp2",
    ),
)


def kind_of(op: Any) -> str:
    """The chapter of an operator of the database."""
    name = op.full_name
    for kind, patterns in _PATTERNS:
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            return kind
    described = type(op).__name__
    if described == "BinaryUfuncInfo" or name.startswith("__r"):
        return _TWO
    return _ONE if described == "UnaryUfuncInfo" else _VIEWS
