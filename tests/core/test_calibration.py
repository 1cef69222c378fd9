"""Calibration learns what a draft's word is worth, and changes nothing while it knows nothing."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from pipedec.calibration import Calibration


def test_it_takes_a_draft_at_its_word_at_first() -> None:
    calibration = Calibration()
    assert calibration(np.array([[0.0, -0.3], [-4.0, -np.inf]])).tolist() == [[0.0, -0.3], [-4.0, -np.inf]]


def test_it_learns_that_a_draft_is_over_confident() -> None:
    """Said to be likely at 0.9, true in 6 cases of 10."""
    calibration, rng = Calibration(), random.Random(0)
    for _ in range(3000):
        calibration.observe([(1, math.log(0.9)), (2, math.log(0.05))], 1 if rng.random() < 0.6 else 2)
    assert np.exp(calibration(np.log([0.9, 0.05]))) == pytest.approx([0.6, 0.4], abs=0.03)
    assert calibration(np.array([-20.0])) == -20.0


def test_a_probability_is_at_most_one() -> None:
    calibration = Calibration()
    for _ in range(100):
        calibration.observe([(1, math.log(0.5))], 1)
    assert calibration(np.log([0.6])) == 0.0
