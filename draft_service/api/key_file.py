"""The key that clients must send, from a file that may change while they are served."""

from __future__ import annotations

import logging
from pathlib import Path

from pipedec.api_key import read_api_key
from pipedec.errors import ManifestError
from pipedec.logs import fields

_log = logging.getLogger(__name__)


class KeyFile:
    """The key in a file, read again when the file is another: of a mounted Secret the kubelet swaps the whole folder.

    A new file without a usable key leaves the old key in force: nobody is let in by a mistake, or locked out. Raises
    `ManifestError` if there is no key to begin with."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._version = self._look()
        self._key = read_api_key(file)

    def key(self) -> str:
        """The key of the moment."""
        version = self._look()  # before it is read: what changes in between is seen the next time
        if version != self._version:
            self._version = version
            try:
                key, self._key = self._key, read_api_key(self._file)
                if key != self._key:
                    _log.info("API key changed", extra=fields(file=str(self._file)))
            except ManifestError as error:
                _log.error(
                    "API key unusable; the old one stays", extra=fields(file=str(self._file), reason=error.problem)
                )
        return self._key

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
