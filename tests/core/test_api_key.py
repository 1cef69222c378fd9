"""The file with the API key, as the endpoint and its clients read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipedec.api_key import read_api_key
from pipedec.errors import ManifestError


def test_the_space_around_a_key_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" sk-0+/=~! of words\r\n\n")
    assert read_api_key(tmp_path / "key") == "sk-0+/=~! of words"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo\n", "holds a key that no client can send"),
        (b"one\ttwo", "holds a key that no client can send"),
        ("schlüssel".encode(), "holds a key that no client can send"),
        (b"\x00\xff\xfe", "holds a key that no client can send"),
        (b"\x00", "holds a key that no client can send"),
    ],
)
def test_what_no_client_can_send_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ManifestError, match=rf"key: {words}\. Put one key into it"):
        read_api_key(tmp_path / "key")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none: cannot be read \(No such file or directory\)"):
        read_api_key(tmp_path / "none")
