"""`pipedec validate` and `pipedec split`: what a manifest says, before anything runs."""

from __future__ import annotations

from rich.table import Table

from pipedec.cli.terminal import Fetching, explained, output
from pipedec.cli.up import ManifestOption
from pipedec.config import model_cache
from pipedec.partition import estimate_costs, split_layers
from pipedec.spec import Dtype, load_manifest
from pipedec.words import counted

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@explained
def validate(file: ManifestOption) -> None:
    """Check a manifest: every problem at once, each with its field and its remedy. Nothing is fetched."""
    manifest = load_manifest(file)
    spec = manifest.spec
    draft = "no draft"
    if spec.draft is not None:
        draft = spec.draft.uri or f"its first {counted(spec.draft.target_layers or 0, 'layer')}"
    output.print(
        f"{manifest.metadata.name} is valid: {spec.model.uri} as {spec.model.dtype} in "
        f"{counted(spec.pipeline.num_stages, 'stage')}, draft: {draft}, policy {spec.policy}, "
        f"{counted(spec.serving.max_sequences, 'request')} at a time",
        soft_wrap=True,
    )


@explained
def split(file: ManifestOption) -> None:
    """Show how the layers are divided: what each stage holds, and what it reads in one step.

    Of a model on the Hub only config.json is fetched. Sizes are estimated from it, of quantised weights as GPUs hold
    them; the KV cache comes on top.
    """
    from pipedec.model.shape import read_config
    from pipedec.models import resolve_config

    spec = load_manifest(file).spec
    with Fetching() as fetching:
        folder = resolve_config(spec.model.uri, model_cache(), fetching)
    config = read_config(folder)
    spans, costs = split_layers(spec, config), estimate_costs(config).in_bytes(BYTES[spec.model.dtype])
    steps = [sum(costs.layers[start:end]) for start, end in spans]
    held = list(steps)
    steps[0], steps[-1] = steps[0] + costs.embed, steps[-1] + costs.head
    held[0], held[-1] = held[0] + costs.head, held[-1] + costs.head  # the embedding is as large as the LM head
    table = Table("stage", "layers", "also", "weights", "read per step", "of the slowest")
    for index, (start, end) in enumerate(spans):
        also = ["embedding"] * (index == 0) + ["norm and LM head"] * (index == len(spans) - 1)
        amounts = (f"{held[index] / 1e9:.2f} GB", f"{steps[index] / 1e9:.2f} GB")
        table.add_row(str(index), f"{start}-{end - 1}", ", ".join(also), *amounts, f"{steps[index] / max(steps):.0%}")
    output.print(table)
