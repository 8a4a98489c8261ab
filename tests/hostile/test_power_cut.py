# SPDX-License-Identifier: Apache-2.0
"""The power goes at every step of a first start, a checkpoint, a save, a restore, a load and a recovery.

It needs root, mkfs.ext4 and a loop device, and is skipped where one of them is missing. `make test` cuts at a
few steps of each scenario, the soak at every one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.hostile.power_cut import SCENARIOS
from tests.workload import MEMORY

SIGKILL = 9
CUTS = 4
"""Steps of a scenario that `make test` cuts at."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Disk:
    """An ext4 file system in a file, which can lose its power."""

    def __init__(self, folder: Path) -> None:
        image, self.mount = folder / "image", folder / "mount"
        with image.open("wb") as file:
            file.truncate(192 << 20)
        run("mkfs.ext4", "-q", "-F", str(image))
        self.mount.mkdir()
        self.device = run("losetup", "--find", "--show", str(image))
        try:
            self.attach()
        except BaseException:
            run("losetup", "--detach", self.device)
            raise

    def attach(self) -> None:
        run("mount", self.device, str(self.mount))

    def detach(self) -> None:
        run("umount", str(self.mount))

    def close(self) -> None:
        self.detach()
        run("losetup", "--detach", self.device)


class Rig:
    """The disk, and the process that works on it."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk = folder, disk
        self.errors = folder / "errors.txt"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.errors.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.power_cut", str(folder)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=sink, env=environment, cwd=ROOT, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdin is not None
        self.input, self.answers = self.process.stdin, self.process.stdout
        assert self.answers.readline() == "ready\n", self.errors.read_text()

    def order(self, do: str, scenario: str, data_dir: Path, **keys: Any) -> dict[str, Any]:
        order = {"do": do, "scenario": scenario, "data_dir": str(data_dir), "mount": str(self.disk.mount)}
        self.input.write(json.dumps({**order, **keys}) + "\n")
        self.input.flush()
        answer: dict[str, Any] = json.loads(self.answers.readline())
        return answer

    def cut(self, scenario: str, base: Path, durability: str, stop: int) -> dict[str, Any]:
        """Cut the power before a step (0: never), and see what is left."""
        data_dir = self.disk.mount / "data"
        shutil.rmtree(data_dir, ignore_errors=True)
        run("cp", "-a", str(base), str(data_dir))
        run("sync", "-f", str(self.disk.mount))
        answer = self.order("scenario", scenario, data_dir, durability=durability, stop=stop)
        where = f"{scenario}, {durability}, step {stop}:"
        assert answer["status"] == (SIGKILL if stop else 0), f"{where} {self.errors.read_text()}"
        if stop:
            self.disk.detach()
            self.disk.attach()
        told: dict[str, Any] = answer["told"]
        checked = self.order("check", scenario, data_dir, durability=durability, told=told)
        assert checked["status"] == 0, f"{where} told {told}\n{self.errors.read_text()[-4000:]}"
        return told

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    tools = [name for name in ("mkfs.ext4", "losetup", "mount", "umount") if shutil.which(name) is None]
    if tools or os.geteuid() != 0:
        pytest.skip(f"a power cut needs root and mkfs.ext4, losetup, mount and umount (missing: {tools})")
    folder = Path(tempfile.mkdtemp(prefix="power", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        try:
            disk = Disk(folder)
        except (subprocess.CalledProcessError, OSError) as error:
            told = getattr(error, "stderr", None) or error
            pytest.skip(f"a power cut needs a loop device and the right to mount it: {told}")
        try:
            started = Rig(folder, disk)
            yield started
            started.close()
        finally:
            disk.close()
    finally:
        shutil.rmtree(folder)


def _cut_at(rig: Rig, scenario: str, durability: str, count: int | None) -> None:
    base = rig.folder / f"base-{scenario}-{durability}"
    if not base.exists():
        assert rig.order("base", scenario, base)["status"] == 0, rig.errors.read_text()
    steps = rig.cut(scenario, base, durability, 0)["steps"]
    rng = np.random.default_rng(len(scenario))
    chosen = rng.choice(steps, min(count, steps), replace=False) if count else np.arange(steps)
    for stop in sorted(chosen):
        rig.cut(scenario, base, durability, int(stop) + 1)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_loses_nothing_that_was_acknowledged(rig: Rig, scenario: str) -> None:
    """fsync: every row is that of the pushes up to the LSN, bit for bit, and every later start succeeds."""
    _cut_at(rig, scenario, "fsync", CUTS)


@pytest.mark.parametrize("scenario", ["first_start", "checkpoints", "save"])
def test_after_a_power_cut_under_os_every_start_succeeds(rig: Rig, scenario: str) -> None:
    _cut_at(rig, scenario, "os", 2)


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_power_goes_at_every_step(rig: Rig, scenario: str, durability: str) -> None:
    _cut_at(rig, scenario, durability, None)
