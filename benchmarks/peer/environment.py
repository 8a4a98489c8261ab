# SPDX-License-Identifier: Apache-2.0
"""Environments of the peers: made on demand in the user's cache, each pinned, none in ours.

An environment is a virtual environment with pinned packages, files of source packages that carry a prebuilt
library, and Debian packages unpacked beside it (no root, nothing installed). A stamp holds what it was made
from; another list makes it again. Where it cannot be had (no network, another platform) `Unavailable` says
why in one line, and the bar is skipped with that line.

Thread safety: one process at a time; two that make the same environment at once disturb each other.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

INSTALL_S: Final = 1800.0
"""TensorFlow's and Paddle's wheels are half a gigabyte each; a slow line takes its time."""

ERROR_CHARACTERS_MAX: Final = 300
STAMP: Final = "made-from.json"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"


class Unavailable(Exception):  # noqa: N818 # it is a state of the machine, told to the reader as it is
    """The environment cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a peer needs.

    Attributes
    ----------
    name
        Folder in the cache; "" when this interpreter serves, which must have `modules`.
    packages
        Pinned requirements of a virtual environment.
    sources
        Pinned source packages that are downloaded and unpacked, not built.
    debian
        Debian packages that are downloaded and unpacked.
    modules
        Modules of this interpreter that are used instead of an environment.
    """

    name: str = ""
    packages: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """A usable environment: its interpreter, its folder, and variables to set."""

    interpreter: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where environments live: ROWHOUSE_PEER_CACHE, else rowhouse/peer under the user's cache."""
    given = os.environ.get("ROWHOUSE_PEER_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rowhouse" / "peer"


def prepare(environment: Environment, cache: Path, install: bool = True) -> Ready:
    """The environment, made if it is not there yet.

    Parameters
    ----------
    environment
        What is needed.
    cache
        Folder of all environments.
    install
        False: only what is there already.

    Raises
    ------
    Unavailable
        It cannot be had; one line says why.
    """
    if not environment.name:
        _require_modules(environment.modules)
        return Ready(Path(sys.executable), cache)
    folder = cache / environment.name
    wanted = json.dumps(asdict(environment), indent=1)
    stamp = folder / STAMP
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        if not install:
            raise Unavailable(
                f"{environment.name}: its environment is not in {cache}; --peers names it to make it"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _make(environment, folder)
        stamp.write_text(wanted, encoding="utf-8")  # last: an install that broke off is done again
    return Ready(_interpreter(environment, folder), folder, _variables(folder))


def _require_modules(modules: Sequence[str]) -> None:
    for module in modules:
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False)
        if done.returncode:
            raise Unavailable(f"{module} cannot be imported by {sys.executable}")


def _interpreter(environment: Environment, folder: Path) -> Path:
    return folder / "venv" / "bin" / "python" if environment.packages else Path(sys.executable)


def _variables(folder: Path) -> dict[str, str]:
    """PEER_FOLDER, and the paths of unpacked Debian packages."""
    root = folder / "debian"
    found = {"PEER_FOLDER": str(folder)}
    if root.exists():
        libraries = sorted({str(path.parent) for path in root.rglob("*.so*")})
        found["LD_LIBRARY_PATH"] = ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(":")
        found["PATH"] = ":".join([str(root / "usr" / "bin"), os.environ.get("PATH", "")])
    return found


def _make(environment: Environment, folder: Path) -> None:
    print(f"making the environment of {environment.name} in {folder}", file=sys.stderr, flush=True)
    name = environment.name
    pip_flags = ["--quiet", "--disable-pip-version-check", "--no-input"]
    if environment.packages:
        interpreter = folder / "venv" / "bin" / "python"
        _run(name, [sys.executable, "-m", "venv", str(folder / "venv")], folder)
        if any(package.startswith("torch==") for package in environment.packages):
            pip_flags += ["--extra-index-url", TORCH_INDEX]  # the default index has CUDA builds only
        install = [
            str(interpreter),
            "-m",
            "pip",
            "install",
            *pip_flags,
            "--no-compile",
            *environment.packages,
        ]
        _run(name, install, folder)
    for source in environment.sources:
        flags = ["--no-deps", "--no-binary", source.split("==", maxsplit=1)[0], "--dest", str(folder)]
        _run(name, [sys.executable, "-m", "pip", "download", *pip_flags, *flags, source], folder)
        for archive in folder.glob("*.tar.gz"):
            _unpack(name, archive, folder)
            archive.unlink()
    if environment.debian:
        (folder / "debian").mkdir()
        _run(name, ["apt-get", "download", *environment.debian], folder / "debian")
        for package in sorted((folder / "debian").glob("*.deb")):
            _run(name, ["dpkg", "-x", package.name, "."], folder / "debian")
            package.unlink()


def _unpack(name: str, archive: Path, folder: Path) -> None:
    """Unpack a source archive; Unavailable if it is damaged, or reaches outside `folder`."""
    try:
        with tarfile.open(archive) as source:
            # "data" refuses paths outside, and devices; Python 3.11 has it since 3.11.4.
            if hasattr(tarfile, "data_filter"):
                source.extractall(folder, filter="data")
            else:
                within = folder.resolve()
                for member in source.getmembers():
                    plain = member.isfile() or member.isdir()
                    if not plain or not (folder / member.name).resolve().is_relative_to(within):
                        raise Unavailable(
                            f"{name}: {archive.name} holds {member.name!r}, which is no plain file"
                        )
                source.extractall(folder)  # checked above
    except (OSError, tarfile.TarError) as error:
        raise Unavailable(f"{name}: {archive.name}: {error}") from None


def _run(name: str, command: Sequence[str], folder: Path) -> None:
    """Run one command of an install; Unavailable tells its last line."""
    try:
        done = subprocess.run(
            list(command), cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{name}: {command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        last = next((line for line in lines if "rror" in line), lines[-1] if lines else "no output")
        words = " ".join(command[:4])
        raise Unavailable(f"{name}: {words} … ended with {done.returncode}: {last[:ERROR_CHARACTERS_MAX]}")
