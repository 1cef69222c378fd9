"""The lab: a namespace on the cluster of KUBECONFIG, for the tests marked e2e."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control_plane.live import Lab, install_crd


@pytest.fixture(scope="session")
def crd_installed() -> None:
    install_crd()


@pytest.fixture
def lab(crd_installed: None) -> Iterator[Lab]:
    found = Lab()
    yield found
    found.close()
