"""What a `quantization_config` means, and that what is not run is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from pipedec.errors import ModelError
from pipedec.quantization import FLOAT8, INT8, PACKED, Scheme, read_quantization
from tests.four_bits import AWQ, GPTQ
from tests.quantised import FORMS, FOUR_BITS, compressed, pack_quantized

QUERY = "model.layers.11.self_attn.q_proj"
GATE = "model.layers.1.mlp.gate_proj"


def read(config: Any) -> Any:
    return read_quantization({"quantization_config": config})


def test_other_models_have_none() -> None:
    assert read_quantization({}) is None
    assert read_quantization({"quantization_config": None}) is None


@pytest.mark.parametrize("form", FORMS)
def test_every_linear_layer_but_the_head_is_quantised(form: str) -> None:
    found = read(FORMS[form][0])
    assert found.scheme("lm_head") is None
    assert found.scheme(QUERY).dtype == (INT8 if form == "int-channel" else FLOAT8)
    assert FORMS[form][1] in found.scale_names


@pytest.mark.parametrize("form", FOUR_BITS)
def test_every_linear_layer_but_the_head_is_in_4_bits(form: str) -> None:
    found = read(FOUR_BITS[form][0])
    assert found.scheme("lm_head") is None
    assert (found.scheme(QUERY).dtype, found.scheme(QUERY).bits) == (PACKED, 4)


def test_a_scheme_in_4_bits_says_what_lies_where() -> None:
    assert read(pack_quantized(64)).scheme(QUERY) == Scheme(PACKED, ("group",), "compressed-tensors", 64)
    assert read(pack_quantized(None)).scheme(QUERY) == Scheme(PACKED, ("channel",), "compressed-tensors")
    assert read(pack_quantized(64, strategy=None, symmetric=False)).scheme(QUERY).zeros
    old = {"quant_method": "gptq", "bits": 4}  # as AutoGPTQ wrote it
    assert read(old).scheme(QUERY) == Scheme(PACKED, ("group",), "gptq", 128, zeros=True)
    assert read(old | {"checkpoint_format": "gptq_v2"}).scheme(QUERY).packing == "gptq_v2"
    assert read(old | {"group_size": -1}).scheme(QUERY).group is None
    old = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    assert read(old).scheme(QUERY) == Scheme(PACKED, ("group",), "awq", 64, zeros=True)


def test_gptq_says_by_module_what_is_quantised() -> None:
    assert read(GPTQ | {"lm_head": True}).scheme("lm_head").group == 128
    named = {"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.down_proj"]]}
    for more in ({}, {"block_name_to_quantize": "model.layers"}):
        found = read(GPTQ | named | more)
        assert found.scheme(QUERY) is not None
        assert found.scheme(GATE) is None
    assert read(GPTQ | named | {"block_name_to_quantize": "decoder.layers"}).scheme(QUERY) is None
    rules = {
        "-:.*layers\\.11\\.": {},
        "+:.*_proj": {"bits": 4, "group_size": 32, "desc_act": True},
        ".*": {"sym": True},
    }
    found = read(GPTQ | {"dynamic": rules})
    assert found.scheme(QUERY) is None
    assert found.scheme(GATE).group == 32
    assert found.scheme("model.layers.1.mlp.fc").group == 128


def test_awq_leaves_out_what_it_names() -> None:
    found = read(AWQ | {"modules_to_not_convert": ["model.layers.1", "o_proj"]})
    assert found.scheme(GATE) is None
    assert found.scheme(QUERY) is not None
    assert found.scheme(QUERY.replace("q_proj", "o_proj")) is None


def test_without_a_block_size_blocks_and_tensors_are_told_apart_by_their_scales() -> None:
    assert read({"quant_method": "fp8"}).scheme(QUERY).strategies == ("block", "tensor")
    assert read({"quant_method": "fp8", "weight_block_size": None}).scheme(QUERY).strategies == ("tensor",)
    assert read({"quant_method": "fp8", "weight_block_size": [128, 128]}).scheme(QUERY).strategies == ("block",)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("model.layers.1", {GATE}),  # not layer 11
        ("model.layers.*.mlp.gate", set()),  # a router, not its neighbour
        ("model.layers.*.mlp", {GATE}),
        ("gate_proj", {GATE}),
        ("q_proj", {QUERY}),
    ],
)
def test_fp8_leaves_out_parts_from_the_beginning_or_at_the_end(entry: str, names: set[str]) -> None:
    found = read({"quant_method": "fp8", "modules_to_not_convert": [entry], "ignored_layers": ["model"]})
    assert {name for name in (QUERY, GATE) if found.scheme(name) is None} == names


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("q_proj", set()),
        (QUERY, {QUERY}),
        ("re:q_proj", set()),
        ("re:.*q_proj", {QUERY}),
        (r"re:.*layers\.1\.", {GATE}),
        ("Linear", {QUERY, GATE}),
    ],
)
def test_compressed_tensors_leaves_out_names_and_expressions(entry: str, names: set[str]) -> None:
    found = read(compressed("float-quantized", "float", "channel") | {"ignore": [entry]})
    assert {name for name in (QUERY, GATE) if found.scheme(name) is None} == names


def test_the_most_particular_target_decides() -> None:
    config = compressed("float-quantized", "float", "channel")
    particular = compressed("int-quantized", "int", "channel")["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = particular | {"format": "int-quantized", "targets": [r"re:.*mlp\..*"]}
    config["config_groups"]["group_2"] = {"targets": ["Linear"], "weights": None}
    assert read(config).scheme(GATE) == Scheme(INT8, ("channel",))
    assert read(config).scheme(QUERY) == Scheme(FLOAT8, ("channel",))


def weights(**changes: Any) -> dict[str, Any]:
    config = compressed("int-quantized", "int", "channel")
    config["config_groups"]["group_0"]["weights"] |= changes
    return config


def with_format(form: str, **changes: Any) -> dict[str, Any]:
    return compressed("int-quantized", "int", "channel") | {"format": form} | changes


REFUSED: list[tuple[str, Any]] = [
    *(
        (rf"`quantization_config.quant_method` is '{name}'", {"quant_method": name})
        for name in ("auto-round", "hqq", "mxfp4")
    ),
    (r"quant_method` is 'bitsandbytes'", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    (r"quant_method` is 'fbgemm_fp8'", {"quant_method": "fbgemm_fp8"}),
    (r"quant_method` is None", {"load_in_4bit": True}),
    (r"not a JSON object", "fp8"),
    (r"weight_block_size` is \[1, 128\]", {"quant_method": "fp8", "weight_block_size": [1, 128]}),
    (r"`quantization_config.fmt` is 'e5m2'", {"quant_method": "fp8", "fmt": "e5m2"}),
    (r"expert_dtype` is 'fp4'", {"quant_method": "fp8", "expert_dtype": "fp4"}),
    (r"modules_to_convert` is \['embed", {"quant_method": "fp8", "modules_to_convert": ["embed_tokens"]}),
    (r"modules_to_not_convert` is 'lm_head', a list", {"quant_method": "fp8", "modules_to_not_convert": "lm_head"}),
    (r"ignored_layers` has a faulty expression", {"quant_method": "fp8", "ignored_layers": ["("]}),
    (r"kv_cache_scheme` is \{'num_bits': 8", with_format("float-quantized", kv_cache_scheme={"num_bits": 8})),
    (r"sparsity_config` is \{'format': 'sparse", with_format("dense", sparsity_config={"format": "sparse-24-bitmask"})),
    (r"transform_config` is \{'config", with_format("int-quantized", transform_config={"config_groups": {"R1": {}}})),
    (r"quantization_status` is 'frozen'", with_format("int-quantized", quantization_status="frozen")),
    (r"group_0.weights.num_bits` is 8", with_format("pack-quantized")),
    (r"`quantization_config.format` is 'nvfp4-pack", with_format("nvfp4-pack-quantized")),
    (r"config_groups` is \{\}", with_format("int-quantized", config_groups={})),
    (r"config_groups.FP8` is \['Linear'\]", with_format("int-quantized", config_groups={"FP8": ["Linear"]})),
    (r"ignore` has a faulty expression", with_format("int-quantized", ignore=["re:*"])),
    (r"group_0.weights.num_bits` is 4", weights(num_bits=4)),
    (r"group_0.weights.symmetric` is False", weights(symmetric=False)),
    (r"group_0.weights.actorder` is 'group'", weights(actorder="group")),
    (r"group_0.weights.type` is 'code", weights(type="codebook")),
    (r"group_0.weights.strategy` is 'group'", weights(strategy="group", group_size=128)),
    (r"group_0.weights.strategy` is 'group'", weights(strategy=None, group_size=64)),
    (r"group_0.weights.strategy` is 'tensor'", pack_quantized(None, strategy="tensor")),
    (r"group_0.weights.strategy` is 'block'", pack_quantized(None, strategy="block", block_structure=[128, 128])),
    (r"group_0.weights.type` is 'float'", pack_quantized(32, type="float")),
    (r"group_0.weights.actorder` is 'group'", pack_quantized(32, actorder="group")),
    (r"group_0.weights.group_size` is 48", pack_quantized(48)),
    (r"group_0.weights.group_size` is 0", pack_quantized(0)),
    (r"`quantization_config.bits` is 8", GPTQ | {"bits": 8}),
    (r"`quantization_config.bits` is None", {"quant_method": "gptq"}),
    (r"checkpoint_format` is 'marlin'", GPTQ | {"checkpoint_format": "marlin"}),
    (r"is_marlin_format` is True", GPTQ | {"is_marlin_format": True}),
    (r"pack_dtype` is 'int64'", GPTQ | {"pack_dtype": "int64"}),
    (r"lm_head` is 'yes'", GPTQ | {"lm_head": "yes"}),
    (r"`quantization_config.group_size` is 100", GPTQ | {"group_size": 100}),
    (r"`quantization_config.group_size` is True", GPTQ | {"group_size": True}),
    (r"dynamic` is \['.*'\]", GPTQ | {"dynamic": [".*"]}),
    (r"dynamic.\+:a.bits` is 8", GPTQ | {"dynamic": {"+:a": {"bits": 8}}}),
    (r"dynamic.a.group_size` is 7", GPTQ | {"dynamic": {"a": {"group_size": 7}}}),
    (r"dynamic.a.adapter` is 'x'", GPTQ | {"dynamic": {"a": {"adapter": "x"}}}),
    (r"dynamic.a` is False", GPTQ | {"dynamic": {"a": False}}),
    (r"dynamic.-:\(` has a faulty expression", GPTQ | {"dynamic": {"-:(": {}}}),
    (r"modules_in_block_to_quantize` is 'q_proj', a list", GPTQ | {"modules_in_block_to_quantize": "q_proj"}),
    (r"`quantization_config.bits` is 3", AWQ | {"bits": 3}),
    (r"`quantization_config.version` is 'gemv'", AWQ | {"version": "gemv"}),
    (r"zero_point` is False", AWQ | {"zero_point": False}),
    (r"backend` is 'llm-awq'", AWQ | {"backend": "llm-awq"}),
    (r"modules_to_not_convert` is 'lm_head', a list", AWQ | {"modules_to_not_convert": "lm_head"}),
    (r"block_structure` is \[64, 64\]", weights(strategy="block", block_structure=[64, 64])),
]


@pytest.mark.parametrize(("problem", "config"), REFUSED, ids=[problem for problem, _ in REFUSED])
def test_what_is_not_run_is_refused_by_name(problem: str, config: Any) -> None:
    with pytest.raises(ModelError, match=problem) as error:
        read(config)
    if "are not run" in str(error.value):
        assert "quantised" in str(error.value)
        assert "use the model's original weights" in str(error.value)


def test_an_order_that_changes_nothing_is_accepted() -> None:
    assert read(weights(actorder="static")) is not None
    assert read(weights(strategy=None, group_size=-1)).scheme(QUERY).strategies == ("channel",)
