"""The draft learns to give the target's distributions: cross-entropy with the target's likeliest tokens.

On a CPU the softmax of one step is over a part of the vocabulary: all tokens that the target thought likely somewhere
in the step, and others drawn at random; over all of it the head would cost more than the draft's layers.

Where tokens are dear, two things matter more than all others that were tried. What leaves the target's first layers is
far larger than what its head expects, so the norm before the head begins smaller (`Learner.soften`); and updates are
small and many: after 44,000 tokens a draft has a top-1 agreement of 0.19 with both, and had 0.11 with neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.smollm2.answers import HELD_OUT
from examples.smollm2.corpus import Corpus, Indices, Step
from examples.smollm2.graphed import Graphed
from examples.smollm2.student import CAUSAL, first_student, fuse_norms, grow, load_student, save_student

WARM_UP, DECAY = 0.02, 0.7  # shares of all tokens
STEP_TOKENS = 4096  # padding included, that a CPU computes at once
SCALES = tuple(0.8**power for power in range(16))  # of the first norm, to choose from
STATE = "training.pt"
MEASURE_EVERY = 800  # updates
TOPS = (1, 4, 8, 16)

Agreement = dict[int, float]  # top -> share of the target's tokens that are among the draft's `top` likeliest


@dataclass(frozen=True, slots=True)
class Training:
    """How to train: the target's layers to start from, or an earlier draft and how many layers it grows by; answer
    tokens in all and per update; and the like."""

    layers: list[int]
    tokens: int
    batch_tokens: int
    learning_rate: float
    vocabulary: int  # random tokens in a step's softmax, beside the likely ones; 0: all there are
    seed: int
    low_precision: bool  # bfloat16, where the device is fast in it
    start: Path | None = None
    grow: int = 0

    def rate(self, done: int) -> float:
        """The learning rate after `done` tokens: a short rise, a short plateau, a long fall to nothing."""
        part = done / self.tokens
        return self.learning_rate * max(0.0, min(1.0, (part + 1e-3) / WARM_UP, (1 - part) / DECAY))


def train(target: Path, data: Path, out: Path, plan: Training, device: str, tell: Callable[[str], None]) -> None:
    """Train from where `data`'s state file stands, and save the draft to `out` at every measurement."""
    on = torch.device(device)
    student = _begin(target, plan).to(on)
    learner = Learner(student, plan, on)
    state_file, held_out = data / STATE, Corpus([data / HELD_OUT], on)
    done = updates = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=on)
        student.load_state_dict(state["student"], strict=False)
        learner.resume(state["optimizer"])
        done, updates = state["done"], state["updates"]
    start, before, losses = time.monotonic(), done, []
    for corpus, texts in _updates(data, plan, on, seed=plan.seed + updates):
        if not updates and not plan.start:
            learner.soften(corpus.step(texts))
        losses.append(learner.learn(corpus, texts, plan.rate(done)))
        done, updates = done + int(corpus.answers[texts].sum()), updates + 1
        if updates % MEASURE_EVERY == 0 or done >= plan.tokens:
            rate, agreed = (done - before) / (time.monotonic() - start), measure(student, held_out)
            tell(
                f"{done:,} of {plan.tokens:,} tokens, loss {torch.stack(losses).mean():.3f}, held out {shown(agreed)}, "
                f"{rate:.0f} tokens/s, {max(plan.tokens - done, 0) / rate / 60:.0f} min left"
            )
            losses.clear()
            _keep(state_file, student, learner.optimizer, done, updates)
            save_student(student, out)
        if done >= plan.tokens:
            return


