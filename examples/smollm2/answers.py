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
from examples.smollm2.graphed import Graphed
from examples.smollm2.prompts import Prompts
from examples.smollm2.student import fuse_norms
from pipedec.model.layers import cache_argument

KEPT = 16  # likeliest tokens kept of each distribution
DRAWN_FROM = 64  # likeliest tokens that a sampled answer may use
TEMPERATURES = (0.0, 0.0, 0.4, 0.7, 1.0)
QUESTION_TOKENS, ANSWER_TOKENS, HELD_OUT_TOKENS = 80, 160, 128
ROUND = 4  # batches of answers to the questions of one batch, and others
ROOM = 512  # tokens of each text that a GPU has room for, or more
HEARD = 256  # answers of a batch that become material for questions
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
        """These texts [n] said `chosen` [n]; `top` and `logprobs` [n, at least KEPT] are likeliest first. All lie on
        the device."""
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
        self._generator = torch.Generator(self._device)
        self.reseed(seed)
        self._graphed = self._device.type == "cuda"
        if self._graphed:
            fuse_norms(model)
        self._cache = GrowingCache(0, 0, 0, self._device, self._graphed)

    def reseed(self, seed: int) -> None:
        """Sample from here on as this seed has it."""
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def continue_all(self, prompts: Sequence[list[int]], temperatures: Sequence[float], limit: int) -> list[Answer]:
        """Sample up to `limit` tokens after each prompt; greedy where the temperature is 0."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        width = max(map(len, prompts))
        ids = self._tensor([p[:shared] + [self._end] * (width - len(p)) + p[shared:] for p in prompts])
        padding = self._tensor([[0] * shared + [1] * (width - len(p)) + [0] * (len(p) - shared) for p in prompts])
        positions = ((1 - padding).cumsum(-1) - 1).clamp(min=0)
        self._make_room(len(prompts), width + limit)
        self._cache.begin(padding.bool())
        if shared:  # computed once, for all
            self._likeliest(ids[:1, :shared], positions[:1, :shared])
            self._cache.added(shared)
            ids, positions = ids[:, shared:], positions[:, shared:]
        temperature, rows = torch.tensor(temperatures, device=self._device), torch.arange(len(prompts))
        places = rows.to(self._device)
        said = _Said(len(prompts), limit, self._device)
        running = torch.ones(len(prompts), dtype=torch.bool)
        for step in range(limit):
            if self._graphed and ids.shape[1] == 1:
                top, logprobs = self._graph(ids, positions, key=self._cache.shown(1))
            else:
                top, logprobs = self._likeliest(ids, positions)
            self._cache.added(ids.shape[1])
            chosen = self._draw(logprobs, top, temperature)
            said.add(step, places, chosen, top, logprobs)
            said.lengths[rows[running]] = step + 1
            running = running & (chosen.cpu() != self._end)  # all that a GPU is waited for
            if not running.any():
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            if not self._graphed and running.sum() <= 0.75 * len(rows):  # computing those that ended would be waste
                kept = running.nonzero().squeeze(-1)
                rows, running = rows[kept], running[kept]
                places = rows
                self._cache.keep(kept)
                ids, positions, temperature = ids[kept], positions[kept], temperature[kept]
        return said.answers(prompts)

    def _tensor(self, numbers: list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)

    def _make_room(self, texts: int, length: int) -> None:
        """For graphs, in what there is, if it is enough: each graph knows its place."""
        has_texts, has_length = self._cache.room
        if self._graphed and texts == has_texts and length <= has_length:
            return
        if self._graphed:
            length = max(length, ROOM)
            self._graph = Graphed(self._likeliest)
        self._cache = GrowingCache(0, 0, 0, self._device, self._graphed)  # gives the old one back first
        layers = self._model.config.num_hidden_layers
        self._cache = GrowingCache(layers, texts, length, self._device, self._graphed)

    def _likeliest(self, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens [texts, DRAWN_FROM] after the newest tokens [texts, new], likeliest first, with their
        log-probabilities."""
        bias = self._cache.bias(len(ids), ids.shape[1], self._model.dtype)
        caching = {cache_argument(self._model): self._cache}
        output = self._model(input_ids=ids, attention_mask=bias, position_ids=positions, logits_to_keep=1, **caching)
        logits = output.logits[:, -1]
        top = logits.topk(DRAWN_FROM)
        return top.indices, top.values.float() - logits.float().logsumexp(-1, keepdim=True)

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
    begun = (seed << 20) + index
    prompts = Prompts(random.Random(begun), held_out)
    target.reseed(begun)
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
            for answer in rng.sample(answers, min(HEARD, len(answers))):
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


def _turn(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before a user's question and after it, up to where the assistant speaks."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    )
    before, after = text.split("\0")
    opening, closing = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    return opening, closing
