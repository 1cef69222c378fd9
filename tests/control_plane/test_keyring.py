"""The Secret of keys: its content is what ZeroMQ reads, and it is made once."""

from __future__ import annotations

import base64
from pathlib import Path

import zmq

from pipedec.wire.keys import load_keys
from pipedec_operator import keyring, manifests
from tests.control_plane.samples import OWNER, SETTING, resource


def test_keys_are_zeromqs() -> None:
    keys = keyring.new_keys()
    assert set(keys) == set(keyring.ENTRIES)
    for name in ("server", "client"):
        assert zmq.curve_public(keys[f"{name}.secret"].encode()).decode() == keys[f"{name}.public"]


def test_services_read_the_mounted_secret(tmp_path: Path) -> None:
    keys = keyring.new_keys()
    for name, content in keys.items():
        (tmp_path / name).write_text(content)
    assert load_keys(tmp_path).server.public.decode() == keys["server.public"]


def test_the_fingerprint_tells_other_keys_and_no_secret() -> None:
    first, second = ({"data": {k: _b64(v) for k, v in keyring.new_keys().items()}} for _ in range(2))
    assert keyring.fingerprint(first) != keyring.fingerprint(second)
    second["data"] |= {name: value for name, value in first["data"].items() if name.endswith(".public")}
    assert keyring.fingerprint(first) == keyring.fingerprint(second)


def test_the_secret_belongs_to_the_resource() -> None:
    secret = manifests.keys_secret(resource(), OWNER, SETTING, keyring.new_keys())
    assert secret["metadata"]["name"] == "lion-keys"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
