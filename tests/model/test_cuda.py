"""What only a GPU can show: recorded programs, and tokens equal to the CPU's."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.loader import SpanModel
from pipedec.model.quantized_product import skinny_quantized_product
from pipedec.model.sampling import History, Wanted, choose
from pipedec.model.skinny_product import skinny_product
from pipedec.model.staging import make_staging
from pipedec.model.static import CudaGraphs
from pipedec.policy import PolicyName
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Open, Prefill
from tests.exactness.pipelines import POLICIES, SAMPLED, expected, load, run
from tests.model.pipeline import GREEDY
from tests.model.test_quantised_product import quantised_weight
from tests.model.test_static import batch, opened
from tests.quantised import plain, quantised
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # torch's compiler has some
]
RECORDED = Execution("triton", (1, 4, 16), graphs=True)
FUSED = Execution("triton", (1, 4, 16), graphs=True, fused=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), layers=5, hidden=64)


@pytest.mark.parametrize(
    "execution", [RECORDED, FUSED, Execution("sdpa"), Execution("dense", (8,), graphs=True)], ids=str
)
def test_every_way_gives_what_the_cpu_gives(llama: Path, execution: Execution) -> None:
    plain = opened(SpanExecutor(SpanModel.load(llama, (0, 5), dtype=torch.float32), 64))
    model = SpanModel.load(llama, (0, 5), dtype=torch.float32, device="cuda")
    executor = opened(SpanExecutor(model, 64, execution))
    for rows in (5, 3, 1, 4, 2, 5):
        expected, actual = plain.execute(batch(rows), None), executor.execute(batch(rows), None)
        assert expected is not None
        assert actual is not None
        torch.testing.assert_close(actual.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stages", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_tokens_equal_the_cpu_s(llama: Path, policy: PolicyName, stages: int) -> None:
    requests = load(3, seed=1)
    assert run(llama, policy, stages, "right", requests, device="cuda") == expected(llama, requests)


def test_sampled_tokens_equal_the_cpu_s(llama: Path) -> None:
    requests = load(4, seed=2, sampling=SAMPLED)
    assert run(llama, "adaptive", 2, "right", requests, device="cuda") == run(llama, "none", 1, "", requests)


@pytest.mark.parametrize(("columns", "depth"), [(128, 512), (8192, 1024)])
def test_a_product_s_rows_are_the_same_bits_in_any_company(columns: int, depth: int) -> None:
    weight = torch.randn(columns, depth, dtype=torch.bfloat16, device="cuda")
    rows = torch.randn(64, depth, dtype=torch.bfloat16, device="cuda")
    whole = skinny_product(rows, weight)
    for count in (1, 5, 16, 17, 33):
        assert torch.equal(skinny_product(rows[:count], weight), whole[:count])


@pytest.mark.parametrize("kind", ["float8 rows", "float8 blocks", "int8 rows", "int4 groups"])
@pytest.mark.parametrize(("columns", "depth"), [(128, 512), (8192, 1024), (200, 320)])
def test_so_are_those_of_products_with_quantised_weights(columns: int, depth: int, kind: str) -> None:
    values, scale = quantised_weight(columns, depth, kind)
    rows = torch.randn(64, depth, dtype=torch.bfloat16, device="cuda")
    whole = skinny_quantized_product(rows, values, scale)
    for count in (1, 5, 16, 17, 33):
        assert torch.equal(skinny_quantized_product(rows[:count], values, scale), whole[:count])


@pytest.mark.parametrize("form", ["fp8-block", "float-channel", "int-channel", "pack-zeros", "gptq", "awq"])
def test_quantised_weights_stay_so_and_give_what_plain_ones_give(tmp_path: Path, form: str) -> None:
    folder = quantised(tiny_model(tmp_path / "model", hidden=256, layers=3), tmp_path / "quantised", form)
    twin = SpanModel.load(plain(folder, tmp_path / "plain", torch.float16), (0, 3), dtype=torch.float16, device="cuda")
    model = SpanModel.load(folder, (0, 3), dtype=torch.float16, device="cuda")
    assert all(layer.mlp.down_proj.weight.element_size() == 1 for layer in model.layers)
    plain_executor = opened(SpanExecutor(twin, 256, FUSED))
    executor = opened(SpanExecutor(model, 256, FUSED))
    prompt = Batch(0, 2, (Open(2, GREEDY, 80), Prefill(2, 0, tuple(range(80)), tuple(range(100, 180)))))
    for given in (batch(1), batch(5), batch(4), prompt):
        wanted, actual = plain_executor.execute(given, None), executor.execute(given, None)
        assert wanted is not None
        assert actual is not None
        assert ((actual - wanted).float().norm() / wanted.float().norm()).item() < 5e-3


@pytest.mark.parametrize("form", ["fp8-block", "awq"])
@pytest.mark.parametrize("policy", ["none", "adaptive"])
def test_greedy_tokens_with_quantised_weights_equal_the_cpu_s(tmp_path: Path, policy: PolicyName, form: str) -> None:
    folder = quantised(tiny_model(tmp_path / "model", hidden=64), tmp_path / "quantised", form)
    requests = load(3, seed=1)
    assert run(folder, policy, 2, "right", requests, device="cuda") == run(folder, "none", 1, "", requests)


def test_weights_are_on_the_device_alone(llama: Path) -> None:
    model = SpanModel.load(llama, (1, 3), dtype=torch.bfloat16, device="cuda:0")
    tensors = [tensor for layer in model.layers for tensor in layer.parameters()]
    assert {tensor.device for tensor in tensors} == {torch.device("cuda", 0)}
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_a_program_that_waits_is_refused_and_memory_comes_back_all_the_same() -> None:
    device, number = torch.device("cuda", 0), torch.ones(1, device="cuda")

    def program() -> None:
        number.item()

    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaGraphs(device)(program)
    staging, source = make_staging(device), torch.zeros(1 << 20)
    used = []
    for _ in range(8):
        staging.download(staging.upload(source))
        used.append(torch.cuda.memory_reserved(device))
    assert used[-1] == used[2]


def test_tokens_are_waited_for_once() -> None:
    logits = torch.randn(4, 1000, device="cuda")
    params = (
        SamplingParams(),
        SamplingParams(logit_bias=((3, 1.0),), min_tokens=2, end_tokens=(5,)),
        SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01),
        SamplingParams(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.5),
    )
    wanted = [Wanted(each, 3, History(each, 2, 1000, "cuda")) for each in params]
    choose(logits, wanted)  # whatever is compiled once is
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            for each in wanted:
                each.history.extend((7, 8, 9))
            choose(logits, wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in waits if "synchronizing" in str(each.message)]) == 1
