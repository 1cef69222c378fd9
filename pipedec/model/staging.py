"""Copies between the CPU and a device."""

from __future__ import annotations

from typing import Protocol

import torch


class Staging(Protocol):
    """Moves tensors to a device and back."""

    def upload(self, source: torch.Tensor) -> torch.Tensor:
        """The CPU tensor on the device, for what is computed next there. `source` may be changed at once."""

    def download(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The tensors on the CPU, as soon as they are computed, in memory that nothing else writes to."""

    def wait(self) -> None:
        """Return when all that was asked of the device so far is done."""


def make_staging(device: torch.device) -> Staging:
    return PinnedStaging(device) if device.type == "cuda" else DirectStaging(device)


def sent(source: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small CPU tensor on the device, which is not waited for, as it would be for memory that is not pinned."""
    return (source.pin_memory() if device.type == "cuda" else source).to(device, non_blocking=True)


class DirectStaging:
    """For the CPU itself, and devices without streams of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def upload(self, source: torch.Tensor) -> torch.Tensor:
        return source.to(self._device, copy=True)

    def download(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.to("cpu", copy=True) for tensor in tensors]

    def wait(self) -> None: ...


class PinnedStaging:
    """For CUDA: through pinned memory, in streams beside the one that computes, so that a copy waits only for what it
    needs. torch keeps freed pinned memory for the next copy, and gives it out only when the last one is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._down: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, source: torch.Tensor) -> torch.Tensor:
        pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source)
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            uploaded = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        uploaded.record_stream(computing)
        return uploaded

    def download(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            for host, tensor in zip(pinned, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
        self._down.synchronize()
        return pinned

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()
