"""Settings of the whole suite, before torch and Triton are imported.

With tiny models, more threads only wait for each other, and compiling a product takes longer than computing it: as many
are kept as oneDNN does by itself, four times as many as a stage keeps. Triton's kernels are compiled where there is a
GPU, and interpreted elsewhere; it must know when it is first imported, whoever does that. Garbage is collected once the
tests are, and what they all have imported by then is never looked at again.
"""

from __future__ import annotations

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ["LRU_CACHE_CAPACITY"] = "1024"
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

gc.disable()
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and a CUDA build of torch")
