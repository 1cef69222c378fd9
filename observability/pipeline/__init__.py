"""The dashboard of one pipeline: is it full, what is the tree worth, what do clients see, what is wrong."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from observability.layout import arranged, base, choice
from observability.pipeline import clients, faults, fullness, glance, links, memory, speculation

UID = "pipedec-pipeline"


def dashboard() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    there = 'pipedec_head_info{namespace="$namespace"'
    built = (
        base(UID, "PipeDec / Pipeline", "One PipeDecDeployment: its stages, its prediction tree, its clients.")
        .with_variable(choice("namespace", "Namespace", "label_values(pipedec_head_info, namespace)"))
        .with_variable(choice("pipeline", "Pipeline", f"label_values({there}}}, pipeline)"))
        .with_variable(
            choice("replica", "Replica", f'label_values({there}, pipeline="$pipeline"}}, replica)', several=True)
        )
        .build()
    )
    sections = (glance, fullness, speculation, clients, links, memory, faults)
    built.panels = arranged([each.section() for each in sections])
    return built
