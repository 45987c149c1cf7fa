"""Every error that encml raises on purpose.

Messages say what was found, what was expected and what to do. They name shapes, dtypes, ranges of *public*
values, ranks and file names; they never hold a secret value or a share.
"""

from __future__ import annotations


class EncmlError(Exception):
    """Base of all errors raised on purpose by encml."""


class ConfigError(EncmlError, ValueError):
    """A configuration file, key or command-line value is wrong; the message names file, key, found and allowed."""


class DataError(EncmlError):
    """A data set is missing, incomplete or unreadable."""


class InvalidTensor(EncmlError, ValueError):
    """A tensor cannot be shared: wrong shape or dtype, NaN, infinity, or beyond the fixed-point range."""


class UnsupportedOperation(EncmlError, NotImplementedError):
    """An operation has no secret-shared version; the message names it and what to use instead."""


class SecretError(EncmlError, TypeError):
    """Something would have turned a secret into a plain value (bool, float, numpy, print of values, ...)."""


class CheckError(EncmlError, ArithmeticError):
    """``encml.check`` found an operation whose result left its range or exceeded its error bound."""


class ProtocolError(EncmlError, RuntimeError):
    """Parties drifted apart or a message is malformed: stop instead of computing garbage."""


class PartyError(EncmlError, ConnectionError):
    """A computing party is gone, stalled or refused; ``rank`` and ``address`` name it."""

    def __init__(self, message: str, *, rank: int | None = None, address: str | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.address = address


class PartyTimeout(PartyError, TimeoutError):
    """A computing party did not answer within the configured time-out."""


class AuthenticationError(PartyError):
    """A peer has no valid certificate of this cluster, or a certificate for another role."""


class ServingError(EncmlError, RuntimeError):
    """A served request was refused: unknown model, wrong input shape, request cap reached, server stopping."""


class PrivacyError(EncmlError, ValueError):
    """A privacy budget is exceeded, or a mechanism cannot be accounted for."""
