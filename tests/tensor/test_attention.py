"""Attention, multi-head attention and transformers: values, gradients, strides, masks, rounds.

Tolerances: scores are off by 1 ulp times the size of a query, weights by 4 ulp, their mix with values below 2 by some
more; gradients of inner projections pass through all of that, a transformer's layers one after the other.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from modules import module_matches, on_the_grid
from party_threads import run_apart
from reference import grid, matches, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc.parties import Parties
from encml.tensor.shared import secret

ULPS, GRAD_ULPS = 20, 40
attend: Any = F.scaled_dot_product_attention


def qkv(queries: int = 4, keys: int = 6, width: int = 16, out: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return grid(2, 3, queries, width), grid(2, 3, keys, width, seed=1), grid(2, 3, keys, out, seed=2)


@pytest.mark.parametrize("width", [1, 4, 8])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"scale": 0.3}, {"is_causal": True}])
def test_attention(width: int, settings: dict[str, Any]) -> None:
    matches(lambda q, k, v: attend(q, k, v, **settings), *qkv(width=width), ulps=ULPS, grad_ulps=GRAD_ULPS)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 1, 2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = grid(*shape)
    matches(lambda x: attend(x, x, x), x, ulps=ULPS, grad_ulps=120)
    near(attend(encml.share(x[..., :0, :]), encml.share(x), encml.share(x)).reveal(), attend(x[..., :0, :], x, x), 1)


BOOLS = torch.tensor([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize(
    "mask",
    [
        BOOLS,
        BOOLS.expand(2, 3, 4, 6).clone(),
        torch.zeros(4, 6).double().masked_fill(~BOOLS, -math.inf),
        torch.zeros(4, 6).double().masked_fill(~BOOLS, torch.finfo(torch.float64).min),
        grid(2, 1, 4, 6).masked_fill(~BOOLS, -math.inf),
        grid(4, 6),
        grid(1, 6),
        torch.ones(4, 6, dtype=torch.bool),
    ],
    ids=["bools", "all-dims", "inf", "min", "added-and-inf", "added", "broadcast", "nothing"],
)
def test_public_masks(mask: Tensor) -> None:
    matches(lambda q, k, v: attend(q, k, v, mask), *qkv(), ulps=ULPS, grad_ulps=GRAD_ULPS)


def test_a_query_that_may_look_at_nothing_gets_zero() -> None:
    mask = BOOLS.clone()
    mask[2] = False
    matches(lambda q, k, v: attend(q, k, v, mask), *qkv(), ulps=ULPS, grad_ulps=GRAD_ULPS)
    found = attend(*(encml.share(x) for x in qkv()), mask)
    assert (found[:, :, 2].reveal() == 0).all()


def test_secret_masks() -> None:
    matches(lambda q, k, v, m: attend(q, k, v, m), *qkv(), grid(4, 6), ulps=ULPS, grad_ulps=GRAD_ULPS)
    mask = encml.share(BOOLS.double()) > 0.5
    found = attend(*(encml.share(x) for x in qkv()), mask)
    near(found.reveal(), attend(*qkv(), BOOLS), ULPS)


def test_grouped_queries() -> None:
    q, k, v = grid(2, 6, 3, 4), grid(2, 2, 5, 4, seed=1), grid(2, 2, 5, 4, seed=2)
    matches(lambda q, k, v: attend(q, k, v, enable_gqa=True), q, k, v, ulps=ULPS, grad_ulps=60)
    with pytest.raises(InvalidTensor, match="6 heads of queries, not a multiple of 4"):
        attend(encml.share(q), encml.share(k.repeat(1, 2, 1, 1)), encml.share(v.repeat(1, 2, 1, 1)), enable_gqa=True)


def test_dropout_of_weights() -> None:
    x = encml.share(grid(1, 30, 4))
    first, second = (attend(x, x, x, dropout_p=0.5).reveal() for _ in range(2))
    assert (first - second).abs().max() > 0.01
    assert (attend(x, x, x, dropout_p=1.0).reveal() == 0).all()


def test_some_operands_plain() -> None:
    q, k, v = qkv()
    for shared in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        given = [encml.share(x) if s else x for x, s in zip((q, k, v), shared, strict=True)]
        near(attend(*given).reveal(), attend(q, k, v), ULPS)


def test_what_makes_no_sense() -> None:
    x = encml.share(grid(3, 4))
    with pytest.raises(InvalidTensor, match="is_causal"):
        attend(x, x, x, torch.ones(3, 3).bool(), is_causal=True)
    module = encml.share(nn.MultiheadAttention(4, 2))
    with pytest.raises(InvalidTensor, match="is_causal"):
        module(x, x, x, is_causal=True)
    with pytest.raises(UnsupportedOperation, match="static_k"):
        F.multi_head_attention_forward(
            x, x, x, 4, 2, module.in_proj_weight, None, None, None, False, 0.0, module.out_proj.weight, None, static_k=x
        )


# nn.MultiheadAttention ----------------------------------------------------------------------------------------

PADDING = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)


class SelfAttention(nn.Module):
    """One input in all three roles; only the output."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = on_the_grid(nn.MultiheadAttention(8, 2, batch_first=True, **settings))

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.inner(x, x, x, **options)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_padding_mask": PADDING},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
        {"attn_mask": torch.zeros(5, 5).double().masked_fill(CAUSAL, -math.inf), "is_causal": True},
        {"attn_mask": grid(4, 5, 5), "key_padding_mask": PADDING.double().masked_fill(PADDING, -math.inf)},
        {"average_attn_weights": False},
    ],
    ids=["plain", "padding", "causal", "both", "float", "per-head", "every-head"],
)
def test_multi_head_attention(options: dict[str, Any], need_weights: bool) -> None:
    x, options = grid(2, 5, 8), {**options, "need_weights": need_weights}
    module_matches(SelfAttention(), x, ulps=ULPS, grad_ulps=120, **options)
    with torch.no_grad():
        # PyTorch's own fast path lays its result out in another way than its slow one.
        module_matches(SelfAttention().eval(), x, ulps=ULPS, grad_ulps=0, strides=False, **options)


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": False}, {"kdim": 6, "vdim": 7}, {"add_bias_kv": True, "add_zero_attn": True}, {"batch_first": True}],
    ids=["plain", "no-bias", "other-widths", "more-keys", "batch-first"],
)
def test_attention_to_another_sequence(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    module = on_the_grid(nn.MultiheadAttention(8, 2, **settings))
    x, key, value = grid(5, 2, 8), grid(5, 2, settings.get("kdim", 8)), grid(5, 2, settings.get("vdim", 8), seed=3)
    padding = PADDING
    if settings.get("batch_first"):
        padding = torch.zeros(5, 2, dtype=torch.bool)
    module_matches(module, x, key, value, ulps=ULPS, grad_ulps=120, key_padding_mask=padding)


def test_without_a_batch() -> None:
    x = grid(5, 8)
    module_matches(SelfAttention(), x, ulps=ULPS, grad_ulps=120, key_padding_mask=PADDING[0])


def test_key_and_value_alike() -> None:
    torch.manual_seed(1)
    module = on_the_grid(nn.MultiheadAttention(8, 2))
    shared, x, y = encml.share(module), grid(5, 2, 8), grid(4, 2, 8, seed=1)
    memory = encml.share(y)
    near(shared(encml.share(x), memory, memory)[0].reveal(), module(x, y, y)[0], ULPS)


# Transformers -------------------------------------------------------------------------------------------------


def layer(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(2)
    return on_the_grid(kind(16, 2, 24, 0.0, batch_first=True, **settings))


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}], ids=str)
def test_encoder_layer(settings: dict[str, Any]) -> None:
    module, x = layer(nn.TransformerEncoderLayer, **settings), grid(2, 5, 16)
    module_matches(module, x, ulps=40, grad_ulps=300)
    with torch.no_grad():
        module_matches(module.eval(), x, ulps=40, grad_ulps=0, src_key_padding_mask=PADDING)


