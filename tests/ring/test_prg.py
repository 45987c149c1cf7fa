"""The generator of masks: AES-128-CTR from counter zero, the same for both holders, never repeated."""

from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from encml.ring.prg import KeyStream, fresh_key

KEY = bytes(range(16))
DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]


def reference(key: bytes, size: int) -> bytes:
    """Block i is AES(key, i), i as 16 bytes big-endian: SP 800-38A with counter zero, block by block."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(aes.update(i.to_bytes(16, "big")) for i in range(-(-size // 16)))
    return blocks[:size]


def drawn(stream: KeyStream, size: int) -> bytes:
    return bytes(stream.words((size,), torch.uint8).tolist())


def test_the_cipher_is_the_standard_one() -> None:
    """NIST SP 800-38A, appendix F.1.1 (AES-128, ECB, first block) pins the reference itself."""
    aes = Cipher(algorithms.AES(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")), modes.ECB()).encryptor()
    block = aes.update(bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"))
    assert block.hex() == "3ad77bb40d7a3660a89ecaf32466ef97"


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000, (1 << 16) - 1, 1 << 16, (1 << 16) + 3, 3 << 16])
def test_stream_is_counter_mode_from_zero(size: int) -> None:
    assert drawn(KeyStream(KEY), size) == reference(KEY, size)


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_draws_in_pieces_equal_one_draw(sizes: list[int]) -> None:
    stream = KeyStream(KEY)
    pieces = b"".join(drawn(stream, size) for size in sizes)
    assert pieces == reference(KEY, sum(sizes))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 40)), max_size=8))
def test_every_dtype_takes_the_next_bytes(draws: list[tuple[torch.dtype, int]]) -> None:
    stream = KeyStream(KEY)
    taken = b"".join(stream.words((n,), dtype).numpy().tobytes() for dtype, n in draws)
    assert taken == reference(KEY, sum(n * dtype.itemsize for dtype, n in draws))


def test_two_holders_of_a_key_agree_and_other_keys_differ() -> None:
    one, two, other = KeyStream(KEY), KeyStream(KEY), KeyStream(bytes(16))
    for shape in [(), (3,), (0, 2), (4, 5, 6)]:
        mask = one.words(shape)
        assert mask.shape == shape
        assert torch.equal(mask, two.words(shape))
        if mask.numel():
            assert not torch.equal(mask, other.words(shape))


def test_a_stream_does_not_repeat() -> None:
    blocks = KeyStream(KEY).words((1 << 15, 2))
    assert len({tuple(block) for block in blocks.tolist()}) == 1 << 15


def test_fresh_keys_differ() -> None:
    keys = {fresh_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {16}


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        KeyStream(bytes(size))


def test_repr_holds_no_key() -> None:
    key = b"\x41\x42\x43\x44" * 4
    assert "ABCD" not in repr(KeyStream(key))
    assert key.hex() not in repr(KeyStream(key))