class Learner:
    """Improves a student, an update at a time; on a GPU, an update is a CUDA graph."""

    def __init__(self, student: Any, plan: Training, device: torch.device) -> None:
        self._student, self._plan, self._on_gpu = student, plan, device.type == "cuda"
        if self._on_gpu:
            student.set_attn_implementation(CAUSAL)
            fuse_norms(student)
            self._graph = Graphed(lambda *step: self._update([Step(*step)]))
        else:
            student.set_attn_implementation("eager")  # of so short texts, the faster
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=plan.low_precision)
        self._head = student.lm_head.weight.detach().to(torch.bfloat16 if plan.low_precision else torch.float32)
        self._trained = [p for p in student.parameters() if p.requires_grad]
        self._rate = torch.tensor(plan.learning_rate, device=device)  # where a graph finds it
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=self._rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True, capturable=self._on_gpu
        )

    def resume(self, optimizer: Any) -> None:
        """Go on from this state of the optimizer."""
        self.optimizer.load_state_dict(optimizer)
        for group in self.optimizer.param_groups:  # of the device that it was on before
            group["lr"], group["capturable"] = self._rate, self._on_gpu

    def learn(self, corpus: Corpus, texts: Indices, rate: float) -> torch.Tensor:
        """One update; returns the loss of a token, on the device."""
        self._rate.fill_(rate)
        if self._on_gpu:
            loss: torch.Tensor = self._graph(*corpus.step(texts, even=self._plan.batch_tokens))
            return loss.clone()
        return self._update([corpus.step(some) for some in corpus.steps(texts, STEP_TOKENS)])

    @torch.no_grad()
    def soften(self, step: Step) -> None:
        """Scale the last norm so that the untrained draft is as little surprised by these answers as it can be."""
        weight = self._student.model.norm.weight
        first = weight.clone()

        def surprise(scale: float) -> float:
            weight.copy_(first * scale)
            return self._loss(step).item()

        weight.copy_(first * min(SCALES, key=surprise))

    def _update(self, steps: Sequence[Step]) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        count = torch.stack([step.weights.sum() for step in steps]).sum()
        losses = []
        for step in steps:
            loss = self._loss(step) / count
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self.optimizer.step()
        return torch.stack(losses).sum()

    def _loss(self, step: Step) -> torch.Tensor:
        """Summed cross-entropy of one step."""
        head, top = self._head, step.top_tokens
        if self._plan.vocabulary:
            likely = torch.zeros(len(head), dtype=torch.bool, device=head.device)
            likely[top.flatten()] = True
            likely[torch.randint(len(head), (self._plan.vocabulary,), device=head.device)] = True
            head, top = head[likely], likely.cumsum(0)[top] - 1
        with self._autocast:
            hidden = _hidden(self._student, step)
        loss: torch.Tensor = CrossEntropy.apply(hidden, head, top, step.weights)  # type: ignore[no-untyped-call]
        return loss


@torch.inference_mode()
def measure(student: Any, answers: Corpus) -> Agreement:
    """How often the target's own token is among the draft's likeliest."""
    ranks = []  # of the target's tokens: how many the draft thinks likelier
    for texts in answers.steps(np.arange(len(answers)), STEP_TOKENS):
        step = answers.step(texts)
        logits = student.lm_head(_hidden(student, step))
        ranks.append((~(logits <= logits.gather(-1, step.said[:, None]))).sum(-1))  # NaN is no good rank
    return {top: (torch.cat(ranks) < top).float().mean().item() for top in TOPS}


def shown(agreement: Agreement) -> str:
    """For people."""
    return ", ".join(f"top-{top} {share:.3f}" for top, share in agreement.items())


def _begin(target: Path, plan: Training) -> Any:
    student = load_student(target, plan.start) if plan.start else first_student(target, plan.layers)
    grow(student, plan.grow)
    return student


def _hidden(student: Any, step: Step) -> torch.Tensor:
    """What the head is given for each answer token [tokens, hidden]."""
    hidden: torch.Tensor = student.model(input_ids=step.ids, use_cache=False).last_hidden_state.flatten(0, 1)
    return hidden[step.rows]


class CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softmax(hidden @ head.T) with `weights` [tokens, kept] of the tokens `top` alone; they
    are 1 together, or 0 where a row only pads.

    Its gradient is made at once, in place: what autograd would keep and pass over again is by far the largest tensor
    of a step, [tokens, vocabulary], and takes longer than the draft's layers. The head does not learn.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, top: torch.Tensor, weights: torch.Tensor) -> Any:
        gradient = (hidden.to(head.dtype) @ head.T).softmax(-1, dtype=torch.float32)
        loss = -(weights * gradient.gather(-1, top).clamp(min=1e-30).log()).sum()
        gradient.scatter_add_(-1, top, -weights)
        ctx.save_for_backward((gradient.to(head.dtype) @ head) * weights.sum(-1, keepdim=True))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.saved_tensors[0] * gradients[0], None, None, None


def _updates(data: Path, plan: Training, device: torch.device, seed: int) -> Iterator[tuple[Corpus, Indices]]:
    """Texts of endless updates; new shards join at each pass over the data."""
    rng = np.random.default_rng(seed)
    files: list[Path] = []
    while True:
        known, files = files, sorted(data.glob("shard-*.npz"))
        if not files:
            raise FileNotFoundError(f"{data} holds no shards; run the step `collect` first")
        if files != known:
            corpus = Corpus(files, device)
        for texts in corpus.updates(rng, plan.batch_tokens):
            yield corpus, texts


def _keep(file: Path, student: Any, optimizer: torch.optim.Optimizer, done: int, updates: int) -> None:
    partial = file.with_suffix(".partial")
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    state = {"student": trained, "optimizer": optimizer.state_dict(), "done": done, "updates": updates}
    torch.save(state, partial)
    partial.replace(file)
