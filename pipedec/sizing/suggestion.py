"""An option as a manifest."""

from __future__ import annotations

import re

from pipedec.sizing.option import Option, Wish
from pipedec.spec.deployment import MAX_NAME
from pipedec.words import counted

GPU_RESOURCE = "nvidia.com/gpu"


def suggest_manifest(wish: Wish, option: Option, model_uri: str, draft_uri: str | None) -> str:
    """YAML, with the estimate as a comment. What it leaves out has the CRD's defaults."""
    tokens = option.tokens_per_second["adaptive" if draft_uri else "none"]
    speed = "" if tokens is None else f", about {tokens:.0f} tokens/s for one request"
    resources = f"resources: {{limits: {{{GPU_RESOURCE}: 1}}}}"
    draft = "" if draft_uri is None else f'  draft:\n    uri: "{draft_uri}"\n    {resources}\n'
    return (
        f"# Estimated by `pipedec plan`: {counted(option.stages, 'stage')} on {wish.gpu.name}{speed}.\n"
        "apiVersion: pipedec.dev/v1alpha1\n"
        "kind: PipeDecDeployment\n"
        f"metadata: {{name: {_name(model_uri)}}}\n"
        "spec:\n"
        f'  model: {{uri: "{model_uri}", dtype: {wish.dtype}}}\n'
        f"{draft}"
        "  pipeline:\n"
        f"    stages: {option.stages}\n"
        f"    {resources}\n"
        f"  serving: {{maxSequences: {wish.sequences}, maxContext: {wish.context}}}\n"
    )


def _name(uri: str) -> str:
    """A resource name out of the last part of a URI."""
    last = uri.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:MAX_NAME].strip("-")
    return name if name[:1].isalpha() else f"model-{name}"[:MAX_NAME].strip("-")
