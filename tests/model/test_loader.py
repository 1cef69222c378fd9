"""Loading a span: only its own tensors, and clear refusals."""

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
from transformers import AutoModelForCausalLM

from pipedec.config import child_environment
from pipedec.errors import ModelError
from pipedec.model.loader import SpanModel
from pipedec.model.shape import INDEX_FILE, SINGLE_FILE, model_shape
from tests.model.pipeline import Chain, Decoder, scattered
from tests.tiny import reference_greedy, tiny_model

PROMPT = tuple(range(30, 60))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize("tied", [False, True])
def test_shape_counts_what_transformers_counts(tmp_path: Path, tied: bool) -> None:
    folder = tiny_model(tmp_path, layers=3, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = model_shape(folder)
    assert shape.architecture == "LlamaForCausalLM"
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size, shape.max_context) == (3, 32, 320, 512)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.intermediate_size) == (4, 2, 8, 64)
    assert (shape.tied, shape.dtype) == (tied, "float32")
    assert shape.parameters((0, 3)) == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters == tuple(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers)
    assert shape.parameters((1, 2)) == shape.layer_parameters[1]
    assert shape.parameters((2, 3)) == shape.layer_parameters[2] + 320 * 32 + 32
    assert shape.kv_elements(layers=2) == 2 * 2 * 2 * 8


def test_longrope_limits_the_context_to_where_frequencies_do_not_change(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    folder = tiny_model(
        tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=64, max_position_embeddings=512
    )
    assert model_shape(folder).max_context == 64
    decoder = Decoder(Chain(folder, (0, 4)), 1, PROMPT, scattered())
    decoder.prefill(7)
    assert decoder.generate(20) == reference_greedy(folder, PROMPT, 20)


def test_sharded_checkpoints_load_alike(llama: Path, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, shard_size="40KB")
    assert (folder / INDEX_FILE).exists()
    assert model_shape(folder) == model_shape(llama)
    decoder = Decoder(Chain(folder, (0, 2, 4)), 1, PROMPT, scattered())
    decoder.prefill(64)
    assert decoder.generate(8) == reference_greedy(llama, PROMPT, 8)


@pytest.mark.parametrize("tied", [False, True])
def test_first_layers_with_norm_and_head_make_a_shallower_model(tmp_path: Path, tied: bool) -> None:
    folder = tiny_model(tmp_path / "whole", tied=tied)
    draft = SpanModel.load(folder, (0, 2), dtype=torch.float32, first=True, last=True)
    assert next(p.device.type for p in draft.architecture.layers[2].parameters()) == "meta"
    shallow = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2)
    chain = Chain(folder, (0, 4))
    chain.spans = [type(chain.spans[0])(draft, 64)]
    shallow.save_pretrained(tmp_path / "shallow")
    decoder = Decoder(chain, 1, PROMPT, iter(range(64)))
    decoder.prefill(64)
    assert decoder.generate(8) == reference_greedy(tmp_path / "shallow", PROMPT, 8)


def test_a_span_reads_only_its_own_tensors(copied: Path) -> None:
    tensors = load_file(copied / SINGLE_FILE)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers." in name or name == "model.norm.weight"}
    save_file(kept, copied / SINGLE_FILE)
    for layer in ("0", "1", "3"):
        kept[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.zeros(1)
    save_file(kept, copied / SINGLE_FILE)
    span = SpanModel.load(copied, (2, 3), dtype=torch.float32)
    assert not span.first
    assert not span.last
    assert not any(p.is_meta for p in span.layers[0].parameters())
    assert all(p.is_meta for i in (0, 1, 3) for p in span.architecture.layers[i].parameters())


def test_weights_take_the_dtype_asked_for_and_progress_is_told(llama: Path) -> None:
    told: list[float] = []
    span = SpanModel.load(llama, (0, 4), dtype=torch.bfloat16, progress=told.append)
    assert {p.dtype for layer in span.layers for p in layer.parameters()} == {torch.bfloat16}
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) == 4 * 9 + 3


MEASURE = """
import re, sys, torch
from pathlib import Path
from pipedec.model.loader import SpanModel
def peak():  # not ru_maxrss, which a child takes over from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
SpanModel.load(Path(sys.argv[1]), (0, 4), dtype=torch.float32)
before = peak()
for end in (2, 7):
    SpanModel.load(Path(sys.argv[2]), (1, end), dtype=torch.float32)
    print((peak() - before) * 1024)
"""


