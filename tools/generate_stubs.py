# SPDX-License-Identifier: Apache-2.0
"""Write the protobuf stubs of proto/rowhouse/v1 anew; `--check` only compares (CI does).

Example: python tools/generate_stubs.py --check
"""

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
PROTO = "rowhouse/v1/rowhouse.proto"
STUBS = ("rowhouse/v1/rowhouse_pb2.py", "rowhouse/v1/rowhouse_pb2.pyi", "rowhouse/v1/rowhouse_pb2_grpc.py")


def generate(target: Path) -> None:
    """Run protoc into `target` (a folder); raises RuntimeError when protoc fails."""
    arguments = ["protoc", f"-I{SOURCE}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main([*arguments, f"--grpc_python_out={target}", PROTO]) != 0:
        raise RuntimeError(f"protoc failed on {PROTO}")


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
