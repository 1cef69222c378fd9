"""Keys and transports, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from pipedec.wire.keys import Keys, generate_keys, load_keys
from pipedec.wire.sockets import Transport

Open = Callable[[Keys | Literal["insecure"]], Transport]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")
    generate_keys(directory)
    return load_keys(directory)


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Of another pipeline."""
    directory: Path = tmp_path_factory.mktemp("other_keys")
    generate_keys(directory)
    return load_keys(directory)


@pytest.fixture
def open_transport() -> Iterator[Open]:
    with ExitStack() as stack:
        yield lambda keys: stack.enter_context(Transport(keys))
