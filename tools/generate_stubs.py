# SPDX-License-Identifier: Apache-2.0
"""Write the protobuf stubs of proto/rowhouse/v1 anew; `--check` only compares (CI does).

Generated code runs with the protobuf and grpcio that it was generated for and with later ones, never with
earlier ones. So the generator is old on purpose, and its version is what pyproject.toml can declare as lowest
(tests/docs/test_distribution.py holds the two together). It needs an older protobuf than the development
environment has, but only at its installation: it is unpacked into a folder of its own, build/stubs, and runs
from there.

Example: python tools/generate_stubs.py --check
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

GENERATOR: Final = "grpcio-tools==1.72.1"
ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / "proto"
PROTO: Final = "rowhouse/v1/rowhouse.proto"
STUBS: Final = (
    "rowhouse/v1/rowhouse_pb2.py",
    "rowhouse/v1/rowhouse_pb2.pyi",
    "rowhouse/v1/rowhouse_pb2_grpc.py",
)


def generator() -> Path:
    """The folder that the generator runs from; installed there first if it is missing."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = ROOT / "build" / "stubs" / f"{GENERATOR}-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            flags = ["-qq", "--disable-pip-version-check", "--no-input", "--root-user-action=ignore"]
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                *flags,
                "--no-deps",
                "--target",
                fresh,
                GENERATOR,
            ]
            subprocess.run(command, check=True)
            Path(fresh).rename(folder)  # whole or not at all
            Path(fresh).mkdir()
    return folder


def generate(target: Path) -> None:
    """Run protoc into `target` (a folder); CalledProcessError when it fails."""
    arguments = [
        f"-I{SOURCE}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
    ]
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, PROTO]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(generator())}, check=True)


def main() -> int:
    """Entry point; returns the exit code (1: the committed stubs are stale)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(SOURCE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [n for n in STUBS if (SOURCE / n).read_bytes() != (Path(folder) / n).read_bytes()]
    for name in stale:
        print(f"stale stub: proto/{name} (run python tools/generate_stubs.py)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
