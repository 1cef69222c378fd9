"""Products of few rows in a stream, and layers of the same rows as one, give what the layers themselves give."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from pipedec.model import streamed
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.loader import SpanModel
from pipedec.model.skinny_product import MAX_ROWS, fits, skinny_product
from pipedec.model.streamed import stream
from tests.model.test_static import batch, opened
from tests.tiny import tiny_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Attention(nn.Module):
    """Linear layers of the names that transformers gives them, asked in its order."""

    def __init__(self, bias: bool = False, hidden: int = 256) -> None:
        super().__init__()
        self.q_proj = nn.Linear(hidden, 256, bias=bias)
        self.k_proj = nn.Linear(hidden, 64, bias=bias)
        self.v_proj = nn.Linear(hidden, 64, bias=bias)
        self.o_proj = nn.Linear(256, hidden, bias=False)
        self.to(DEVICE, torch.float16).requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.tanh()
        q, k, v = self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)
        return self.o_proj(q + torch.cat([k, v, k, v], -1))


def some(*sizes: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes))).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 64, 256), (5, 6208, 512), (33, 128, 768), (64, 64, 256)])
def test_the_product_is_that_of_the_weights(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    x, weight = some(rows, depth, dtype=dtype), some(columns, depth, dtype=dtype) / depth**0.5
    assert fits(weight)
    torch.testing.assert_close(
        skinny_product(x, weight).float(),
        linear(x.float(), weight.float()),
        atol=TOLERANCE[dtype],
        rtol=TOLERANCE[dtype],
    )


def test_no_rows_have_an_empty_product() -> None:
    assert skinny_product(some(0, 256), some(64, 256)).shape == (0, 64)


@pytest.mark.parametrize(
    "weight", [some(64, 256, dtype=torch.float32), some(64, 250), some(70, 256), some(256, 64).T], ids=lambda w: w.shape
)
def test_other_weights_are_left_to_pytorch(weight: torch.Tensor) -> None:
    assert not fits(weight)


@pytest.mark.parametrize("sizes", [(1, 3), (1, MAX_ROWS), (1, MAX_ROWS + 1), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_joint_layers_give_what_each_gives(bias: bool, sizes: Sequence[int]) -> None:
    module, rows = Attention(bias), some(*sizes, 256)
    expected = module(rows)
    stream([module])
    torch.testing.assert_close(module(rows), expected, atol=4e-3, rtol=4e-3)


def test_the_weights_of_joint_layers_are_in_memory_once() -> None:
    module = Attention()
    before = module.k_proj.weight.clone()
    stream([module])
    assert torch.equal(module.k_proj.weight, before)
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (module.q_proj, module.k_proj, module.v_proj)}
    assert len(storages) == 1
    assert module.q_proj.weight.untyped_storage().nbytes() == (256 + 64 + 64) * 256 * 2


def test_devices_on_which_products_are_not_bound_by_memory_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed, "has_tensor_cores", lambda device: False)
    module = Attention()
    stream([module])
    assert not any("forward" in vars(layer) for layer in module.children())


def test_what_is_streamed_stays_as_it_is() -> None:
    module = Attention()
    stream([module])
    before = [layer.forward for layer in module.children()]
    stream([module])
    assert [layer.forward for layer in module.children()] == before


def test_joint_layers_may_be_asked_alone_and_in_any_order() -> None:
    module, rows, others = Attention(), some(4, 256), some(3, 256)
    asked = [(module.v_proj, rows), (module.q_proj, rows), (module.k_proj, others), (module.k_proj, rows)]
    expected = [linear(given, layer.weight) for layer, given in asked]
    stream([module])
    for (layer, given), product in zip(asked, expected, strict=True):
        torch.testing.assert_close(layer(given), product, atol=4e-3, rtol=4e-3)


def test_layers_of_other_widths_or_kinds_are_not_joined() -> None:
    module = Attention()
    module.k_proj = nn.Linear(256, 60, bias=False).to(DEVICE, torch.float16)
    stream([module])
    assert module.q_proj.weight.untyped_storage().data_ptr() != module.v_proj.weight.untyped_storage().data_ptr()
    assert "forward" in vars(module.q_proj)
    assert "forward" not in vars(module.k_proj)


def test_a_compiler_sees_through_joint_layers() -> None:
    module, rows = Attention(), some(1, 5, 256)
    stream([module])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(rows), module(rows), atol=0, rtol=0)
        torch.testing.assert_close(compiled(rows + 1), module(rows + 1), atol=0, rtol=0)


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory) -> SpanModel:
    folder = tiny_model(tmp_path_factory.mktemp("wide"), hidden=256, layers=2)
    return SpanModel.load(folder, (0, 2), dtype=torch.float16, device=str(DEVICE))


def test_a_whole_span_streams_its_weights(span: SpanModel) -> None:
    plain = opened(SpanExecutor(span, 64, Execution("sdpa"))).execute(batch(3), None)
    streamed = opened(SpanExecutor(span, 64, Execution("triton", (4,)))).execute(batch(3), None)
    assert all("forward" in vars(layer.mlp.down_proj) for layer in span.layers)
    assert plain is not None
    assert streamed is not None
    assert ((streamed - plain).float().norm() / plain.float().norm()).item() < 5e-3


def test_layers_that_cannot_be_compiled_are_run_as_they_are(
    span: SpanModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with caplog.at_level(logging.WARNING):
        executor = opened(SpanExecutor(span, 64, Execution("dense", (4,), fused=True)))
    assert "without compiled layers, slower: no compiler" in caplog.text
    assert executor.execute(batch(3), None) is not None
