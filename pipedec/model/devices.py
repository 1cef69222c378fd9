"""Which device a span runs on, and whether it can in its dtype."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from pipedec.errors import ManifestError

_BFLOAT16_CAPABILITY = (8, 0)  # of CUDA devices, from which on they compute in it themselves
_FIELD = "PIPEDEC_DEVICE"
_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two, and Arm's

_log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device called `cpu`, `cuda` (the first) or `cuda:N`; `auto` is a CUDA device if there is one, else the CPU.

    Raises ManifestError for a device that is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ManifestError(_FIELD, f"is {name!r}", "Write auto, cpu, cuda, or cuda:N")
    if device.type == "cpu":
        return device
    if not available:
        raise ManifestError(
            _FIELD,
            f"is {name!r}, but torch {torch.__version__} sees no CUDA device",
            "Install a CUDA build of torch that fits the driver and give the process a GPU, or write cpu",
        )
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise ManifestError(_FIELD, f"is {name!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def check_dtype(device: torch.device, dtype: torch.dtype, field: str) -> None:
    """Raise ManifestError, naming the manifest's `field`, if the device does not compute in this dtype itself. A CPU
    that lacks bfloat16 is only slower with it than with float32, and told of."""
    if dtype != torch.bfloat16:
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < _BFLOAT16_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise ManifestError(field, f"is bfloat16, which {name} does not compute in", "Write float16 or float32")
    elif cpu_computes_bfloat16() is False:
        _log.warning("%s is bfloat16, which this CPU has no instructions for: float32 is faster on it", field)


def cpu_computes_bfloat16() -> bool | None:
    """Whether this machine's CPU has instructions for bfloat16; None: it does not say."""
    return computes_bfloat16(_CPU_INFO.read_text()) if _CPU_INFO.exists() else None


def computes_bfloat16(cpu_info: str) -> bool:
    """Whether the CPU that /proc/cpuinfo describes so has instructions for bfloat16."""
    return not _BFLOAT16_FLAGS.isdisjoint(cpu_info.split())
