"""Activations between received bytes and tensors, without a copy on the CPU."""

from __future__ import annotations

import torch

from pipedec.wire.codec import Buffer


def from_buffer(data: Buffer, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
    """The CPU tensor of `shape` [rows, width] over these bytes, which it keeps alive. Bytes that cannot be written, or
    that lie at an odd address (small frames share ZeroMQ's receive buffer), are copied."""
    if not len(data):
        return torch.empty(shape, dtype=dtype)  # torch refuses to look at nothing
    if memoryview(data).readonly:
        data = bytearray(data)
    tensor = torch.frombuffer(data, dtype=dtype)
    if tensor.data_ptr() % dtype.itemsize:
        tensor = torch.frombuffer(bytearray(data), dtype=dtype)
    return tensor.view(shape)


def to_buffer(hidden: torch.Tensor) -> memoryview:
    """The bytes of a [rows, width] tensor, row-major; the tensor's own memory when it is contiguous on the CPU."""
    flat = hidden.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
