"""The target's own answers, sampled in large batches, with its distribution at every token: what a draft learns from.

Most questions are made by `prompts.py`; up to a quarter the target imagines itself: after the opening of a user's
turn, an instruction-tuned model goes on with a question of its own (Xu et al., Magpie, arXiv 2406.08464).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from examples.smollm2.cache import ATTENTION, GrowingCache
from examples.smollm2.prompts import Prompts
from pipedec.model.layers import cache_argument

KEPT = 32  # likeliest tokens kept of each distribution
DRAWN_FROM = 64  # likeliest tokens that a sampled answer may use
TEMPERATURES = (0.0, 0.0, 0.4, 0.7, 1.0)
QUESTION_TOKENS, ANSWER_TOKENS, HELD_OUT_TOKENS = 80, 160, 128
ROUND = 4  # batches of answers to the questions of one batch, and others
HELD_OUT = "held-out.npz"  # greedy answers to the prompts that are held out, to measure by


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's tokens, the answer's, and the target's `KEPT` likeliest log-probabilities for each of the latter."""

    prompt: list[int]
    tokens: list[int]
    top_tokens: npt.NDArray[np.uint16]  # [len(tokens), KEPT]
    top_logprobs: npt.NDArray[np.float16]


class _Said:
    """What many texts have said so far, on the device, with the likeliest tokens at every place. `lengths` [texts]: how
    many tokens of each count."""

    def __init__(self, texts: int, limit: int, device: torch.device) -> None:
        self._tokens = torch.zeros(texts, limit, dtype=torch.int32, device=device)
        self._top_tokens = torch.zeros(texts, limit, KEPT, dtype=torch.int32, device=device)
        self._top_logprobs = torch.zeros(texts, limit, KEPT, dtype=torch.float16, device=device)
        self.lengths = torch.zeros(texts, dtype=torch.int64)

    def add(
        self, step: int, texts: torch.Tensor, chosen: torch.Tensor, top: torch.Tensor, logprobs: torch.Tensor
    ) -> None:
        """These texts [n] said `chosen` [n]; `top` and `logprobs` [n, at least KEPT] are likeliest first."""
        texts = texts.to(chosen.device)
        self._tokens[texts, step] = chosen.int()
        self._top_tokens[texts, step] = top[:, :KEPT].int()
        self._top_logprobs[texts, step] = logprobs[:, :KEPT].half()

    def answers(self, prompts: Sequence[list[int]]) -> list[Answer]:
        """To these prompts, one each."""
        tokens = self._tokens.tolist()
        top, logprobs = self._top_tokens.cpu().numpy().astype(np.uint16), self._top_logprobs.cpu().numpy()
        return [
            Answer(prompt, tokens[i][:length], top[i, :length].copy(), logprobs[i, :length].copy())
            for i, (prompt, length) in enumerate(zip(prompts, self.lengths.tolist(), strict=True))
        ]


