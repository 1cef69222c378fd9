"""The file with the key that clients of the endpoint must send: one reader for those who ask for it and those who send
it."""

from __future__ import annotations

import re
from pathlib import Path

from pipedec.errors import ManifestError

_SENDABLE = re.compile(r"[ -~]+")  # what a header can carry, and no client or proxy changes


def read_api_key(file: Path) -> str:
    """The key in a file, without the space around it. Raises `ManifestError` if no client could send it."""
    remedy = "Put one key into it: a line of printable ASCII characters"
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ManifestError(str(file), f"cannot be read ({error.strerror})", remedy) from error
    except UnicodeDecodeError as error:
        raise ManifestError(str(file), "holds a key that no client can send", remedy) from error
    if not key:
        raise ManifestError(str(file), "is empty", remedy)
    if not _SENDABLE.fullmatch(key):
        raise ManifestError(str(file), "holds a key that no client can send", remedy)
    return key
