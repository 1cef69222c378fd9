"""Tiny random models with a byte-level tokenizer: real checkpoints, made in a moment, the same every time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

END_TOKEN = "<|im_end|>"
_START_TOKEN = "<|im_start|>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    vocab: int = 320,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    tied: bool = False,
    spread: float = 0.3,
    shard_size: str = "50GB",
    **config: Any,
) -> Path:
    """Write a model of this family to `folder` as transformers saves one, and return `folder`.

    `spread` is the standard deviation of the weights: far above that of a trained model, so that greedy tokens are
    well apart and differ from step to step. `config` are further fields of the family's configuration. The
    vocabulary's first 256 tokens are bytes, then two special tokens; what is beyond has no text.
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "initializer_range": spread,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**(sizes | config)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # norms and biases are initialised to constants, which would hide mistakes
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif "embed" in name:
                    parameter.normal_()
    model.save_pretrained(folder, max_shard_size=shard_size)
    _write_tokenizer(folder)
    return folder


def reference_greedy(folder: Path, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers' own generate() continues the prompt with, greedily, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    generated: list[int] = output[0, len(prompt) :].tolist()
    return generated


def _write_tokenizer(folder: Path) -> None:
    """A token for each byte, and the two that mark a chat's turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_START_TOKEN, special=True), AddedToken(END_TOKEN, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
