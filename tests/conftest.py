# SPDX-License-Identifier: Apache-2.0
"""What every tier shares: where the repository is, hypothesis settings, small configs."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""mkfs.ext4 and losetup, which some tests take, are there; the PATH of a service may lack them."""

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `pytest` alone does not add it; tests import tests.naive and examples
    sys.path.insert(0, str(ROOT))

# The first call of a kernel compiles it, so a deadline would fail on the machine, not on the code.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")

# A shell starts what it puts into the background with interrupts ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Builds a config mapping in tmp_path: one SGD table `user` of dim 4, unless keys say otherwise."""

    def make(**keys: Any) -> dict[str, Any]:
        table = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
        base = {"data_dir": str(tmp_path / "data"), "tables": [table], "shards": 1, "base_port": 0}
        return {**base, "memory_budget": "16MiB", **keys}

    return make