class Target:
    """Continues many texts at once. `model` is a causal LM of transformers, `end` the token that ends a turn."""

    def __init__(self, model: Any, end: int, seed: int) -> None:
        model.set_attn_implementation(ATTENTION)
        self._model, self._end, self._device = model, end, model.device
        self._generator = torch.Generator(self._device).manual_seed(seed)

    @torch.inference_mode()
    def continue_all(self, prompts: Sequence[list[int]], temperatures: Sequence[float], limit: int) -> list[Answer]:
        """Sample up to `limit` tokens after each prompt; greedy where the temperature is 0."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        width = max(map(len, prompts))
        ids = self._tensor([p[:shared] + [self._end] * (width - len(p)) + p[shared:] for p in prompts])
        padding = self._tensor([[0] * shared + [1] * (width - len(p)) + [0] * (len(p) - shared) for p in prompts])
        positions = ((1 - padding).cumsum(-1) - 1).clamp(min=0)
        cache = GrowingCache(self._model.config.num_hidden_layers, width + limit, padding.bool())
        if shared:  # computed once, for all
            self._run(ids[:1, :shared], positions[:1, :shared], cache, texts=1)
            cache.expand(len(prompts))
            ids, positions = ids[:, shared:], positions[:, shared:]
        temperature, rows = torch.tensor(temperatures, device=self._device), torch.arange(len(prompts))
        said = _Said(len(prompts), limit, self._device)
        running = torch.ones(len(prompts), dtype=torch.bool)
        for step in range(limit):
            top = self._run(ids, positions, cache, len(rows)).log_softmax(-1).topk(DRAWN_FROM)
            chosen = self._draw(top.values, top.indices, temperature)
            said.add(step, rows, chosen, top.indices, top.values)
            said.lengths[rows[running]] = step + 1
            running = running & (chosen.cpu() != self._end)  # all that a GPU is waited for
            if not running.any():
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            if running.sum() <= 0.75 * len(rows):  # computing those that have ended would be waste
                kept = running.nonzero().squeeze(-1)
                rows, running = rows[kept], running[kept]
                kept = kept.to(self._device)
                cache.keep(kept)
                ids, positions, temperature = ids[kept], positions[kept], temperature[kept]
        return said.answers(prompts)

    def _tensor(self, numbers: list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, cache: GrowingCache, texts: int) -> torch.Tensor:
        """The logits [texts, vocabulary] after the newest tokens [texts, new], which the cache then holds."""
        bias = cache.bias(texts, ids.shape[1], self._model.dtype)
        caching = {cache_argument(self._model): cache}
        output = self._model(input_ids=ids, attention_mask=bias, position_ids=positions, logits_to_keep=1, **caching)
        cache.size += ids.shape[1]
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _draw(self, logprobs: torch.Tensor, tokens: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(logprobs).exponential_(generator=self._generator).log().neg()
        best = (logprobs + temperature[:, None] * noise).argmax(-1, keepdim=True)
        return tokens.gather(-1, best).squeeze(-1)


def collect(
    target: Target,
    tokenizer: Any,
    folder: Path,
    *,
    tokens: int,
    batch: int,
    seed: int,
    held_out: Collection[str],
    tell: Callable[[str], None],
) -> None:
    """Fill `folder` with shards until they hold `tokens` answer tokens; goes on where an earlier run stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = sorted(folder.glob("shard-*.npz"))
    have, index = sum(int(np.load(shard)["top_tokens"].shape[0]) for shard in shards), len(shards)
    prompts = Prompts(random.Random(seed + index), held_out)
    made = iter(prompts)
    opening, closing = _turn(tokenizer)

    def ask(texts: Sequence[str]) -> list[list[int]]:
        return [opening + tokenizer(text, add_special_tokens=False)["input_ids"] + closing for text in texts]

    if not (folder / HELD_OUT).exists():
        kept = target.continue_all(ask(sorted(held_out)), [0.0] * len(held_out), HELD_OUT_TOKENS)
        save(folder / HELD_OUT, kept)
    start, before = time.monotonic(), have
    while have < tokens:
        rng = random.Random((seed << 20) + index)
        imagined = target.continue_all([opening] * batch, [1.0] * batch, QUESTION_TOKENS)
        questions = [a.tokens[:-1] for a in imagined if a.tokens[-1] == tokenizer.eos_token_id]
        texts = [text for text in tokenizer.batch_decode(questions) if text not in held_out]
        texts += islice(made, ROUND * batch - len(texts))
        asked = sorted(ask(texts), key=len)  # those of like length together: padding is computed, too
        shard = imagined  # its questions are the target's own words as well
        while asked and have < tokens:
            some, asked = asked[:batch], asked[batch:]
            answers = target.continue_all(some, [rng.choice(TEMPERATURES) for _ in some], ANSWER_TOKENS)
            for answer in answers:
                prompts.heard(tokenizer.decode(answer.tokens, skip_special_tokens=True))
            shard += answers
            save(folder / f"shard-{index:05d}.npz", shard)
            have, index, shard = have + sum(len(a.tokens) for a in shard), index + 1, []
            rate = (have - before) / (time.monotonic() - start)
            tell(
                f"{have:,} of {tokens:,} tokens, {rate:.0f} tokens/s, {max(tokens - have, 0) / rate / 60:.0f} min left"
            )


def save(file: Path, answers: Sequence[Answer]) -> None:
    """One shard; it appears whole or not at all."""
    partial = file.with_name("partial.npz")
    np.savez(
        partial,
        tokens=np.array([t for a in answers for t in (*a.prompt, *a.tokens)], np.uint16),
        prompt_lengths=np.array([len(a.prompt) for a in answers], np.int32),
        answer_lengths=np.array([len(a.tokens) for a in answers], np.int32),
        top_tokens=np.concatenate([a.top_tokens for a in answers]),
        top_logprobs=np.concatenate([a.top_logprobs for a in answers]),
    )
    partial.replace(file)


def load(files: Sequence[Path]) -> list[Answer]:
    """All answers of some shards."""
    answers = []
    for file in files:
        with np.load(file) as arrays:
            tokens, top, logprobs = (arrays[name] for name in ("tokens", "top_tokens", "top_logprobs"))
            at = row = 0
            lengths = (arrays[f"{part}_lengths"].tolist() for part in ("prompt", "answer"))
            for prompt, length in zip(*lengths, strict=True):
                middle, end = at + prompt, at + prompt + length
                answers.append(
                    Answer(
                        tokens[at:middle].tolist(),
                        tokens[middle:end].tolist(),
                        top[row : row + length],
                        logprobs[row : row + length],
                    )
                )
                at, row = end, row + length
    return answers


def _turn(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before a user's question and after it, up to where the assistant speaks."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    )
    before, after = text.split("\0")
    opening, closing = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    return opening, closing
