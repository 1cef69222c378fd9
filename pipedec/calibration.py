"""How likely a draft's proposals really are, learnt from what the target decides. Pure.

A draft says with which probability it would go on; the target often disagrees, and over-confidence multiplies along a
path: ten tokens said to be 0.9 each, of which 0.8 come true, are three times less likely than they seem. Proposals are
counted in bins of their log-probability: how many were expected to come true, and how many did.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipedec.proposals import Children

EDGES = np.array(
    (-9.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.7, -0.4, -0.2, -0.1, -0.05, -0.02)
)  # between bins
TRUST = 4.0  # how many proposals that came true weigh as much as the draft's own word


class Calibration:
    """Observed over expected, per bin, drawn towards 1 while there is little to go by."""

    def __init__(self) -> None:
        self._expected = [0.0] * (len(EDGES) + 1)
        self._observed = [0.0] * (len(EDGES) + 1)
        self._shift = np.zeros(len(EDGES) + 1)

    def observe(self, proposals: Children, token: int) -> None:
        """The target decided `token` where the draft had proposed these."""
        bins = _bins([logprob for _, logprob in proposals]).tolist()
        for (proposed, logprob), index in zip(proposals, bins, strict=True):
            self._expected[index] += math.exp(logprob)
            self._observed[index] += proposed == token
            ratio = (self._observed[index] + TRUST) / (self._expected[index] + TRUST)
            self._shift[index] = math.log(ratio)

    def __call__(self, logprobs: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The calibrated log-probabilities, of the same shape. Likelier proposals may have become less likely ones."""
        return np.minimum(0.0, logprobs + self._shift[_bins(logprobs)])


def _bins(logprobs: npt.ArrayLike) -> npt.NDArray[np.intp]:
    return EDGES.searchsorted(logprobs, side="right")
