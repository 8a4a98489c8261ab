# SPDX-License-Identifier: Apache-2.0
"""How many connections a shard takes of the files that it may open."""

import subprocess
import sys

import pytest

from ps_server.serve.connection_limit import CONNECTIONS_MAX, KEPT_FILES, connections_max

RAISES = """
import resource
from ps_server.disk.open_file import raise_file_limit
from ps_server.serve.connection_limit import FILES_ENOUGH
told = raise_file_limit(FILES_ENOUGH)
assert told == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(told)
"""


@pytest.mark.parametrize(
    ("files", "ports", "expected"),
    [(256, 2, 64), (256, 1, 128), (1024, 2, 256), (4096, 2, 1536), (1 << 20, 2, CONNECTIONS_MAX)],
)
def test_what_connections_leave_to_the_store(files: int, ports: int, expected: int) -> None:
    assert connections_max(files, ports) == expected
    assert files - ports * expected >= min(KEPT_FILES, files // 2)


@pytest.mark.parametrize(("soft", "hard"), [(64, 512), (512, 512)])
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int) -> None:
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", RAISES]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{hard}\n"
