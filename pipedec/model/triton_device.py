"""What Triton's kernels are run on."""

from __future__ import annotations

import os
import subprocess
from functools import cache

import torch
import triton

from pipedec.errors import ModelError

_NOT_COMPILED = RuntimeError, OSError, subprocess.SubprocessError  # no compiler, no place to write to, no headers
_TENSOR_CORES = 8, 0  # compute capability from which on Triton multiplies with them
_INTERPRETER = 2, 1 << 18  # processors and shared memory that it is taken to have


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, as TRITON_INTERPRET=1 asks for. Triton knows it by this name since 3.4."""
    if (knobs := getattr(triton, "knobs", None)) is not None:
        return bool(knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET") == "1"


_INTERPRETED = is_interpreted()  # now: it is decided where kernels are declared


def upcast(dtype: torch.dtype) -> bool:
    """Whether products are of numbers made float32 first: the interpreter gets those of bfloat16 wrong."""
    return _INTERPRETED and dtype == torch.bfloat16


@cache
def processors(device: torch.device) -> int:
    """How many programs run at once, if one fills a processor."""
    if device.type != "cuda":
        return _INTERPRETER[0]
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def has_tensor_cores(device: torch.device) -> bool:
    """Whether products in Triton are bound by memory; without, by arithmetic."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _TENSOR_CORES


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program can have. The first to need what Triton compiles for its driver: raises ModelError where
    it cannot."""
    if device.type != "cuda":
        return _INTERPRETER[1]
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        properties = triton.runtime.driver.active.utils.get_device_properties(index)
    except _NOT_COMPILED as error:
        raise ModelError(f"GPU kernels cannot be compiled: {error} Install gcc, or name a compiler by CC") from error
    return int(properties["max_shared_mem"])
