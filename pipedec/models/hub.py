"""Models of the Hugging Face Hub."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from pipedec.errors import ModelError
from pipedec.model.shape import SINGLE_FILE
from pipedec.models.index import weight_map
from pipedec.models.place import check_cache, unusable
from pipedec.models.progress import Progress, silent


def fetch(reference: str, cache: Path, progress: Progress, tensors: Callable[[str], bool] | None) -> Path:
    """The snapshot of `org/name[@revision]`, brought up to date if the Hub can be reached. Raises `ModelError`."""
    progress(f"Looking up {reference}", None)
    folder = _snapshot(reference, cache, ["*.json", "*.txt", "*.model", "*.jinja"], progress)
    wanted = _weight_files(folder, tensors)
    folder = _snapshot(reference, cache, wanted, progress)
    if missing := [name for name in wanted if not (folder / name).exists()]:
        raise ModelError(f"hf://{reference}: has no {missing[0]}; only safetensors are loaded, never pickled weights")
    return folder


def fetch_config(reference: str, cache: Path) -> Path:
    """A snapshot with config.json, without weights. Raises `ModelError`."""
    return _snapshot(reference, cache, ["config.json"], silent)


def files(reference: str) -> frozenset[str]:
    """Names of the files of `org/name[@revision]`. Raises `ModelError`."""
    repository, _, revision = reference.partition("@")
    with _explained(reference):
        return frozenset(HfApi().list_repo_files(repository, revision=revision or None))


def _snapshot(reference: str, cache: Path, patterns: list[str], progress: Progress) -> Path:
    repository, _, revision = reference.partition("@")
    check_cache(cache)

    def download(*, local: bool = False) -> str:
        return snapshot_download(
            repository,
            revision=revision or None,
            cache_dir=cache,
            allow_patterns=patterns,
            tqdm_class=_bar(f"Fetching {repository}", progress),
            local_files_only=local,
        )

    with _explained(reference, cache):
        try:
            return Path(download())
        except (HfHubHTTPError, OSError, ValueError):
            raise
        except Exception as unreachable:  # a broken connection, for which huggingface_hub does not look into the cache
            try:
                return Path(download(local=True))
            except LocalEntryNotFoundError:
                raise unreachable from None


@contextmanager
def _explained(reference: str, cache: Path | None = None) -> Iterator[None]:
    """Turns the client's errors into `ModelError`s that say what to do."""
    revision = reference.partition("@")[2]
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(f"hf://{reference}: is gated; accept its licence and give a token in HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"hf://{reference}: has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"hf://{reference}: does not exist, or is private; then give a token in HF_TOKEN") from error
    except HFValidationError as error:
        raise ModelError(f"hf://{reference}: is not a model's name; write hf://org/name[@revision]") from error
    except Exception as error:  # of whatever HTTP client huggingface_hub uses: its errors have no base of their own
        if cache and isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise ModelError(f"hf://{reference}: could not be fetched: {unusable(cache, error)}") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"hf://{reference}: could not be fetched ({reason}), and is not in the cache; check the network, the proxy "
            "and HF_ENDPOINT"
        ) from error


def _weight_files(folder: Path, tensors: Callable[[str], bool] | None) -> list[str]:
    """The safetensors files of a checkpoint, those with no wanted tensor left out."""
    if not (index := weight_map(folder)):
        return [SINGLE_FILE]
    return sorted({file for name, file in index.items() if tensors is None or tensors(name)})


def _bar(what: str, progress: Progress) -> type[Any]:
    """A progress bar class for huggingface_hub that reports instead of drawing."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"file": StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.unit == "B" and self.total:
                progress(what, min(self.n / self.total, 1.0))

    return Bar


def fetched(cache: Path) -> Iterator[tuple[str, Path]]:
    """What the cache holds, as `org/name@commit` and folder."""
    for snapshot in sorted(cache.glob("models--*--*/snapshots/*")):
        if any(snapshot.glob("*.safetensors")):
            _, organisation, name = snapshot.parent.parent.name.split("--", 2)
            yield f"{organisation}/{name}@{snapshot.name}", snapshot
