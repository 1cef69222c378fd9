"""Products with quantised weights are those with what the weights stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from pipedec.model import quantized_product
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.four_bits import joined, separated
from pipedec.model.loader import SpanModel
from pipedec.model.quantized import QuantizedLinear, dequantized
from pipedec.model.quantized_product import quantized_linear, skinny_quantized_product, stood_for
from pipedec.model.skinny_product import MAX_ROWS
from pipedec.model.streamed import stream
from tests.model.test_static import batch, opened
from tests.model.test_streamed import DEVICE, TOLERANCE, Attention, some
from tests.quantised import FOUR_BITS, plain, quantised
from tests.tiny import tiny_model

SIZES = [(64, 256), (200, 320), (130, 129), (6208, 128), (16, 384)]  # columns, depth
KINDS = ["float8 rows", "float8 blocks", "int8 rows"]


# Columns, depth, numbers of a group, whether it has a zero of its own; two groups to a piece, four, eight, or one.
IN_4_BITS = [
    (64, 256, 128, True),
    (40, 320, 32, False),
    (50, 192, 96, True),
    (40, 136, 136, True),
    (6208, 64, 32, True),
]


def quantised_weight(columns: int, depth: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Any numbers, and scales with which they are as large as weights are."""
    if kind == "int4 groups":
        return four_bits(columns, depth, 64, zeros=True)
    generator = torch.Generator().manual_seed(columns + depth)
    shape = (-(-columns // 128), -(-depth // 128)) if "blocks" in kind else (columns,)
    scale = (0.5 + torch.rand(shape, generator=generator)) / (depth**0.5 * (200 if "float8" in kind else 70))
    codes = torch.randint(0, 256, (columns, depth), generator=generator, dtype=torch.uint8)
    if "float8" in kind:
        codes[codes & 0x7F == 0x7F] = 0  # NaN
    return codes.view(torch.float8_e4m3fn if "float8" in kind else torch.int8).to(DEVICE), scale.to(DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_product_is_that_of_what_the_weights_stand_for(
    sizes: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    values, scale = quantised_weight(*sizes, kind)
    for rows in (1, 5, 33) if sizes[0] < 6000 else (5,):
        x = some(rows, sizes[1], dtype=dtype)
        expected = linear(x.float(), dequantized(values, scale, dtype).float())
        product = skinny_quantized_product(x, values, scale).float()
        torch.testing.assert_close(product, expected, atol=2 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_weights_are_made_exactly_what_they_stand_for(sizes: tuple[int, int], kind: str) -> None:
    values, scale = quantised_weight(*sizes, kind)
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(stood_for(values, scale, dtype), dequantized(values, scale, dtype))
    made, expected = stood_for(values, scale, torch.bfloat16), dequantized(values, scale, torch.bfloat16)
    if DEVICE.type == "cuda":
        assert torch.equal(made, expected)
    torch.testing.assert_close(made, expected, atol=0, rtol=2**-7)  # the interpreter cuts off what should be rounded


def test_every_code_of_float8_is_its_number() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    codes = codes[:, :127].contiguous().to(DEVICE)  # the last of each sign is NaN
    for power in (-30.0, 0.0, 7.0):
        scale = torch.full((2,), 2.0**power, device=DEVICE)
        expected = codes.view(torch.float8_e4m3fn).float() * 2.0**power
        assert torch.equal(stood_for(codes.view(torch.float8_e4m3fn), scale, torch.float32), expected)


def four_bits(columns: int, depth: int, group: int, zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns + depth)
    shape = columns, depth // group
    scale = ((0.5 + torch.rand(shape, generator=generator)) / (5 * depth**0.5)).half()
    zero = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8) if zeros else None
    values = torch.randint(0, 256, (columns, depth // 2), generator=generator, dtype=torch.uint8)
    return values.to(DEVICE), joined(scale, zero).to(DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", IN_4_BITS, ids=str)
def test_4_bit_products_are_those_of_what_the_weights_stand_for(
    sizes: tuple[int, int, int, bool], dtype: torch.dtype
) -> None:
    values, scale = four_bits(*sizes)
    made = dequantized(values, scale, dtype)
    wide = torch.stack((values & 15, values >> 4), -1).flatten(1).float()
    factor, zero = (each.repeat_interleave(sizes[2], 1) for each in separated(scale))
    assert torch.equal(made, ((wide - zero) * factor).to(dtype))
    if dtype == torch.float16 and sizes[0] < 6000:  # the interpreter cuts off bfloat16 that should be rounded
        assert torch.equal(stood_for(values, scale, dtype), made)
    x = some(64, sizes[1], dtype=dtype)
    expected = linear(x.float(), made.float())
    for rows in (1, 3, 64) if sizes[0] < 6000 else (3,):
        product = skinny_quantized_product(x[:rows], values, scale).float()
        torch.testing.assert_close(product, expected[:rows], atol=2 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_4_bit_product_s_rows_are_the_same_bits_in_any_company() -> None:
    (values, scale), x = four_bits(64, 256, 32, zeros=True), some(16, 256)
    whole = skinny_quantized_product(x, values, scale)
    assert all(torch.equal(skinny_quantized_product(x[:rows], values, scale), whole[:rows]) for rows in (1, 5, 15))


def test_no_rows_have_an_empty_product() -> None:
    assert skinny_quantized_product(some(0, 256), *quantised_weight(64, 256, "int8 rows")).shape == (0, 64)


@pytest.mark.parametrize("kind", [*KINDS, "int4 groups"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_many_rows_take_the_weights_in_pieces(kind: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_product, "PIECE_NUMBERS", 384 // pieces * 192)
    (values, scale), rows = quantised_weight(300, 192, kind), some(2, MAX_ROWS, 192)
    expected = linear(rows, dequantized(values, scale, rows.dtype))
    torch.testing.assert_close(quantized_linear(rows, values, scale, None), expected, atol=2e-3, rtol=2e-3)


def in_bits(module: Attention, kinds: dict[str, str]) -> Attention:
    """The module with quantised weights in the layers that are named, and others as they are."""
    for name, kind in kinds.items():
        layer = getattr(module, name)
        values, scale = quantised_weight(layer.out_features, layer.in_features, kind)
        kept = QuantizedLinear(layer, values.dtype, tuple(scale.shape))
        kept.weight = nn.Parameter(values, requires_grad=False)
        kept.scale = nn.Parameter(scale, requires_grad=False)
        setattr(module, name, kept)
    return module


def storages(module: Attention) -> int:
    """In how many tensors the weights of query, key and value are."""
    return len({getattr(module, name).weight.untyped_storage().data_ptr() for name in ("q_proj", "k_proj", "v_proj")})


def all_of(kind: str) -> dict[str, str]:
    return dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), kind)


@pytest.mark.parametrize("sizes", [(1, 3), (1, MAX_ROWS + 1), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["float8 rows", "int8 rows", "int4 groups"])
def test_joint_layers_give_what_each_gives(kind: str, bias: bool, sizes: Sequence[int]) -> None:
    module, rows = in_bits(Attention(bias), all_of(kind)), some(*sizes, 256)
    expected, query = module(rows), module.q_proj.plain().weight
    stream([module])
    torch.testing.assert_close(module(rows), expected, atol=4e-3, rtol=4e-3)
    assert storages(module) == 1
    assert torch.equal(module.q_proj.plain().weight, query)


class Aligned(Attention):
    """All but the last of the layers that are given the same rows end with a block."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Linear(256, 128, bias=False).to(DEVICE, torch.float16).requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.tanh()
        q, k, v = self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)
        return self.o_proj(q + torch.cat([k, v, v], -1))


def test_blocks_are_joined_where_their_rows_are_of_one_layer() -> None:
    for module, parts in ((Aligned(), 1), (Attention(), 3)):
        in_bits(module, all_of("float8 blocks"))
        rows = some(5, 256)
        expected = module(rows)
        stream([module])
        assert storages(module) == parts
        assert all("forward" in vars(layer) for layer in module.children())
        torch.testing.assert_close(module(rows), expected, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize(
    "kinds",
    [
        {"q_proj": "float8 rows"},
        all_of("float8 rows") | {"k_proj": "int8 rows"},
        {"k_proj": "float8 blocks"},
        {"v_proj": "int4 groups"},
    ],
    ids=str,
)
def test_layers_of_unlike_kinds_stay_apart(kinds: dict[str, str]) -> None:
    module, rows = in_bits(Attention(), kinds), some(5, 256)
    expected = module(rows)
    stream([module])
    assert storages(module) == 3
    torch.testing.assert_close(module(rows), expected, atol=4e-3, rtol=4e-3)


def test_a_compiler_sees_through_joint_layers() -> None:
    module, rows = in_bits(Attention(), all_of("float8 rows")), some(1, 5, 256)
    stream([module])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(rows), module(rows), atol=0, rtol=0)


@pytest.mark.parametrize("form", ["fp8-block", "float-channel", "int-channel", "pack-zeros"])
def test_a_whole_span_streams_what_it_holds(tmp_path: Path, form: str) -> None:
    hidden = 64 if form in FOUR_BITS else 200
    folder = quantised(tiny_model(tmp_path / "model", hidden=hidden, layers=2), tmp_path / "quantised", form)
    twin = plain(folder, tmp_path / "plain", torch.float16)
    model = SpanModel.load(twin, (0, 2), dtype=torch.float16, device=str(DEVICE))
    expected = opened(SpanExecutor(model, 64, Execution("sdpa"))).execute(batch(3), None)
    span = SpanModel.load(folder, (0, 2), dtype=torch.float16, device=str(DEVICE), keep_quantized=True)
    actual = opened(SpanExecutor(span, 64, Execution("triton", (4,)))).execute(batch(3), None)
    assert all(layer.mlp.down_proj.weight.element_size() == 1 for layer in span.layers)
    assert all("forward" in vars(layer.mlp.down_proj) for layer in span.layers)
    assert expected is not None
    assert actual is not None
    assert ((actual - expected).float().norm() / expected.float().norm()).item() < 5e-3
