"""Keys are what ZeroMQ calls keys, are kept from others, and are checked when they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from pipedec.errors import ManifestError
from pipedec.wire.keys import generate_keys, load_keys, new_keys


def test_each_pair_is_one_that_zeromq_would_make(tmp_path: Path) -> None:
    generate_keys(tmp_path / "keys")
    keys = load_keys(tmp_path / "keys")
    assert keys.server != keys.client
    for pair in (keys.server, keys.client):
        assert zmq.curve_public(pair.secret) == pair.public


def test_keys_made_by_zeromq_are_read(tmp_path: Path) -> None:
    for name in ("server", "client"):
        public, secret = zmq.curve_keypair()
        (tmp_path / f"{name}.public").write_bytes(public + b"\n")
        (tmp_path / f"{name}.secret").write_bytes(secret)
    assert zmq.curve_public(load_keys(tmp_path).client.secret) == load_keys(tmp_path).client.public


def test_files_are_the_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    before = load_keys(tmp_path)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(new_keys(), 0o600)
    with pytest.raises(FileExistsError):
        generate_keys(tmp_path)
    assert load_keys(tmp_path) == before


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    keys = load_keys(tmp_path)
    assert keys.client.public.decode() in repr(keys)
    assert keys.client.secret.decode() not in repr(keys)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("not Z85: ~", "is not Z85"),
        ("abcde", "holds 4 bytes"),
        ("0" * 40, "is not the public key"),
    ],
)
def test_the_file_that_is_wrong_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    generate_keys(tmp_path)
    file = tmp_path / "client.public"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ManifestError, match=problem) as caught:
        load_keys(tmp_path)
    assert caught.value.field == str(file)
