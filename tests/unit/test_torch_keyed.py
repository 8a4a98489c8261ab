# SPDX-License-Identifier: Apache-2.0
"""Whose jagged batches the collections take: torchrec's where it loads, else ours (keyed.py)."""

import logging
import runpy
import sys
from types import ModuleType
from typing import Any

import pytest

from ps_client.torch import jagged_tensor, keyed, keyed_jagged_tensor, keyed_tensor

OURS = {
    "JaggedTensor": jagged_tensor.JaggedTensor,
    "KeyedJaggedTensor": keyed_jagged_tensor.KeyedJaggedTensor,
    "KeyedTensor": keyed_tensor.KeyedTensor,
}
NAMES = tuple(OURS)


class BrokenLibrary:
    """A finder for which torchrec is installed, and its compiled part does not load."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "torchrec":
            raise OSError("undefined symbol")


def load() -> dict[str, Any]:
    return runpy.run_path(str(keyed.__file__))


def hide_torchrec(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchrec"]:
        monkeypatch.delitem(sys.modules, name)


def test_torchrec_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchrec.sparse.jagged_tensor")
    for name in NAMES:
        setattr(module, name, type(name, (), {}))
    monkeypatch.setitem(sys.modules, "torchrec", ModuleType("torchrec"))
    monkeypatch.setitem(sys.modules, "torchrec.sparse", ModuleType("torchrec.sparse"))
    monkeypatch.setitem(sys.modules, "torchrec.sparse.jagged_tensor", module)
    found = load()
    assert all(found[name] is getattr(module, name) for name in NAMES)


def test_ours_are_used_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_torchrec(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchrec", None)
    found = load()
    assert all(found[name] is OURS[name] for name in NAMES)


def test_a_torchrec_that_does_not_load_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hide_torchrec(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [BrokenLibrary(), *sys.meta_path])
    with caplog.at_level(logging.WARNING):
        found = load()
    assert all(found[name] is OURS[name] for name in NAMES)
    assert "torchrec is installed and does not load: undefined symbol" in caplog.text
