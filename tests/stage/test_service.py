"""`python -m stage_service` as a kubelet and a head see it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipedec.config import StageConfig
from pipedec.model.shape import read_config
from pipedec.models import identity
from pipedec.partition import split_layers
from pipedec.revision import revision
from pipedec.sampling_params import SamplingParams
from pipedec.spec import load_manifest
from pipedec.wire.keys import generate_keys, load_keys
from pipedec.wire.messages import NO_PARENT, PROTOCOL_VERSION, Batch, Open, Prefill, Row, Rows
from pipedec.wire.sockets import Transport
from tests.head import TestHead
from tests.sockets import DEADLINE, until
from tests.tiny import tiny_model

MANIFEST = """
apiVersion: pipedec.dev/v1alpha1
kind: PipeDecDeployment
metadata: {{name: tiny}}
spec:
  model: {{uri: "file://{model}", dtype: float32}}
  pipeline: {{stages: 1}}
  serving: {{kvSlots: 64, maxContext: 32, threads: 1}}
"""


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def stage_process(config: StageConfig) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stage_service"]
    env = {**os.environ, **config.to_env(), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def port_in_log(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"listening health=(\d+)", line):
            return int(found[1])
    raise AssertionError("the process ended before it served")


def test_a_stage_serves_its_head_and_ends_on_sigterm(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(MANIFEST.format(model=model))
    spec = load_manifest(manifest).spec
    expected = revision(spec, split_layers(spec, read_config(model)), PROTOCOL_VERSION, identity(model))
    generate_keys(tmp_path / "keys")
    with Transport(load_keys(tmp_path / "keys")) as transport:
        head = TestHead(transport, 1, revision=expected)
        config = StageConfig(
            manifest=manifest, keys_dir=tmp_path / "keys", stage=0, head_address=head.control.address, device="cpu"
        )
        with stage_process(config) as process:
            port = port_in_log(process)
            assert get(port, "/healthz") == (200, "ok\n")
            assert get(port, "/readyz")[0] == 503
            assert get(port, "/")[0] == 404
            epoch = head.form()
            until(lambda: get(port, "/readyz") == (200, "ok\n"))
            prompt = (Open(1, SamplingParams(), 3), Prefill(1, 0, (5, 6), (0, 1)))
            head.send(Batch(epoch, 0, prompt, Rows.of([Row(1, 0, NO_PARENT, 7, 2, 2, ())])))
            verdict = head.verdict()
            assert [len(decision.tokens) for decision in verdict.decisions] == [1]
            assert 'pipedec_stage_rows_total{stage="0"} 3.0' in get(port, "/metrics")[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0


def test_a_wrong_setting_ends_the_process_with_its_name(tmp_path: Path) -> None:
    config = StageConfig(manifest=tmp_path, insecure=True, stage=0, head_address="tcp://127.0.0.1:9")
    env = {**os.environ, **config.to_env(), "PIPEDEC_STAGE_INDEX": "first"}
    done = subprocess.run([sys.executable, "-m", "stage_service"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "ManifestError: PIPEDEC_STAGE_INDEX: is 'first', but must be a number from 0 to 63\n"
