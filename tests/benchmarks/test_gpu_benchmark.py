"""The benchmark of steps runs anywhere, on spans small enough for it, and gives what the other benchmark takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.measure import read_curve
from benchmarks.random_spans import PRESETS, Weights, random_span, weight_bytes
from pipedec.model.quantized import QuantizedLinear


@pytest.mark.parametrize("preset", ["tiny-stage", "tiny-draft"])
def test_every_figure_has_its_bound(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("json", "curve")}
    arguments = ["--preset", preset, "--device", "cpu", "--context", "30,60", "--rows", "1,3", "--repeats", "1"]
    arguments += ["--plot", str(tmp_path / "picture.png")]
    assert gpu.main([*arguments, *(f"--{name}={file}" for name, file in files.items())]) == 0
    figures = json.loads(files["json"].read_text())
    assert [(f["context"], f["variant"], f["rows"]) for f in figures] == [
        (context, variant, rows)
        for context in (30, 60)
        for variant in ("eager", "static", "invariant")
        for rows in (1, 3)
    ]
    assert all(f["queued"] > 0 and f["waited"] > 0 and f["bound"] > 0 for f in figures)
    assert figures[6]["bound"] > figures[0]["bound"]
    assert [rows for rows, _ in read_curve(files["curve"])] == [1, 3]
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert "context 60" in capsys.readouterr().out


@pytest.mark.parametrize(("weights", "share"), [("fp8", 0.5), ("fp8-block", 0.5), ("int8", 0.5), ("int4", 0.25)])
def test_the_bound_counts_quantised_weights_as_what_they_take(weights: Weights, share: float) -> None:
    preset, device = PRESETS["tiny-stage"], torch.device("cpu")
    plain, small = (random_span(preset, torch.bfloat16, device, each) for each in ("plain", weights))
    assert all(isinstance(layer.mlp.up_proj, QuantizedLinear) for layer in small.layers)
    assert share <= weight_bytes(small) / weight_bytes(plain) < share + 0.06  # with scales of small matrices
    rows = torch.randn(3, 64).bfloat16()
    spread = [float(span.layers[0].mlp.up_proj(rows).float().std()) for span in (plain, small)]
    assert 0.5 < spread[1] / spread[0] < 2


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="'tpu'"):
        gpu.main(["--preset", "tiny-stage", "--device", "tpu"])
