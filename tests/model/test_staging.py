"""Copies to a device and back share no memory with what was given."""

from __future__ import annotations

import pytest
import torch

from pipedec.model.staging import make_staging


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_staging_keeps_what_was_given_apart(device: str) -> None:
    staging = make_staging(torch.device(device))
    host = torch.randn(64, 8192)
    kept, uploaded = host.clone(), []
    for step in range(20):
        uploaded.append(staging.upload(host))
        host += 1  # may be changed at once
        uploaded[-1] += step
    downloaded = [staging.download(tensor)[0] for tensor in uploaded]
    for tensor in uploaded:
        tensor.zero_()
    for step, tensor in enumerate(downloaded):
        assert tensor.is_pinned() == (device != "cpu")
        torch.testing.assert_close(tensor, kept + 2 * step)
