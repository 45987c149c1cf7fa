"""Differential privacy: exact integer noise, and what it guarantees.

``encml.privacy.accounting`` is imported by its own name: it loads Opacus, which takes as long as torch itself, and
the computing parties, which only add noise, should not wait for it.
"""

from encml.privacy.discrete import RandomSource, discrete_gaussian
from encml.privacy.distributed import party_variance

__all__ = ["RandomSource", "discrete_gaussian", "party_variance"]
