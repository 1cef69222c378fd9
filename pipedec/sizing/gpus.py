"""What GPUs can hold, read and compute, as their makers say."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pipedec.errors import PipeDecError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in GiB, bandwidth in GB/s, and dense half-precision tensor TFLOPS with 32-bit sums, without sparsity."""

    name: str
    memory: float
    bandwidth: float
    tflops: float
    source: str
    bfloat16: bool = True

    @property
    def usable_bytes(self) -> float:
        """What weights, KV and workspace may take; the rest is for ECC, the driver's context and fragmentation."""
        return 0.9 * self.memory * GIB


_NVIDIA = "https://www.nvidia.com/en-us"
_ADA = "NVIDIA Ada GPU Architecture, appendix A"
_AMPERE = "NVIDIA Ampere GA102 GPU Architecture, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, appendix A"

GPUS = (
    Gpu("T4", 16, 320, 65, f"{_NVIDIA}/data-center/tesla-t4/", bfloat16=False),
    Gpu("V100-32GB", 32, 900, 125, f"{_NVIDIA}/data-center/v100/", bfloat16=False),
    Gpu("L4", 24, 300, 121, f"{_NVIDIA}/data-center/l4/"),
    Gpu("A10", 24, 600, 125, f"{_NVIDIA}/data-center/products/a10-gpu/"),
    Gpu("A30", 24, 933, 165, f"{_NVIDIA}/data-center/products/a30-gpu/"),
    Gpu("A40", 48, 696, 149.7, f"{_NVIDIA}/data-center/a40/"),
    Gpu("L40S", 48, 864, 362, f"{_NVIDIA}/data-center/l40s/"),
    Gpu("A100-40GB", 40, 1555, 312, f"{_NVIDIA}/data-center/a100/"),
    Gpu("A100-80GB", 80, 1935, 312, f"{_NVIDIA}/data-center/a100/"),
    Gpu("H100", 80, 3350, 989, f"{_NVIDIA}/data-center/h100/"),
    Gpu("H200", 141, 4800, 989, f"{_NVIDIA}/data-center/h200/"),
    Gpu("RTX3090", 24, 936, 71, _AMPERE),
    Gpu("RTX4090", 24, 1008, 165.2, _ADA),
    Gpu("RTX5090", 32, 1792, 209.5, _BLACKWELL),
)


def find_gpu(name: str, otherwise: str = "") -> Gpu:
    """The GPU of this name, in any spelling: `4090` and `rtx 4090` are RTX4090. Raises `PipeDecError`, which says what
    to do `otherwise`."""
    wanted = _plain(name)
    found = [gpu for gpu in GPUS if wanted in (_plain(gpu.name), _plain(gpu.name).removeprefix("rtx"))]
    if not found:
        near = difflib.get_close_matches(wanted, [_plain(gpu.name) for gpu in GPUS], n=1)
        meant = next((f" (did you mean {gpu.name}?)" for gpu in GPUS if _plain(gpu.name) in near), "")
        known = ", ".join(gpu.name for gpu in GPUS)
        raise PipeDecError(f"--gpu {name}: is not in the table{meant}. Known: {known}{otherwise}")
    return found[0]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
