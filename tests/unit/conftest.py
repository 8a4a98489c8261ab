# SPDX-License-Identifier: Apache-2.0
"""A data port over a fake service, for the files that test it."""

from collections.abc import Iterator

import pytest

from ps_server.serve import data_port
from ps_server.serve.data_port import DataPort
from tests.data_peer import Counted, serving


@pytest.fixture
def service() -> Counted:
    return Counted()


@pytest.fixture
def port(service: Counted) -> Iterator[DataPort]:
    with serving(service) as running:
        yield running


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalls are found within tenths of a second."""
    monkeypatch.setattr(data_port, "STALL_S", 0.4)
    monkeypatch.setattr(data_port, "_SWEEP_S", 0.05)
