"""Triton's kernels are compiled where there is a GPU, and interpreted elsewhere; it must know when it is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
