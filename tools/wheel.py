# SPDX-License-Identifier: Apache-2.0
"""The source distribution of this tree, and the wheel that is built from it, from nothing else.

The sdist is built from a copy of the files that git has, for setuptools would also pack what earlier builds
left in the tree. Both use the setuptools of this environment, so neither needs a network.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def build_sdist(folder: Path) -> Path:
    """Write the .tar.gz of this tree into `folder`; its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    with tempfile.TemporaryDirectory() as copy:
        for name in filter(None, listed):
            if (ROOT / name).is_file():  # git lists a file that was deleted a moment ago, too
                target = Path(copy) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        return _built("sdist", Path(copy), folder)


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Write the wheel of an sdist into `folder`; its path."""
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            # Our own archive; Python 3.11 before 3.11.4 has no filter, and later ones warn without one.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(unpacked, **safely)  # type: ignore[arg-type]
        (source,) = Path(unpacked).iterdir()
        return _built("wheel", source, folder)


def _built(kind: str, source: Path, folder: Path) -> Path:
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the {kind} cannot be built:\n{done.stdout}{done.stderr}")
    return folder / done.stdout.splitlines()[-1]
