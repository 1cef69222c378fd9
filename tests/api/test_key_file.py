"""The API key of a running endpoint, in a file as the kubelet mounts a Secret's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from draft_service.api.key_file import KeyFile
from draft_service.text import Tokenizer
from tests.api.test_service_routes import served_with

UNUSABLE = "API key unusable; the old one stays"


class Mounted:
    """A Secret's folder, swapped as a whole for every new content."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self.key = folder / "key"
        self.key.symlink_to("..data/key")

    def hold(self, content: bytes | None) -> None:
        self._count += 1
        version = self._folder / f"..{self._count}"
        version.mkdir()
        if content is not None:
            (version / "key").write_bytes(content)
            os.utime(version / "key", (0, 0))  # two Secrets may be of the same moment
        (self._folder / "..tmp").symlink_to(version)
        (self._folder / "..tmp").rename(self._folder / "..data")


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    secret = Mounted(tmp_path)
    secret.hold(b"first\n")
    return secret


@pytest.fixture
def client(secret: Mounted, tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    file = KeyFile(secret.key)
    with served_with(tokenizer, api_key=file.key) as client:
        yield client


def let_in(client: httpx.Client) -> set[str]:
    """Those of some keys with which models are listed."""
    keys = ("first", "second", "third")
    asked = {key: client.get("/v1/models", headers={"authorization": f"Bearer {key}"}) for key in keys}
    return {key for key, answer in asked.items() if answer.status_code == 200}


def test_a_new_key_replaces_the_old_one(client: httpx.Client, secret: Mounted) -> None:
    assert let_in(client) == {"first"}
    secret.hold(b"third")
    assert let_in(client) == {"third"}
    secret.key.unlink()
    secret.key.write_bytes(b"second")  # as by hand, beside `pipedec up`
    assert let_in(client) == {"second"}


def test_a_key_that_cannot_be_used_leaves_the_old_one(
    client: httpx.Client, secret: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"", "dritter Schlüssel".encode(), None):
        secret.hold(content)
        caplog.clear()
        assert let_in(client) == {"first"}
        assert let_in(client) == {"first"}
        assert [each.levelname for each in caplog.records if each.message == UNUSABLE] == ["ERROR"]
    secret.hold(b"second")
    assert let_in(client) == {"second"}