def test_decoder_layer() -> None:
    module, target, memory = layer(nn.TransformerDecoderLayer), grid(2, 5, 16), grid(2, 3, 16, seed=1)
    module_matches(module, target, memory, ulps=60, grad_ulps=400, tgt_mask=CAUSAL, tgt_is_causal=True)


@pytest.mark.parametrize("training", [True, False])
def test_encoder(training: bool) -> None:
    """Also where PyTorch would pack its input by lengths: its result is 0 in the padding then, ours is not."""
    module = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 2).train(training)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.set_grad_enabled(training), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        module_matches(module, grid(2, 5, 16), ulps=80, grad_ulps=500, mask=causal, is_causal=True)
        shown = None if training else ~PADDING
        module_matches(
            module, grid(2, 5, 16), ulps=80, grad_ulps=500, src_key_padding_mask=PADDING, shown=shown, strides=training
        )


def test_transformer() -> None:
    module = layer(lambda *sizes, **kw: nn.Transformer(sizes[0], sizes[1], 1, 1, *sizes[2:], **kw))
    causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    module_matches(module, grid(2, 5, 16), grid(2, 4, 16, seed=1), ulps=100, grad_ulps=800, tgt_mask=causal)


class Decoder(nn.Module):
    """A block of a GPT as people write it: masked scores by hand, a causal mask in a buffer."""

    def __init__(self, width: int = 16, heads: int = 2, length: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer(
            "bias", torch.tril(torch.ones(length, length, dtype=torch.int64)).view(1, 1, length, length)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        q, k, v = self.qkv(self.norm(x)).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        mixed = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(batch, length, width)
        return x + self.out(mixed)


def test_attention_written_by_hand() -> None:
    torch.manual_seed(4)
    module_matches(on_the_grid(Decoder()), grid(2, 5, 16), ulps=40, grad_ulps=200)


class Sequence(nn.Module):
    """What torch.export makes operators of."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm, self.gru = nn.LSTM(4, 4, batch_first=True), nn.GRU(4, 4, bidirectional=True)
        self.rnn, self.cell = nn.RNN(8, 4), nn.LSTMCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x, x, x, need_weights=False)[0]
        y = self.rnn(self.gru(self.lstm(mixed)[0])[0])[0]
        hidden: Tensor = self.cell(y[0])[0]
        return hidden


def test_an_exported_graph() -> None:
    torch.manual_seed(5)
    module, x = on_the_grid(Sequence()).eval(), grid(2, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = encml.share(torch.export.export(module, (x,)).module())
        near(graph(encml.share(x)).reveal(), module(x), ULPS)


def test_in_inference_mode_with_what_was_shared_outside_it() -> None:
    module, x = SelfAttention().eval(), grid(2, 5, 8)
    shared, held = encml.share(module), encml.share(x)
    with torch.inference_mode():
        found = shared(held, need_weights=False)[0].reveal()
        near(held[0].t().reveal(), x[0].t(), 0)
    near(found, module(x)[0], ULPS)


def test_under_the_transforms_of_torch_func() -> None:
    x = grid(3, 4, 4)
    matches(lambda x: torch.func.grad(lambda q: (attend(q, q, q) ** 2).sum())(x), x, ulps=200, backward=False)
    matches(lambda x: torch.func.vmap(lambda q: attend(q, q, q))(x), x, ulps=ULPS, backward=False)


def test_three_parties_apart() -> None:
    """Bit for bit the shares that one process would give them; attention, softmax, LSTM, forward and backward."""
    torch.manual_seed(6)
    attention, lstm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 3, bidirectional=True)

    def work() -> list[Tensor]:
        x, first, second = encml.share(grid(2, 3, 4).float()), encml.share(attention), encml.share(lstm)
        mixed, weights = first(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool).triu(1))
        output, _ = second(mixed)
        (output.log_softmax(-1)[..., 0].sum() + weights.sum()).backward()
        kept = [output, weights, *(p.grad for p in (*first.parameters(), *second.parameters()))]
        return [secret(y).replicate() for y in kept if isinstance(y, SharedTensor)]

    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=7):
            return work()

    with Session(seed=7):
        together = work()
    results, _ = run_apart(apart, 7)
    for rank, found in enumerate(results):
        for mine, whole in zip(found, together, strict=True):
            assert torch.equal(mine, whole[[rank, (rank + 1) % 3]])


# Rounds -------------------------------------------------------------------------------------------------------


def test_rounds(session: Session) -> None:
    """3 to settle query, key and value, 3 the scores, then the softmax, then 3 the result."""
    q, k, v = (encml.share(grid(1, 10, 16, seed=i)) for i in range(3))
    weight = encml.share(grid(16, 16))
    with session.ledger.measure() as softmax:
        encml.share(grid(10, 10)).softmax(-1)
    projected = [x @ weight for x in (q, k, v)]
    with session.ledger.measure() as spent:
        attend(*projected).reveal()
    assert spent[0].rounds == 3 + 3 + (softmax[0].rounds - 1) + 3 + 1
    # One head of 10 queries and keys: ten softmaxes of 2.6 kB, 9 B for each score and for each number of the others.
    assert spent[0].bytes_per_party < 1.15 * 10 * 2606 + 9 * (100 + 4 * 160) + 8 * 160


def test_a_causal_mask_saves_exponentials(session: Session) -> None:
    x = encml.share(grid(1, 64, 16))
    with session.ledger.measure() as full:
        attend(x, x, x)
    with session.ledger.measure() as causal:
        attend(x, x, x, is_causal=True)
    assert causal[0].rounds == full[0].rounds
    assert full[0].bytes_per_party - causal[0].bytes_per_party > 64 * 63 / 2 * 160
