"""The draft learns to give the target's distributions: cross-entropy with the target's likeliest tokens, in bfloat16.

The softmax of one step is over a part of the vocabulary: all tokens that the target thought likely somewhere in the
step, and others drawn at random; over all of it the head would cost more than the draft's layers.
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
from examples.smollm2.student import first_student, save_student

WARM_UP, DECAY = 0.02, 0.25  # shares of all tokens
STEP_TOKENS = 4096  # tokens, padding included, that are computed at once
STATE = "training.pt"
MEASURE_EVERY = 40  # updates
TOPS = (1, 4, 8, 16)

Agreement = dict[int, float]  # top -> share of the target's tokens that are among the draft's `top` likeliest


@dataclass(frozen=True, slots=True)
class Training:
    """How to train: the target's layers to start from, answer tokens in all and per update, and the like."""

    layers: list[int]
    tokens: int
    batch_tokens: int
    learning_rate: float
    vocabulary: int  # least tokens in a step's softmax; 0: all of them
    seed: int

    def rate(self, done: int) -> float:
        """The learning rate after `done` tokens: a short rise, a plateau, a fall to nothing."""
        part = done / self.tokens
        return self.learning_rate * max(0.0, min(1.0, (part + 1e-3) / WARM_UP, (1 - part) / DECAY))


def train(target: Path, data: Path, out: Path, plan: Training, device: str, tell: Callable[[str], None]) -> None:
    """Train from where `data`'s state file stands, and save the draft to `out` at every measurement."""
    student = first_student(target, plan.layers).to(device)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.01)
    state_file, held_out = data / STATE, load([data / HELD_OUT])
    done = updates = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        student.load_state_dict(state["student"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        done, updates = state["done"], state["updates"]
    start, before, losses = time.monotonic(), done, []
    for batch in _batches(data, plan, seed=plan.seed + updates):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(done)
        count = sum(len(a.tokens) for step in batch for a in step)
        for step in batch:
            loss = _loss(student, step, plan.vocabulary, device)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item() / sum(len(a.tokens) for a in step))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done, updates = done + count, updates + 1
        if updates % MEASURE_EVERY == 0 or done >= plan.tokens:
            rate, agreed = (done - before) / (time.monotonic() - start), measure(student, held_out, device)
            tell(
                f"{done:,} of {plan.tokens:,} tokens, loss {np.mean(losses):.3f}, held out {shown(agreed)}, "
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


def _loss(student: Any, answers: Sequence[Answer], vocabulary: int, device: str) -> torch.Tensor:
    """Summed cross-entropy of one padded step. Padding is on the right, where causal attention never looks."""
    width = max(len(a.prompt) + len(a.tokens) for a in answers) - 1
    ids = torch.tensor([(a.prompt + a.tokens[:-1] + [0] * width)[:width] for a in answers], device=device)
    rows = torch.tensor(
        [i * width + len(a.prompt) - 1 + j for i, a in enumerate(answers) for j in range(len(a.tokens))], device=device
    )
    top = torch.from_numpy(np.concatenate([a.top_tokens for a in answers]).astype(np.int64)).to(device)
    logprobs = torch.from_numpy(np.concatenate([a.top_logprobs for a in answers])).to(device).float()
    head = student.lm_head.weight
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[rows]
        if vocabulary:
            likely = torch.zeros(len(head), dtype=torch.bool, device=device)
            likely[top.flatten()] = True
            likely[torch.randint(len(head), (vocabulary,), device=device)] = True
            head, top = head[likely], likely.cumsum(0)[top] - 1
        logits = hidden @ head.T
    predicted = logits.float() - logits.float().logsumexp(-1, keepdim=True)
    loss: torch.Tensor = -(logprobs.softmax(-1) * predicted.gather(-1, top)).sum()
    return loss


def _batches(data: Path, plan: Training, seed: int) -> Iterator[list[list[Answer]]]:
    """Endless updates, each a list of steps of answers of like length; new shards join at each pass over the data."""
    rng = random.Random(seed)
    while True:
        answers = [a for a in load(sorted(data.glob("shard-*.npz"))) if len(a.tokens) > 1]
        if not answers:
            raise FileNotFoundError(f"{data} holds no shards; run the step `collect` first")
        rng.shuffle(answers)
        batch: list[Answer] = []
        for answer in answers:
            batch.append(answer)
            if sum(len(a.tokens) for a in batch) >= plan.batch_tokens:
                yield _steps(batch)
                batch = []


def _steps(batch: list[Answer]) -> list[list[Answer]]:
    steps: list[list[Answer]] = [[]]
    for answer in sorted(batch, key=lambda a: len(a.prompt) + len(a.tokens)):
        if steps[-1] and (len(steps[-1]) + 1) * (len(answer.prompt) + len(answer.tokens)) > STEP_TOKENS:
            steps.append([])
        steps[-1].append(answer)
    return steps


def _keep(file: Path, student: Any, optimizer: torch.optim.Optimizer, done: int, updates: int) -> None:
    partial = file.with_suffix(".partial")
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    state = {"student": trained, "optimizer": optimizer.state_dict(), "done": done, "updates": updates}
    torch.save(state, partial)
    partial.replace(file)
