"""Collected answers as a draft learns from them: whole on the device, cut into updates of answers of like length.

What an update needs is gathered where it is computed: a GPU that had to be given each one would wait for it longer than
it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from examples.smollm2.answers import KEPT

SORTED = 2048  # answers that are sorted by length among themselves
WIDTHS, COUNTS = 32, 16  # of even steps: multiples of these
Indices = npt.NDArray[np.int64]


class Step(NamedTuple):
    """What is computed at once: texts padded on the right, where causal attention never looks."""

    ids: torch.Tensor  # [texts, width]
    rows: torch.Tensor  # [tokens]: where in `ids`, flattened, stands what comes before each answer token
    said: torch.Tensor  # [tokens]: the answer tokens
    top_tokens: torch.Tensor  # [tokens, kept]: the target's likeliest in place of each
    weights: torch.Tensor  # [tokens, kept]: their probabilities among themselves


class Corpus:
    """The answers of some shards of `answers.save`, on `device`. `answers` and `lengths`, int64 [texts], are how many
    tokens each answer has, and how many with its prompt."""

    def __init__(self, files: Sequence[Path], device: torch.device) -> None:
        shards = [_read(file) for file in files]

        def joined(name: str) -> npt.NDArray[Any]:
            return np.concatenate([shard[name] for shard in shards])

        self._device = device
        self._prompts = joined("prompt_lengths").astype(np.int64)
        self.answers = joined("answer_lengths").astype(np.int64)
        self.lengths = self._prompts + self.answers
        self._starts, self._rows = _begins(self.lengths), _begins(self.answers)
        self._tokens = torch.from_numpy(joined("tokens").astype(np.int32)).to(device)
        self._top_tokens = torch.from_numpy(joined("top_tokens").astype(np.int32)).to(device)
        self._top_logprobs = torch.from_numpy(joined("top_logprobs")).to(device)

    def __len__(self) -> int:
        return len(self.lengths)

    def step(self, texts: Indices, even: int = 0) -> Step:
        """These answers, all computed at once. The last token of a text is said and never read.

        With `even`, padded to as many answer tokens, and to few different numbers of texts and widths, since each
        pair of them takes a CUDA graph; what pads weighs nothing.
        """
        answers, prompts = self.answers[texts], self._prompts[texts]
        width, count, tokens = int(self.lengths[texts].max()) - 1, len(texts), int(answers.sum())
        if even:
            width, count, tokens = -(-width // WIDTHS) * WIDTHS, -(-count // COUNTS) * COUNTS, max(tokens, even)
        within = np.arange(answers.sum()) - np.repeat(_begins(answers), answers)  # an answer token's place in its own

        def places(of_texts: Indices) -> torch.Tensor:
            """Of all answer tokens, from where those of each text begin; and as many as pad."""
            found = np.repeat(of_texts, answers) + within
            return self._on_device(np.pad(found, (0, tokens - len(found))))

        labels, starts = places(self._rows[texts]), np.pad(self._starts[texts], (0, count - len(texts)))
        ids = self._on_device(starts)[:, None] + torch.arange(width, device=self._device)
        weighs = torch.arange(tokens, device=self._device) < len(within)
        return Step(
            ids=self._tokens[ids.clamp(max=len(self._tokens) - 1)].long(),
            rows=places(np.arange(len(texts)) * width + prompts - 1),
            said=self._tokens[places(self._starts[texts] + prompts)].long(),
            top_tokens=self._top_tokens[labels].long(),
            weights=self._top_logprobs[labels].float().softmax(-1) * weighs[:, None],
        )

    def updates(self, rng: np.random.Generator, tokens: int) -> Iterator[Indices]:
        """All answers of more than one token once, as many at a time as have at most `tokens` tokens, or one.

        Answers of an update are of like length: of any lengths, a third of what is computed would be padding.
        """
        order = rng.permutation(np.flatnonzero(self.answers > 1))
        for first in range(0, len(order), SORTED):
            updates = self._cut(order[first : first + SORTED], lambda some: self.answers[some].sum() <= tokens)
            for update in rng.permutation(len(updates)):
                yield updates[update]

    def steps(self, texts: Indices, together: int) -> list[Indices]:
        """These texts, as many at a time as have at most `together` tokens, padding and prompts included, or one."""
        return self._cut(texts, lambda some: len(some) * self.lengths[some[-1]] <= together)

    def _cut(self, texts: Indices, fits: Callable[[list[int]], bool]) -> list[Indices]:
        """Of texts ever longer."""
        pieces: list[list[int]] = [[]]
        for text in texts[np.argsort(self.lengths[texts], kind="stable")].tolist():
            if pieces[-1] and not fits([*pieces[-1], text]):
                pieces.append([])
            pieces[-1].append(text)
        return [np.array(piece) for piece in pieces]

    def _on_device(self, array: Indices) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # else the copy would wait for all that the GPU has been given
        return tensor.to(self._device, non_blocking=True)


def _read(file: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(file) as arrays:
        return {name: arrays[name][:, :KEPT] if name.startswith("top") else arrays[name] for name in arrays.files}


def _begins(lengths: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]])
