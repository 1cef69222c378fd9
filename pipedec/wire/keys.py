"""The CURVE keys of one pipeline: two X25519 key pairs, as an operator's Secret mounts them.

Every process binds with the *server* pair and connects with the *client* pair. Who connects pins the server's public
key; who binds lets in nobody but the holder of the client's secret key. A directory holds four files of 40 printable
characters (Z85, ZeroMQ's RFC 32), which are also the Secret's four entries:

    server.public  server.secret  client.public  client.secret
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pipedec.errors import ManifestError

_B85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_TO_Z85, _FROM_Z85 = bytes.maketrans(_B85, _Z85), bytes.maketrans(_Z85, _B85)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85 text of a public key, and of its secret key (which `repr` does not show)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True, slots=True)
class Keys:
    """The two key pairs of one pipeline."""

    server: KeyPair
    client: KeyPair


def new_keys() -> dict[str, str]:
    """Fresh keys: file name -> content, as for a Secret's `stringData`."""
    files: dict[str, str] = {}
    for name in ("server", "client"):
        private = X25519PrivateKey.generate()
        files[f"{name}.public"] = _z85(private.public_key().public_bytes_raw())
        files[f"{name}.secret"] = _z85(private.private_bytes_raw())
    return files


def generate_keys(directory: Path) -> None:
    """Write fresh keys, readable by the owner alone. Never overwrites: raises `FileExistsError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in new_keys().items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)


def load_keys(directory: Path) -> Keys:
    """The keys in a directory. Raises `ManifestError` naming the file that is missing, wrong, or of another pair."""
    return Keys(_load_pair(directory, "server"), _load_pair(directory, "client"))


def _load_pair(directory: Path, name: str) -> KeyPair:
    public, secret = (_load_key(directory / f"{name}.{half}") for half in ("public", "secret"))
    private = X25519PrivateKey.from_private_bytes(base64.b85decode(secret.translate(_FROM_Z85)))
    if _z85(private.public_key().public_bytes_raw()).encode() != public:
        raise ManifestError(str(directory / f"{name}.public"), f"is not the public key of {name}.secret", _REMEDY)
    return KeyPair(public, secret)


def _load_key(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
        length = len(base64.b85decode(key.translate(_FROM_Z85)))
    except OSError as error:
        raise ManifestError(str(path), f"cannot be read: {error.strerror}", _REMEDY) from error
    except ValueError as error:
        raise ManifestError(str(path), "is not Z85 text", _REMEDY) from error
    if length != 32:
        raise ManifestError(str(path), f"holds {length} bytes, a CURVE key has 32", _REMEDY)
    return key


_REMEDY = "Write a new set with `pipedec.wire.keys.generate_keys`, and give the same set to every process"


def _z85(key: bytes) -> str:
    return base64.b85encode(key).translate(_TO_Z85).decode("ascii")