def test_peak_memory_is_that_of_the_span(llama: Path, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, layers=8, hidden=512, heads=8, intermediate_size=2048)
    layer = 4 * model_shape(folder).layer_parameters[0]

    command = [sys.executable, "-c", MEASURE, str(llama), str(folder)]
    environment = child_environment({"MALLOC_MMAP_THRESHOLD_": "131072"})  # else glibc keeps more or less, as it goes
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    one, six = map(int, output.split())
    assert one < 3 * layer  # the layer, the float32 copy that is probed, one tensor on its way
    assert 5 * layer < six < 8.5 * layer


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


def edit_tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / SINGLE_FILE) | changes
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE_FILE)

    return edit


def cut_short(folder: Path) -> None:
    file = folder / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-100])


def replace(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


GATE = "model.layers.1.mlp.gate_proj.weight"
DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    (r"config\.json: cannot be read", lambda folder: (folder / "config.json").unlink()),
    (r"config\.json: not JSON", replace("config.json", "{")),
    (r"`hidden_size` is None", edit_config(hidden_size=None)),
    (r"`rope_parameters` is 'yarn'", edit_config(rope_parameters="yarn")),
    (r"no causal language model", edit_config(model_type="unheard_of")),
    (r"no causal language model", edit_config(model_type="clip")),
    (r"quantised", edit_config(quantization_config={"quant_method": "hqq"})),
    (r"layer 4 has no tensors", edit_config(num_hidden_layers=5)),
    (rf"'{GATE}' has shape \(3, 3\)", edit_tensors(**{GATE: torch.zeros(3, 3)})),
    (r"has shape \(64, 32\), config\.json asks for \(128, 32\)", edit_config(intermediate_size=128)),
    (rf"'{GATE}' is missing", edit_tensors(**{GATE: None})),
    (r"lm_head\.weight' is missing", edit_tensors(**{"lm_head.weight": None})),
    (r"bytes are promised", cut_short),
    (r"not a safetensors file", replace(SINGLE_FILE, "rubbish" * 9)),
    (r"only safetensors are loaded", lambda folder: (folder / SINGLE_FILE).unlink()),
    (r"index\.json: a JSON object is expected", replace(INDEX_FILE, "[]")),
    (r"index\.json: not JSON", replace(INDEX_FILE, "[" * 100_000)),
    (r"outside the model's folder", replace(INDEX_FILE, '{"weight_map": {"a": "../elsewhere.safetensors"}}')),
    (r"model-1\.safetensors: cannot be read", replace(INDEX_FILE, '{"weight_map": {"a": "model-1.safetensors"}}')),
]


@pytest.mark.parametrize(("problem", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_file_and_reason(
    copied: Path, problem: str, damage: Callable[[Path], None]
) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=problem):
        SpanModel.load(copied, (0, 4), dtype=torch.float32)


@pytest.mark.parametrize("layers", [(-1, 2), (2, 2), (3, 5)])
def test_layers_outside_the_model_are_refused(llama: Path, layers: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="the model has 4"):
        SpanModel.load(llama, layers, dtype=torch.float32)


def test_remote_code_is_never_run(copied: Path) -> None:
    edit_config(auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"}, model_type="evil")(copied)
    (copied / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="no causal language model"):
        SpanModel.load(copied, (0, 4), dtype=torch.float32)


@pytest.mark.parametrize("tied", [False, True])
def test_a_draft_borrows_the_embedding_and_head_that_it_lacks(tmp_path: Path, tied: bool) -> None:
    target = tiny_model(tmp_path / "target", layers=4, tied=tied)
    draft = Path(shutil.copytree(target, tmp_path / "draft"))
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    own = {n: t for n, t in load_file(draft / SINGLE_FILE).items() if ".layers.0." in n or ".layers.1." in n}
    norm = torch.full((32,), 2.0)
    save_file({**own, "model.norm.weight": norm}, draft / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"embed_tokens\.weight' is missing"):
        SpanModel.load(draft, (0, 2), dtype=torch.float32)
    lent = SpanModel.load(draft, (0, 2), dtype=torch.float32, ends=target).architecture
    whole = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(lent.embedding.weight, whole.model.embed_tokens.weight)
    assert torch.equal(lent.lm_head.weight, whole.lm_head.weight)
    assert torch.equal(lent.norm.weight, norm)
