"""Which device a span runs on."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is an accelerator if there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
