"""What a draft model proposes: the children of nodes, and how likely it holds each to be. Pure.

proposals = Proposals.of([[(42, -0.1), (7, -2.5)], []])   # of two rows of a batch, the second without any
proposals[0]                                              # [(42, -0.1), (7, -2.5)]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Children: TypeAlias = Sequence[tuple[int, float]]  # (token, log-probability), likeliest first


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """For each row of a batch, likeliest first: `tokens` and `logprobs` [rows, children]; -inf where there is none."""

    tokens: npt.NDArray[np.integer]
    logprobs: npt.NDArray[np.floating]

    @classmethod
    def of(cls, rows: Sequence[Children]) -> Proposals:
        """From a list for each row."""
        width = max(map(len, rows), default=0)
        filled = [[*children, *[(0, -math.inf)] * (width - len(children))] for children in rows]
        table = np.array(filled, np.float64).reshape(len(rows), width, 2)
        return cls(table[..., 0].astype(np.int64), table[..., 1])

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> list[tuple[int, float]]:
        """The children of a row."""
        pairs = zip(self.tokens[row].tolist(), self.logprobs[row].tolist(), strict=True)
        return [(token, logprob) for token, logprob in pairs if logprob > -math.inf]
