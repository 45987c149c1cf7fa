"""The keyed generator of masks: AES-128 in counter mode.

Two parties that hold the same key draw the same masks without talking, as long as they draw the same amounts in
the same order. A stream never rewinds, so no mask is used twice under a key.
"""

from __future__ import annotations

import os
from typing import Any

import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_BYTES = 16
_AT_ONCE = 1 << 16
"""Bytes encrypted by one call: they and their cipher text stay in the cache."""
_ZEROS = memoryview(bytes(_AT_ONCE))


def fresh_key() -> bytes:
    """A new AES-128 key from the operating system's generator."""
    return os.urandom(KEY_BYTES)


class KeyStream:
    """An endless pseudo-random stream under one key; each draw takes the next bytes.

    Source: NIST SP 800-38A, section 6.5 (CTR), the counter starting at zero; a key is used for one stream only.
    """

    __slots__ = ("_encryptor", "drawn")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a mask key has {KEY_BYTES} bytes, found {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self.drawn = 0
        """How many bytes of the stream have been taken."""

    def __repr__(self) -> str:
        return "KeyStream(...)"

    def fill(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array of integers with the next bytes of the stream: each uniform over its range."""
        size = out.nbytes
        if not size:
            return
        data = out.data.cast("B")
        for start in range(0, size, _AT_ONCE):
            stop = min(start + _AT_ONCE, size)
            self._encryptor.update_into(_ZEROS[: stop - start], data[start:stop])
        self.drawn += size

    def words(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """A tensor of ``shape`` whose integers are uniform over the whole range of ``dtype``."""
        out = torch.empty(shape, dtype=dtype)
        self.fill(out.numpy())
        return out
