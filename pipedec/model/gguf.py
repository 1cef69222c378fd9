"""A GGUF checkpoint turned into what everything else here reads: `python -m pipedec.model.gguf SOURCE TARGET`.

Run as a program of its own, it gives back the memory that a conversion takes, twice the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gguf import GGUFReader
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pipedec.errors import ModelError


def convert_gguf(source: Path, target: Path) -> None:
    """Writes the model in GGUF file `source` to the existing folder `target`, as float32.

    A quantised block is a half-precision scale times small integers: float32 holds every such product exactly, and
    bfloat16 would round it a second time. Raises `ModelError` when the file is no model that transformers knows.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{source}: cannot be converted ({error}); give the model as safetensors") from error
    _restore_pre_tokenizer(tokenizer, source)
    tokenizer.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    # `save_pretrained` refuses a model that came from GGUF, and its config names a quantisation that is gone.
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}
    for gone in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(gone, None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    weights = target / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # a shared cache is read by others


def _restore_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """Split digits from what surrounds them, as SmolLM was trained; transformers drops this on reading GGUF.

    Without it a number after a line break changes the tokens of the break: every item of a numbered list.
    """
    field = GGUFReader(source).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )


if __name__ == "__main__":
    try:
        convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModelError as error:
        sys.exit(str(error))
