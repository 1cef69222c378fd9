"""What a model's folder or repository holds, without fetching it."""

from __future__ import annotations

from pathlib import Path

from pipedec.models import cached_models, hub, resolve
from pipedec.models.place import check_cache


def files_of(uri: str, cache: Path) -> frozenset[str] | None:
    """Names of a model's files where they are now; None if it must be prepared first, as a wheel must. Raises
    `ModelError`."""
    scheme, _, rest = uri.partition("://")
    if scheme in ("hf", "pypi"):
        check_cache(cache)
    if scheme == "hf":
        return hub.files(rest)
    if scheme == "pypi" and uri not in {model.uri for model in cached_models(cache)}:
        return None
    return frozenset(file.name for file in resolve(uri, cache).iterdir())
