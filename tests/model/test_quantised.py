"""A model with 8-bit weights is the plain model whose weights are the numbers times their scales."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from pipedec.config import child_environment
from pipedec.errors import ModelError
from pipedec.model.loader import SpanModel
from pipedec.model.quantized import QuantizedLinear
from pipedec.model.shape import SINGLE_FILE, model_shape
from pipedec.models import identity
from pipedec.policy import PolicyName
from tests.exactness.pipelines import expected, load, run
from tests.model.pipeline import Chain, Decoder, scattered
from tests.quantised import FORMS, plain, quantised
from tests.tiny import reference_greedy, tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPT = tuple(range(30, 60))
QUERY = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes that are no multiples of a block's."""
    return tiny_model(tmp_path_factory.mktemp("odd"), hidden=200, layers=2, intermediate_size=320)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("even"), hidden=256, layers=2, spread=0.1)


def parameters(span: SpanModel) -> dict[str, torch.Tensor]:
    return dict(span.architecture.lm.named_parameters())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_numbers_times_their_scales(odd: Path, tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    folder = quantised(odd, tmp_path / "quantised", form)
    loaded = parameters(SpanModel.load(folder, (0, 2), dtype=dtype))
    twin = parameters(SpanModel.load(plain(folder, tmp_path / "plain", dtype), (0, 2), dtype=dtype))
    assert loaded.keys() == twin.keys()
    assert all(torch.equal(loaded[name], twin[name]) for name in twin)


@pytest.mark.parametrize("policy", ["none", "adaptive"])
@pytest.mark.parametrize("form", ["fp8-block", "fp8-tensor", "float-channel", "int-channel"])
def test_a_pipeline_says_what_the_plain_model_says(odd: Path, tmp_path: Path, form: str, policy: PolicyName) -> None:
    folder, requests = quantised(odd, tmp_path / "quantised", form), load(3, seed=1)
    twin = plain(folder, tmp_path / "plain", torch.float32)
    assert run(folder, policy, 2, "right", requests) == expected(twin, requests)


@pytest.mark.parametrize("form", ["fp8-block", "fp8-tensor"])
def test_weights_are_those_that_transformers_makes(even: Path, tmp_path: Path, form: str) -> None:
    folder = quantised(even, tmp_path / "quantised", form)
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = FineGrainedFP8Config(weight_block_size=said["weight_block_size"], dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    ours = parameters(SpanModel.load(folder, (0, 2), dtype=torch.float32))
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    assert all(torch.equal(ours[name], parameter) for name, parameter in theirs.named_parameters())


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_keep_quantized_compute_the_same(odd: Path, tmp_path: Path, form: str) -> None:
    folder = quantised(odd, tmp_path / "quantised", form)
    kept = SpanModel.load(folder, (0, 2), dtype=torch.bfloat16, keep_quantized=True)
    made = SpanModel.load(folder, (0, 2), dtype=torch.bfloat16)
    rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    for layer, twin in zip(kept.layers, made.layers, strict=True):
        assert isinstance(layer.mlp.up_proj, QuantizedLinear)
        assert layer.mlp.up_proj.weight.element_size() == 1
        assert torch.equal(layer.mlp.up_proj(rows), twin.mlp.up_proj(rows))
        assert torch.equal(layer.mlp.up_proj.plain().weight, twin.mlp.up_proj.weight)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("family", "form"),
    [(family, "fp8-block") for family in ("qwen2", "qwen3", "phi3", "mistral")] + [("qwen2", "gptq"), ("phi3", "awq")],
)
def test_other_families_load_alike(tmp_path: Path, family: str, form: str, keep: bool) -> None:
    folder = quantised(tiny_model(tmp_path / "model", family, layers=2), tmp_path / "quantised", form)
    twin = SpanModel.load(plain(folder, tmp_path / "plain", torch.float32), (0, 2), dtype=torch.float32)
    span = SpanModel.load(folder, (0, 2), dtype=torch.float32, keep_quantized=keep)
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(span.layers[1].mlp(rows), twin.layers[1].mlp(rows))
    if family == "qwen2":
        assert torch.equal(span.layers[1].self_attn.q_proj(rows), twin.layers[1].self_attn.q_proj(rows))


@pytest.mark.parametrize("keep", [False, True])
def test_a_quantised_head_may_be_lent_to_a_draft(odd: Path, tmp_path: Path, keep: bool) -> None:
    target = quantised(odd, tmp_path / "target", "int-channel", r".*(_proj|lm_head)\.weight", ignore=[])
    whole = SpanModel.load(target, (0, 2), dtype=torch.float32)
    draft = Path(shutil.copytree(odd, tmp_path / "draft"))
    tensors = load_file(draft / SINGLE_FILE)
    save_file(
        {name: each for name, each in tensors.items() if ".layers." in name or "norm" in name}, draft / SINGLE_FILE
    )
    lent = SpanModel.load(draft, (0, 2), dtype=torch.float32, ends=target, keep_quantized=keep)
    assert isinstance(lent.architecture.lm_head, QuantizedLinear) == keep
    assert type(lent.layers[0].mlp.up_proj) is torch.nn.Linear
    rows = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lent.architecture.lm_head(rows), whole.architecture.lm_head(rows))
    assert torch.equal(lent.layers[0].mlp.up_proj.weight, tensors["model.layers.0.mlp.up_proj.weight"])


