"""Small running variances are shared with more digits than other values, for their roots magnify what is cut off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import encml
from encml import Session
from encml.tensor.handlers.norms import FINER, finer_bits
from encml.tensor.secret import Secret
from encml.tensor.shared import secret

VARIANCES = (1e-12, 3.3e-6, 7.7e-5, 1.4e-3, 0.31, 1000.0)


def layer() -> tuple[nn.BatchNorm1d, Tensor]:
    """A layer in evaluation mode, and inputs as its statistics promise, multiples of 2^-f."""
    norm = nn.BatchNorm1d(len(VARIANCES)).double().eval()
    norm.running_var = torch.tensor(VARIANCES, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, len(VARIANCES), generator=generator, dtype=torch.float64) * norm.running_var.sqrt()
    return norm, (x * 2**16).round() / 2**16


def test_small_variances_are_not_cut_off() -> None:
    norm, x = layer()
    shared = encml.share(norm)
    coarse = nn.BatchNorm1d(len(VARIANCES)).double().eval()
    coarse.running_var = (norm.running_var * 2**16).round() / 2**16
    with torch.no_grad():
        found, expected, without = shared(encml.share(x)).reveal(), norm(x), coarse(x)
    assert float((found - expected).abs().max()) < 1e-3
    assert float((without - expected).abs().max()) > 0.05, "what f fraction bits alone would give"


@pytest.mark.parametrize("fraction_bits", [4, 16, 24])
def test_the_digits_are_those_of_the_variance(fraction_bits: int) -> None:
    with Session(seed=1, fraction_bits=fraction_bits) as session:
        shared = encml.share(layer()[0])
        finer = secret(shared.running_var).fact(FINER)  # type: ignore[arg-type]
        assert isinstance(finer, Secret)
        bits = finer.fraction_bits
        assert bits == finer_bits(session) == min(2 * fraction_bits, 32)
        integers = finer.terms.sum(0).double()
        assert (integers * 2.0**-bits - torch.tensor(VARIANCES, dtype=torch.float64)).abs().max() <= 2.0 ** -(bits + 1)


def test_they_are_gone_once_the_variance_is_written_over() -> None:
    norm, x = layer()
    shared = encml.share(norm)
    with torch.no_grad():
        shared.running_var.fill_(0.25)
        norm.running_var.fill_(0.25)
        assert secret(shared.running_var).fact(FINER) is None  # type: ignore[arg-type]
        assert float((shared(encml.share(x)).reveal() - norm(x)).abs().max()) < 0.05


def test_the_checker_knows_them() -> None:
    norm, x = layer()
    shared = encml.share(norm)
    with torch.no_grad(), encml.check(shared) as report:
        shared(encml.share(x))
    assert report.findings == []
