# SPDX-License-Identifier: Apache-2.0
"""keep_large_blocks: what it sets where there is a glibc, and that nothing breaks where there is none."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rowhouse import malloc


class Library:
    """A C library whose mallopt refuses what `refuses` holds, and remembers every call."""

    def __init__(self, refuses: set[tuple[int, int]]) -> None:
        self.calls: list[tuple[int, int]] = []
        self._refuses = refuses

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int((parameter, value) not in self._refuses)


def use(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)


def test_the_three_parameters_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, library := Library(set()))
    assert malloc.keep_large_blocks()
    assert dict(library.calls) == {-1: malloc.KEEP_BYTES, -2: malloc.TOP_PAD_BYTES, -3: malloc.KEEP_BYTES}


def test_an_older_glibc_gets_the_threshold_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, library := Library({(-3, malloc.KEEP_BYTES)}))
    assert malloc.keep_large_blocks()
    assert (-3, malloc.OLD_KEEP_BYTES) in library.calls


def test_a_refusal_or_a_library_without_mallopt_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Library({(-1, malloc.KEEP_BYTES)}))
    assert not malloc.keep_large_blocks()
    use(monkeypatch, SimpleNamespace())
    assert not malloc.keep_large_blocks()


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted through Linux's getrusage")
def test_large_blocks_are_not_given_back() -> None:
    program = """
import resource, sys
from rowhouse.malloc import keep_large_blocks
if not keep_large_blocks():
    sys.exit(0)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    block = bytearray(8 << 20); del block
before = faults()
for _ in range(20):
    block = bytearray(8 << 20); del block
assert faults() - before < 2048, faults() - before   # mapped anew each time it would be 20 x 2048
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_server_keeps_blocks_of_the_usual_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, library := Library(set()))
    assert malloc.keep_usual_blocks()
    wanted = {
        -1: malloc.USUAL_FREE_BYTES,
        -2: malloc.TOP_PAD_BYTES,
        -3: malloc.USUAL_BYTES,
        -8: malloc.ARENAS,
    }
    assert dict(library.calls) == wanted
    use(monkeypatch, SimpleNamespace())
    assert not malloc.keep_usual_blocks() and not malloc.give_back()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_what_a_server_does_not_use_any_more_goes_back() -> None:
    program = """
import sys, threading
from rowhouse.malloc import give_back, keep_usual_blocks
if not keep_usual_blocks():
    sys.exit(0)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def use(kept):
    blocks = [bytearray(b"x") * (4 << 20) for _ in range(40)]
    kept.append(bytearray(b"y") * (1 << 20))  # after them: what is free lies below it
before, kept = resident(), []
for _ in range(4):
    thread = threading.Thread(target=use, args=(kept,)); thread.start(); thread.join()
large = bytearray(b"z") * (64 << 20); del large
give_back()
assert resident() - before < 40 << 20, resident() - before   # 160 MiB were used at once
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
