"""What to do where a device has not enough memory for a step."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what torch says; for the CPU it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def release_cached_memory() -> None:
    """Give back what torch keeps for later: it may be in pieces that are of no use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