def test_layers_that_are_left_out_are_read_as_they_are(odd: Path, tmp_path: Path) -> None:
    only = r".*layers\.1\..*_proj\.weight"
    folder = quantised(odd, tmp_path / "some", "float-channel", only, ignore=["lm_head", r"re:.*layers\.0\."])
    span = SpanModel.load(folder, (0, 2), dtype=torch.float32, keep_quantized=True)
    assert type(span.layers[0].mlp.up_proj) is torch.nn.Linear
    assert isinstance(span.layers[1].mlp.up_proj, QuantizedLinear)


def test_an_8_bit_draft_is_one_like_any_other(odd: Path, tmp_path: Path) -> None:
    folder = quantised(odd, tmp_path / "quantised", "fp8-block")
    decoder = Decoder(Chain(folder, (0, 2)), 1, PROMPT, scattered())
    decoder.prefill(64)
    assert decoder.generate(8) == reference_greedy(plain(folder, tmp_path / "plain", torch.float32), PROMPT, 8)


MEASURE = """
import re, sys, torch
from pathlib import Path
from pipedec.model.loader import SpanModel
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
SpanModel.load(Path(sys.argv[1]), (0, 2), dtype=torch.float32)
before = peak()
SpanModel.load(Path(sys.argv[2]), (1, 7), dtype=torch.bfloat16)
print((peak() - before) * 1024)
"""


def test_peak_memory_is_that_of_the_span_in_its_dtype(odd: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", layers=8, hidden=512, heads=8, intermediate_size=4096)
    folder = quantised(model, tmp_path / "quantised", "fp8-block")
    layer = 2 * model_shape(folder).layer_parameters[0]
    command = [sys.executable, "-c", MEASURE, str(odd), str(folder)]
    environment = child_environment({"MALLOC_MMAP_THRESHOLD_": "131072"})  # else glibc keeps more or less, as it goes
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    # Six layers, the float32 copy of one that is probed and packed, a piece in float32 of a weight on its way.
    assert 5 * layer < int(output) < 11 * layer, int(output) / layer


def test_sizes_are_those_of_the_plain_model_and_the_identity_is_not(odd: Path, tmp_path: Path) -> None:
    folder = quantised(odd, tmp_path / "quantised", "fp8-block")
    assert model_shape(folder) == model_shape(odd)
    assert identity(folder) != identity(odd)


Damage = Callable[[Path], object]


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / SINGLE_FILE)
        change(tensors)
        save_file(tensors, folder / SINGLE_FILE)

    return edit


def no_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{QUERY}.weight"].view(torch.uint8)[199, 199] = 0xFF


SCALE = f"{QUERY}.weight_scale_inv"
EMBEDDING = "model.embed_tokens.weight"
DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    (r"config\.json: `quantization_config.quant_method` is 'mxfp4'", edit_config(quant_method="mxfp4")),
    (r"is F8_E4M3, but config\.json has no `quantization_config`", no_config),
    (
        r"q_proj\.weight' is F8_E4M3, by the .* it is not quantised",
        edit_config(modules_to_not_convert=["q_proj", "lm_head"]),
    ),
    (rf"'{SCALE}' is missing", edit(lambda tensors: tensors.pop(SCALE))),
    (rf"'{SCALE}' has shape \(2,\), config.json asks for \(2, 2\)", edit(lambda t: t.update({SCALE: torch.ones(2)}))),
    (rf"'{SCALE}' is U8; scales are", edit(lambda t: t.update({SCALE: t[SCALE].to(torch.uint8)}))),
    (rf"'{QUERY}\.weight' or its .* holds NaN", edit(not_a_number)),
    (rf"'{QUERY}\.weight' or its .* holds NaN", edit(lambda t: t[SCALE].fill_(float("nan")))),
    (r"scales of 256 and more", edit(lambda t: t[SCALE].fill_(300.0))),
    (
        rf"'{QUERY}\.weight' is I8, by the .* a matrix in F8_E4M3",
        edit(lambda t: t.update({f"{QUERY}.weight": torch.ones(200, 200, dtype=torch.int8)})),
    ),
    (
        rf"'{QUERY}\.weight_zero_point': its numbers are asymmetric",
        edit(lambda t: t.update({f"{QUERY}.weight_zero_point": torch.zeros(200, 1, dtype=torch.int8)})),
    ),
    (
        rf"'{QUERY}\.weight_g_idx': its numbers are reordered",
        edit(lambda t: t.update({f"{QUERY}.weight_g_idx": torch.zeros(200, dtype=torch.int32)})),
    ),
    (
        rf"'{EMBEDDING}' is quantised, but is no linear layer's",
        edit(
            lambda t: t.update(
                {
                    EMBEDDING: t[EMBEDDING].to(torch.float8_e4m3fn),
                    EMBEDDING.replace("weight", "weight_scale_inv"): torch.ones(3, 2),
                }
            )
        ),
    ),
]


@pytest.mark.parametrize(("problem", "damage"), DAMAGE, ids=[problem for problem, _ in DAMAGE])
def test_a_damaged_checkpoint_is_refused_with_tensor_and_reason(
    odd: Path, tmp_path: Path, problem: str, damage: Callable[[Path], None]
) -> None:
    folder = quantised(odd, tmp_path / "quantised", "fp8-block")
    damage(folder)
    for keep in (False, True):
        with pytest.raises(ModelError, match=problem):
            SpanModel.load(folder, (0, 2), dtype=torch.float32, keep_quantized=keep)
