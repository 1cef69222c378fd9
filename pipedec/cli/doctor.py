"""`pipedec doctor`: what is wrong with a manifest, a cluster or a running pipeline, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import pipedec
from pipedec.api_key import read_api_key
from pipedec.cli.terminal import explained, output
from pipedec.cli.up import ApiKeyFileOption
from pipedec.config import model_cache
from pipedec.doctor import Finding, exit_status, judge_cluster, judge_endpoint, judge_manifest
from pipedec.sizing import find_gpu

STYLES = {"ok": "green", "skip": "dim", "warn": "yellow", "fail": "bold red"}

Report = dict[str, list[Finding]]


@explained
def doctor(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Check this manifest and its models.", metavar="FILE")
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check the cluster of KUBECONFIG's context.")] = False,
    url: Annotated[str | None, typer.Option(help="Check the pipeline that serves this endpoint.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="With --cluster: pipelines of this namespace alone.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="With --file: compare what a stage needs with this GPU.")] = None,
    api_key_file: ApiKeyFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check a manifest, a cluster, a running pipeline, or several at once; each finding says what to do.

    Nothing is changed, no weights are fetched; of a running pipeline one token is asked for. Exit status: 0 if all is
    well, 1 if something should be looked at, 2 if something does not work.

        pipedec doctor -f examples/smollm2.yaml --cluster
        pipedec doctor --url http://127.0.0.1:8000
    """
    if file is None and not cluster and url is None:
        raise typer.BadParameter("there is nothing to check: give --file, --cluster, --url, or several of them")
    if (namespace and not cluster) or (gpu and file is None):
        raise typer.BadParameter("--namespace belongs to --cluster, and --gpu to --file")
    report = _examine(file, cluster, url, namespace, gpu, api_key_file)
    findings = [finding for section in report.values() for finding in section]
    if as_json:
        sections = {section: [asdict(finding) for finding in found] for section, found in report.items()}
        print(json.dumps({"status": exit_status(findings), "findings": sections}, indent=2))
    else:
        _print(report)
    raise typer.Exit(exit_status(findings))


def _examine(
    file: Path | None, cluster: bool, url: str | None, namespace: str | None, gpu: str | None, api_key_file: Path | None
) -> Report:
    """The findings by section. What each gatherer needs is loaded only for it."""
    report, manifest = Report(), None
    if file is not None:
        from pipedec.doctor.gather.models import gather_manifest

        facts = gather_manifest(file, model_cache(), find_gpu(gpu) if gpu else None)
        report[f"manifest {file}"], manifest = judge_manifest(facts), facts.manifest
    if cluster:
        from pipedec.doctor.gather.cluster import gather_cluster

        seen = gather_cluster(namespace, manifest)
        report[f"cluster {seen.server}"] = judge_cluster(seen, pipedec.__version__)
    if url is not None:
        from pipedec.doctor.gather.endpoint import gather_endpoint

        key = read_api_key(api_key_file) if api_key_file else None
        report[f"pipeline {url}"] = judge_endpoint(gather_endpoint(url, key))
    return report


def _print(report: Report) -> None:
    width = max(len(finding.check) for found in report.values() for finding in found)
    for section, found in report.items():
        output.print(section, style="bold", soft_wrap=True)
        for finding in found:
            _line(finding, width)
    counts = _counts(finding.level for found in report.values() for finding in found)
    output.print(counts, soft_wrap=True)


def _line(finding: Finding, width: int) -> None:
    output.print(f"  {finding.level:4}", style=STYLES[finding.level], end="")
    output.print(f"  {finding.check:{width}}  {finding.message}", soft_wrap=True)
    if finding.remedy:
        output.print(f"{'':{width + 10}}-> {finding.remedy}", soft_wrap=True)


def _counts(levels: Iterable[str]) -> str:
    all_levels = list(levels)
    said = [f"{all_levels.count(level)} {level}" for level in STYLES if level in all_levels]
    return f"{', '.join(said)}"
