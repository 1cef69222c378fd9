"""A model's tokenizer as its folder has it, for the endpoint, and for the stage that keeps answers to grammars."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipedec.errors import ModelError


def read_tokenizer(directory: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model in a local directory, or of a GGUF file in it. Raises `ModelError`."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, gguf_file=gguf_file, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the Rust library raises nothing more precise for a file that it cannot read
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ModelError(
            f"{directory}: its tokenizer cannot be loaded ({reason}); it must be a tokenizer.json that transformers' "
            "save_pretrained writes, without code of its own"
        ) from error
    return tokenizer


def backend_of(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    """The Rust tokenizer, which neither cuts texts nor fills them up. Raises `ModelError` where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{tokenizer.name_or_path}: a tokenizer.json is needed, but there is none")
    backend.no_truncation()  # tokenizer.json may carry what a training script has set: prompts would be cut,
    backend.no_padding()  # or filled up
    return backend
