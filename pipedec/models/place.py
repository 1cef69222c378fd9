"""Whether the cache can be used."""

from __future__ import annotations

import os
from pathlib import Path

from pipedec.errors import ModelError


def unusable(folder: Path, reason: object) -> ModelError:
    """The error of a cache in which nothing can be put."""
    return ModelError(
        f"the model cache {folder} cannot be used ({reason}); set PIPEDEC_MODEL_CACHE to a folder that can be written"
    )


def check_cache(folder: Path) -> None:
    """Raises `ModelError` unless the folder is there, if only for reading, or can be made."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.exists(each))
    if not nearest.is_dir():
        raise unusable(folder, f"{nearest} is not a folder")
    if nearest != folder and not os.access(nearest, os.W_OK | os.X_OK):
        raise unusable(folder, f"{nearest} cannot be written")
