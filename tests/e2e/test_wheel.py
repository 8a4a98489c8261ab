# SPDX-License-Identifier: Apache-2.0
"""What is shipped: an sdist, the wheel that is built from it, and that wheel in an empty environment."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rowhouse.distribution import DISTRIBUTION

from tests.architecture import PACKAGES
from tools.wheel import ROOT, build_sdist, build_wheel

PROGRAM = """
import importlib, pkgutil, sys
extras = dict.fromkeys(sys.argv[1:])
sys.modules.update(extras)  # None: as if they were not installed
import numpy
import feature_cross, feature_cross.engine, ps_client, ps_server, rowhouse
assert rowhouse.__version__ != "0+unknown"
table = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
ids = numpy.array([7, 2**64 - 1], numpy.uint64)
with ps_client.connect("embedded:model", config={"tables": [table]}) as client:
    before = client.pull("user", ids)
    client.push("user", ids, numpy.ones((2, 4), numpy.float32))
    numpy.testing.assert_allclose(client.pull("user", ids), before - 0.5, atol=1e-6)
for name in extras:
    del sys.modules[name]
modules = [feature_cross, ps_client, ps_server, rowhouse]
for package in tuple(modules):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        modules.append(importlib.import_module(found.name))
print(*{module.__file__ for module in modules}, sep="\\n")
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    return build_wheel(sdist, sdist.parent)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that holds the wheel only; what the wheel needs is borrowed from this one.

    A .pth file adds the folders and does not run their own .pth files, so the editable install of this tree
    stays out.
    """
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--root-user-action=ignore", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return python


def shipped(*, without: str = "__pycache__") -> set[str]:
    """Files of the packages as git has them, by their place in a wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES.values()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return {name.removeprefix("proto/") for name in listed if (ROOT / name).is_file() and without not in name}


def extras() -> set[str]:
    """Modules that only an extra for users installs; each is called like its distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    needs = [
        Requirement(need).name
        for name, group in groups.items()
        if name not in ("dev", "docs")
        for need in group
    ]
    return {"torch", "matplotlib", *needs} - {Requirement(need).name for need in project["dependencies"]}


def test_the_wheel_is_the_packages_and_nothing_else(wheel: Path) -> None:
    """So no folder lacks its __init__.py, every package is typed, and no test or benchmark is shipped."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        head = message_from_bytes(archive.read(metadata))
    assert {name for name in names if ".dist-info/" not in name} == shipped()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert head["Name"] == DISTRIBUTION and head["License-Expression"] == "Apache-2.0"


def test_the_sdist_has_what_a_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert not any(name.startswith(("tests", "benchmarks", "examples", "docs")) for name in names)


def test_the_wheel_works_in_an_empty_environment(python: Path, tmp_path: Path) -> None:
    """A trainer's part works without the extras; with them every module of every package can be imported."""
    command = [str(python), "-W", "error", "-c", PROGRAM, *extras()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3_000, check=False)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()
    assert len(files) > 100, "every module of the packages was imported"
    assert all(Path(file).is_relative_to(python.parent.parent) for file in files), files


@pytest.mark.parametrize("command", ["ps-server", "psctl", "feature-cross"])
def test_its_commands_help(command: str, python: Path, tmp_path: Path) -> None:
    program = [str(python.with_name(command)), "--help"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command}")
