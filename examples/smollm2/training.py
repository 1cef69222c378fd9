"""The draft learns to give the target's distributions: cross-entropy with the target's likeliest tokens.

The softmax of one step is over a part of the vocabulary: all tokens that the target thought likely somewhere in the
step, and others drawn at random; over all of it the head would cost more than the draft's layers.

Where tokens are dear, two things matter more than all others that were tried. What leaves the target's first layers is
far larger than what its head expects, so the norm before the head begins smaller (`_soften`); and updates are small
and many: after 44,000 tokens a draft has a top-1 agreement of 0.19 with both, and had 0.11 with neither.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.smollm2.answers import HELD_OUT, Answer, load
from examples.smollm2.student import first_student, load_student, save_student

WARM_UP, DECAY = 0.02, 0.7  # shares of all tokens
STEP_TOKENS = {"cpu": 4096, "cuda": 16384}  # padding included, that are computed at once
LEARNT = 16  # likeliest tokens of each distribution that are learnt
SCALES = tuple(0.8**power for power in range(16))  # of the first norm, to choose from
STATE = "training.pt"
SORTED = 512  # answers that are sorted by length among themselves
MEASURE_EVERY = 800  # updates
TOPS = (1, 4, 8, 16)

Agreement = dict[int, float]  # top -> share of the target's tokens that are among the draft's `top` likeliest


@dataclass(frozen=True, slots=True)
class Training:
    """How to train: the target's layers to start from, or an earlier draft; answer tokens in all and per update; and
    the like."""

    layers: list[int]
    tokens: int
    batch_tokens: int
    learning_rate: float
    vocabulary: int  # random tokens in a step's softmax, beside the likely ones; 0: all there are
    seed: int
    low_precision: bool  # bfloat16, where the device is fast in it
    start: Path | None = None

    def rate(self, done: int) -> float:
        """The learning rate after `done` tokens: a short rise, a short plateau, a long fall to nothing."""
        part = done / self.tokens
        return self.learning_rate * max(0.0, min(1.0, (part + 1e-3) / WARM_UP, (1 - part) / DECAY))


def train(target: Path, data: Path, out: Path, plan: Training, device: str, tell: Callable[[str], None]) -> None:
    """Train from where `data`'s state file stands, and save the draft to `out` at every measurement."""
    student = (load_student(target, plan.start) if plan.start else first_student(target, plan.layers)).to(device)
    kind = torch.device(device).type
    student.set_attn_implementation("eager" if kind == "cpu" else "sdpa")  # of so short texts, the faster on a CPU
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    state_file, held_out = data / STATE, load([data / HELD_OUT])
    autocast = torch.autocast(kind, torch.bfloat16, enabled=plan.low_precision)
    done = updates = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        student.load_state_dict(state["student"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        done, updates = state["done"], state["updates"]
    start, before, losses = time.monotonic(), done, []
    for batch in _batches(data, plan, STEP_TOKENS[kind], seed=plan.seed + updates):
        if not updates and not plan.start:
            with autocast:
                _soften(student, batch[0], plan.vocabulary)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(done)
        count = sum(len(a.tokens) for step in batch for a in step)
        for step in batch:
            with autocast:
                loss = _loss(student, step, plan.vocabulary)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() / sum(len(a.tokens) for a in step))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done, updates = done + count, updates + 1
        if updates % MEASURE_EVERY == 0 or done >= plan.tokens:
            rate, agreed = (done - before) / (time.monotonic() - start), measure(student, held_out, device)
            tell(
                f"{done:,} of {plan.tokens:,} tokens, loss {torch.stack(losses).mean():.3f}, held out {shown(agreed)}, "
                f"{rate:.0f} tokens/s, {max(plan.tokens - done, 0) / rate / 60:.0f} min left"
            )
            losses.clear()
            _keep(state_file, student, optimizer, done, updates)
            save_student(student, out)
        if done >= plan.tokens:
            return


@torch.inference_mode()
def measure(student: Any, answers: Sequence[Answer], device: str) -> Agreement:
    """How often the target's own token is among the draft's likeliest."""
    hits, total = dict.fromkeys(TOPS, 0), 0
    for answer in answers:
        ids = torch.tensor([answer.prompt + answer.tokens[:-1]], device=device)
        logits = student(input_ids=ids, logits_to_keep=len(answer.tokens)).logits[0]
        ranked = logits.topk(max(TOPS)).indices == torch.tensor(answer.tokens, device=device)[:, None]
        for top in TOPS:
            hits[top] += int(ranked[:, :top].any(-1).sum())
        total += len(answer.tokens)
    return {top: count / total for top, count in hits.items()}


def shown(agreement: Agreement) -> str:
    """For people."""
    return ", ".join(f"top-{top} {share:.3f}" for top, share in agreement.items())


@torch.no_grad()
def _soften(student: Any, answers: Sequence[Answer], vocabulary: int) -> None:
    """Scale the last norm so that the untrained draft is as little surprised by these answers as it can be."""
    weight = student.model.norm.weight
    first = weight.clone()

    def surprise(scale: float) -> float:
        weight.copy_(first * scale)
        return _loss(student, answers, vocabulary).item()

    weight.copy_(first * min(SCALES, key=surprise))


def _loss(student: Any, answers: Sequence[Answer], vocabulary: int) -> torch.Tensor:
    """Summed cross-entropy of one padded step. Padding is on the right, where causal attention never looks."""
    head = student.lm_head.weight
    width = max(len(a.prompt) + len(a.tokens) for a in answers) - 1
    ids = torch.tensor([(a.prompt + a.tokens[:-1] + [0] * width)[:width] for a in answers], device=head.device)
    starts = [(i * width + len(a.prompt) - 1, len(a.tokens)) for i, a in enumerate(answers)]
    rows = torch.cat([torch.arange(first, first + count) for first, count in starts]).to(head.device)
    top = torch.from_numpy(np.concatenate([a.top_tokens[:, :LEARNT] for a in answers]).astype(np.int64))
    logprobs = torch.from_numpy(np.concatenate([a.top_logprobs[:, :LEARNT] for a in answers]))
    top, logprobs = top.to(head.device), logprobs.to(head.device).float()
    hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[rows]
    if vocabulary:
        likely = torch.zeros(len(head), dtype=torch.bool, device=head.device)
        likely[top.flatten()] = True
        likely[torch.randint(len(head), (vocabulary,), device=head.device)] = True
        head, top = head[likely], likely.cumsum(0)[top] - 1
    logits = (hidden @ head.T).float()
    predicted = logits.gather(-1, top) - logits.logsumexp(-1, keepdim=True)
    loss: torch.Tensor = -(logprobs.softmax(-1) * predicted).sum()
    return loss


def _batches(data: Path, plan: Training, step_tokens: int, seed: int) -> Iterator[list[list[Answer]]]:
    """Endless updates, each a list of steps; new shards join at each pass over the data.

    Answers of an update are of like length: of any lengths, a third of what is computed would be padding.
    """
    rng = random.Random(seed)
    while True:
        answers = [a for a in load(sorted(data.glob("shard-*.npz"))) if len(a.tokens) > 1]
        if not answers:
            raise FileNotFoundError(f"{data} holds no shards; run the step `collect` first")
        rng.shuffle(answers)
        for first in range(0, len(answers), SORTED):
            updates = list(
                _updates(sorted(answers[first : first + SORTED], key=_length), plan.batch_tokens, step_tokens)
            )
            rng.shuffle(updates)
            yield from updates


def _length(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.tokens)


def _updates(answers: Sequence[Answer], batch_tokens: int, step_tokens: int) -> Iterator[list[list[Answer]]]:
    batch: list[Answer] = []
    for answer in answers:
        batch.append(answer)
        if sum(len(a.tokens) for a in batch) >= batch_tokens:
            yield _steps(batch, step_tokens)
            batch = []
    if batch:
        yield _steps(batch, step_tokens)


def _steps(batch: Sequence[Answer], step_tokens: int) -> list[list[Answer]]:
    """Of answers ever longer."""
    steps: list[list[Answer]] = [[]]
    for answer in batch:
        if steps[-1] and (len(steps[-1]) + 1) * _length(answer) > step_tokens:
            steps.append([])
        steps[-1].append(answer)
    return steps


def _keep(file: Path, student: Any, optimizer: torch.optim.Optimizer, done: int, updates: int) -> None:
    partial = file.with_suffix(".partial")
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    state = {"student": trained, "optimizer": optimizer.state_dict(), "done": done, "updates": updates}
    torch.save(state, partial)
    partial.replace(file)
