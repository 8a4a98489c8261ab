# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels without a writable home and installation, in real processes; and whose folder is used."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rowhouse import cache

ROOT = Path(__file__).resolve().parents[2]
KERNEL = """
import numpy, os
import ps_client
from rowhouse.mix import mix64
import ps_client.kernel, rowhouse.kernel
assert mix64(numpy.arange(3, dtype=numpy.uint64)).shape == (3,)
print(os.environ["NUMBA_CACHE_DIR"])
"""


@pytest.fixture
def installed() -> Iterator[Path]:
    """Our packages as a read-only installation, in a folder that any user may read; a temporary folder."""
    base = Path(tempfile.mkdtemp(prefix="rowhouse-test-"))
    base.chmod(0o755)
    site = base / "site"
    for path in ("proto/rowhouse", "ps_client", "ps_server", "feature_cross"):
        package = ROOT / path
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder, _, files in os.walk(site):
        Path(folder).chmod(0o555)
        for name in files:
            (Path(folder) / name).chmod(0o444)
    (base / "tmp").mkdir()
    (base / "tmp").chmod(0o1777)
    yield base
    for folder, _, _ in os.walk(base):
        Path(folder).chmod(0o755)
    shutil.rmtree(base)


def run(base: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that can write nowhere but to the temporary folder."""
    folders = {
        "PYTHONPATH": str(base / "site"),
        "HOME": str(base / "site" / "none"),
        "TMPDIR": str(base / "tmp"),
    }
    command = [*bound_by_modes(), sys.executable, "-c", script]
    return subprocess.run(
        command,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**folders, **environment},
    )


def bound_by_modes() -> list[str]:
    """A command that has the next one obey the modes of files, root too. (Another user may not be able to run
    this Python: pyenv's lies in a home.)"""
    if os.getuid() != 0:
        return []
    command = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode != 0:
        pytest.skip("root cannot give up its right to write everywhere here: setpriv fails")
    return command


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.nb?")}


def test_without_a_home_kernels_are_kept_in_a_temporary_folder_that_processes_share(installed: Path) -> None:
    first = run(installed, KERNEL)
    assert first.returncode == 0, first.stderr
    folder = installed / "tmp" / f"rowhouse-kernels-{os.getuid()}"
    assert first.stdout.strip() == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
    kept = files(folder)
    assert any(name.endswith(".nbc") for name in kept)
    second = run(installed, KERNEL)
    assert second.stdout.strip() == str(folder), second.stderr
    assert files(folder) == kept  # found, not compiled again


@pytest.mark.parametrize("trap", ["link", "open to all", "a file"])
def test_a_folder_that_is_not_ours_alone_is_not_used(installed: Path, trap: str) -> None:
    shared = installed / "tmp" / f"rowhouse-kernels-{os.getuid()}"
    target = installed / "target"
    target.mkdir()
    target.chmod(0o777)
    if trap == "link":
        shared.symlink_to(target)
    elif trap == "a file":
        shared.write_text("")
    else:
        shared.mkdir()
        shared.chmod(0o777)
    done = run(installed, "import os, rowhouse\nprint(os.environ['NUMBA_CACHE_DIR'])")
    assert done.returncode == 0, done.stderr
    used = Path(done.stdout.strip())
    assert used.parent == installed / "tmp" and used != shared
    assert stat.S_IMODE(used.stat().st_mode) == 0o700 and used.stat().st_uid == os.getuid()
    assert not list(target.iterdir())


def test_what_numba_finds_by_itself_is_left_alone(installed: Path) -> None:
    told = "import os, rowhouse\nprint(os.environ.get('NUMBA_CACHE_DIR'))"
    home = installed / "tmp" / "home"
    home.mkdir()
    home.chmod(0o777)
    assert run(installed, told, HOME=str(home)).stdout.strip() == "None"
    assert run(installed, told, NUMBA_CACHE_DIR="/opt/kernels").stdout.strip() == "/opt/kernels"


def test_numba_that_is_loaded_already_is_told_too(installed: Path) -> None:
    done = run(installed, "import numba\n" + KERNEL)  # numba has read its settings before us
    assert done.returncode == 0, done.stderr
    assert files(installed / "tmp")


def test_a_folder_in_which_anybody_may_swap_ours_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "open"))
    monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setitem(sys.modules, "numba", None)
    cache.settle(tmp_path)
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "shm" / f"rowhouse-kernels-{os.getuid()}")
    assert not list((tmp_path / "open").iterdir())


@pytest.mark.parametrize("package", ["ps_client", "ps_server", "feature_cross"])
def test_the_folder_is_settled_before_a_kernel_can_be_declared(package: str) -> None:
    script = f"import {package}, sys\nassert 'rowhouse.cache' in sys.modules and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
