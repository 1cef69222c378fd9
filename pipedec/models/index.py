"""The index of a checkpoint in several files."""

from __future__ import annotations

import json
from pathlib import Path

from pipedec.errors import ModelError
from pipedec.model.shape import INDEX_FILE


def weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor; empty if the folder has no index. Raises `ModelError` if it cannot be read."""
    file = folder / INDEX_FILE
    if not file.exists():
        return {}
    try:
        return {str(tensor): str(name) for tensor, name in json.loads(file.read_text())["weight_map"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: `weight_map` cannot be read; download it again") from error
