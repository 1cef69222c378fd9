"""A manifest as processes of this machine: which programs, with which settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

from pipedec.cli.ports import LOOPBACK, available, free_ports
from pipedec.config import DraftConfig, ProcessConfig, StageConfig, child_environment
from pipedec.errors import ManifestError
from pipedec.processes.launcher import Program
from pipedec.spec import DeploymentSpec, PipeDecDeployment, PodSettings, parse_manifest
from pipedec.wire.keys import generate_keys


@dataclass(frozen=True, slots=True)
class Local:
    """Choices of the command line that a manifest does not make."""

    host: str = LOOPBACK
    port: int | None = None
    """Of the endpoint; None: the manifest's; 0: any free one."""
    api_key_file: Path | None = None
    devices: tuple[str, ...] = ()
    """Torch devices, dealt out in turn to the draft and the stages."""
    log_level: str | None = None
    """Of all processes; None: the manifest's."""
    show_text: bool | None = None
    """Whether the live page shows texts; None: as the manifest says, else to those who are on this machine."""


@dataclass(frozen=True, slots=True)
class LocalPipeline:
    """The draft process, then every stage; `probes` has the address at which each says whether it is ready, and
    `health` the one at which it says whether it still makes progress."""

    programs: tuple[Program, ...]
    probes: dict[str, str]
    health: dict[str, str]
    url: str
    served_name: str
    drain_seconds: int
    addresses: tuple[tuple[str, int], ...] = ()
    """Hosts and ports that its processes were told."""


def check_local(manifest: PipeDecDeployment, local: Local) -> None:
    """Refuse what only a cluster can honour. Raises `ManifestError`."""
    spec = manifest.spec
    if spec.suspend:
        raise ManifestError("spec.suspend", "is true", "Set it to false to run the pipeline")
    if spec.serving.api_key_secret_ref and local.api_key_file is None:
        raise ManifestError(
            "spec.serving.apiKeySecretRef", "there are no Secrets outside a cluster", "Give --api-key-file"
        )
    pods: list[tuple[str, PodSettings]] = [("draft", spec.draft)] if spec.draft else []
    pods += [("pipeline", spec.pipeline.pod(stage)) for stage in range(spec.pipeline.num_stages)]
    for place, pod in pods:
        for variable in pod.env or ():
            if variable.value is None:
                raise ManifestError(
                    f"spec.{place}.env", f"{variable.name} has a valueFrom, which only a cluster has", "Give a value"
                )


def with_folders(manifest: PipeDecDeployment, target: Path, draft: Path | None) -> PipeDecDeployment:
    """The manifest with its models as folders of this machine, so that all processes read the very same files."""
    data = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["spec"]["model"]["uri"] = f"file://{quote(str(target.resolve()))}"
    if draft is not None:
        data["spec"]["draft"]["uri"] = f"file://{quote(str(draft.resolve()))}"
    return parse_manifest(data)


def plan_processes(manifest: PipeDecDeployment, run: Path, cache: Path, local: Local) -> LocalPipeline:
    """Programs and settings of a pipeline; writes its manifest and fresh keys into the private folder `run`.

    Raises `PipeDecError` when the endpoint's port is taken.
    """
    spec = manifest.spec
    file = run / "manifest.yaml"
    written = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    file.write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
    generate_keys(run / "keys")
    stages = spec.pipeline.num_stages
    port = available(local.host, spec.serving.port if local.port is None else local.port)
    control, *metrics = free_ports(1 + stages)
    threads = spec.serving.threads or max(1, len(os.sched_getaffinity(0)) // (1 + stages))
    devices = _dealt(local.devices, 1 + stages)

    def common(index: int) -> dict[str, object]:
        return {
            "manifest": file,
            "keys_dir": run / "keys",
            "model_cache": cache,
            "threads": threads,
            "device": devices[index],
            "log_level": local.log_level,
        }

    head = DraftConfig(
        **common(0),  # type: ignore[arg-type]
        control_port=control,
        http_host=local.host,
        http_port=port,
        api_key_file=local.api_key_file,
        live_text=_live_text(spec, local),
    )
    programs, base = [_program("draft", "draft_service", head, spec.draft)], f"http://{_reachable(local.host)}:{port}"
    probes, health = {"draft": f"{base}/ready"}, {"draft": f"{base}/health"}
    for stage in range(stages):
        settings = StageConfig(
            **common(1 + stage),  # type: ignore[arg-type]
            stage=stage,
            head_address=f"tcp://{LOOPBACK}:{control}",
            metrics_port=metrics[stage],
        )
        name = f"stage {stage}"
        programs.append(_program(name, "stage_service", settings, spec.pipeline.pod(stage)))
        probes[name] = f"http://{LOOPBACK}:{metrics[stage]}/readyz"
        health[name] = f"http://{LOOPBACK}:{metrics[stage]}/healthz"
    addresses = ((local.host, port), *((LOOPBACK, told) for told in (control, *metrics)))
    drain_seconds = spec.serving.drain_seconds
    return LocalPipeline(tuple(programs), probes, health, base, manifest.served_name, drain_seconds, addresses)


def with_policy(manifest: PipeDecDeployment, policy: str | None) -> PipeDecDeployment:
    """The manifest with another speculation policy. Raises `ManifestError` if it is none, or needs a draft."""
    if policy is None:
        return manifest
    data = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["spec"]["speculation"]["policy"] = policy
    return parse_manifest(data)


def _live_text(spec: DeploymentSpec, local: Local) -> bool | None:
    if local.show_text is None and spec.serving.live_page.show_text is None and local.host == LOOPBACK:
        return True
    return local.show_text


def _program(name: str, module: str, config: ProcessConfig, pod: PodSettings | None) -> Program:
    written = {variable.name: variable.value or "" for variable in (pod.env if pod else None) or ()}
    settings = {"OMP_NUM_THREADS": str(config.threads), "PYTHONUNBUFFERED": "1"}
    environment = child_environment({**settings, **written, **config.to_env()})
    return Program(name, (sys.executable, "-m", module), environment, may_fork=not written)


def _dealt(devices: Sequence[str], processes: int) -> list[str]:
    return [devices[index % len(devices)] if devices else "auto" for index in range(processes)]


def _reachable(host: str) -> str:
    """An address at which this machine reaches what listens on `host`."""
    wildcard = {"0.0.0.0": LOOPBACK, "::": "[::1]"}
    return wildcard.get(host, f"[{host}]" if ":" in host else host)
