"""`python -m pipedec_operator.ask`: one completion from a pipeline of this cluster. What `helm test` runs."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Annotated

import typer

from pipedec.errors import PipeDecError
from pipedec_operator import names
from pipedec_operator.causes import condition
from pipedec_operator.cluster import ClusterError, connect
from pipedec_operator.names import Object


def main(
    namespace: Annotated[str, typer.Option(help="Namespace of the pipeline.")],
    name: Annotated[str, typer.Option(help="Its name; empty: the first that serves.")] = "",
    prompt: Annotated[str, typer.Option(help="What it is asked to continue.")] = "The capital of France is",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 8,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="The key it asks for, if any.")] = "",
) -> None:
    """Ask a pipeline for one completion, and print the text."""
    try:
        found = connect().list(names.RESOURCE, namespace, {})
    except ClusterError as error:
        raise PipeDecError(f"{names.PLURAL} in namespace {namespace}: {error}") from error
    resource = choose(found, name)
    served = resource["spec"]["model"].get("servedName") or resource["metadata"]["name"]
    body = {"model": served, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    url = f"{resource['status']['url']}/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise PipeDecError(f"{url}: {error.code}: {error.read().decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise PipeDecError(f"{url}: {error.reason}") from error
    print(answer["choices"][0]["text"])


def choose(resources: list[Object], name: str) -> Object:
    """The resource of a name, or the first that serves. Raises `PipeDecError` saying why there is none."""
    found = [each for each in resources if name in ("", each["metadata"]["name"])]
    for resource in found:
        if condition(resource.get("status", {}), "Available").get("status") == "True":
            return resource
    reasons = [
        f"{each['metadata']['name']}: {condition(each.get('status', {}), 'Ready').get('message', 'not seen yet')}"
        for each in found
    ]
    raise PipeDecError(
        "no pipeline serves: " + ("; ".join(reasons) or "there is none; apply a PipeDecDeployment first")
    )


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except PipeDecError as error:
        sys.exit(str(error))
