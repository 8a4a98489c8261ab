# SPDX-License-Identifier: Apache-2.0
"""memory.py: the memory that there is, and a memory_budget that does not fit into it."""

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rowhouse.document import dump
from rowhouse.error import ConfigError
from rowhouse.limit import in_flight_bytes_max

from ps_client import connect
from ps_server.config.cluster import load_config
from ps_server.config.memory import INTERPRETER_BYTES, Limit, beyond_budget, check_memory, memory_limit
from tests.conftest import MakeConfig

MIB = 1 << 20
TABLES = {"tables": [{"name": "user", "dim": 4}]}


def system(root: Path, groups: str, **files: str) -> Limit | None:
    """The limit of a machine of 1,000 MiB with those files below sys/fs/cgroup."""
    for name, text in {"proc/meminfo": f"MemTotal: {1000 * 1024} kB\n", "proc/self/cgroup": groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return memory_limit(root)


@pytest.mark.parametrize(
    ("groups", "files", "mib"),
    [
        ("0::/\n", {}, 1000),
        ("0::/\n", {"memory.max": "max"}, 1000),
        ("0::/\n", {"memory.max": str(600 * MIB)}, 600),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": str(300 * MIB)}, 300),
        ("0::/a/b\n", {"a/b/memory.max": str(200 * MIB), "a/memory.max": str(300 * MIB)}, 200),
        ("0::/a\n", {"a/memory.max": str(2000 * MIB)}, 1000),
        ("0::/a\n", {"unified/a/memory.max": str(5 * MIB)}, 5),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": str(400 * MIB)}, 400),
        ("4:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": str(400 * MIB)}, 400),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 1000),
        # in a container the path is often the host's, and the container's own group is mounted at the top
        ("4:memory:/docker/1f\n", {"memory/memory.limit_in_bytes": str(700 * MIB)}, 700),
        ("0::/../../init\n", {"memory.max": str(500 * MIB)}, 500),
        ("9:name=systemd:/a\n1:cpu:/\n", {"memory/memory.limit_in_bytes": str(5 * MIB)}, 1000),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], mib: int) -> None:
    limit = system(tmp_path, groups, **files)
    assert limit is not None and limit.bytes == mib * MIB
    assert limit.whose == "the machine" if mib == 1000 else "cgroup" in limit.whose


def test_a_system_that_does_not_tell_has_no_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None


def test_this_machine_has_a_limit() -> None:
    limit = memory_limit()
    assert limit is not None
    assert 0 < limit.bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


BOX = Limit(600 * MIB, "the container's limit (memory.max)")


@pytest.mark.parametrize(
    ("shards", "budget", "text"),
    [
        (
            1,
            "1GiB",
            r"^memory_budget is 1GiB; the container's limit \(memory.max\) has 600MiB; 3\d\dMiB would",
        ),
        (3, "256MiB", r"^memory_budget is 256MiB for each of 3 shards, 768MiB together; .* has 600MiB$"),
        (1, "601MiB", r"^memory_budget is 601MiB"),
    ],
)
def test_budgets_past_the_memory_are_refused_by_their_key(
    make_config: MakeConfig, shards: int, budget: str, text: str
) -> None:
    config = load_config(make_config(shards=shards, memory_budget=budget))
    with pytest.raises(ConfigError, match=text):
        check_memory(config, shards, limit=BOX)


def test_a_tight_budget_is_a_warning_and_a_smaller_one_none(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    check_memory(load_config(make_config(memory_budget="600MiB")), limit=BOX)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("memory_budget is 600MiB, and a shard's process may take 350MiB more; ")
    assert "the kernel may kill it; 3" in text
    caplog.clear()
    advised = text.rpartition("; ")[2].removesuffix(" would fit")
    check_memory(load_config(make_config(memory_budget=advised)), limit=BOX)
    assert not caplog.records, "what was advised fits"


def test_what_a_process_takes_beyond_its_budget() -> None:
    assert beyond_budget(1 << 30) == INTERPRETER_BYTES + in_flight_bytes_max(1 << 30)


# ---------------------------------------------------------------- real processes
@pytest.mark.parametrize("command", [["up"], ["serve", "--shard", "0"]])
def test_a_server_refuses_a_budget_past_the_machine_and_makes_nothing(
    make_config: MakeConfig, command: list[str], tmp_path: Path
) -> None:
    config: dict[str, Any] = make_config(memory_budget="900TiB")
    path = tmp_path / "big.yaml"
    path.write_text(dump({**config, "data_dir": str(config["data_dir"])}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ps_server.cli", *command, "--config", str(path)],
        capture_output=True, text=True, timeout=1_200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "ConfigError: memory_budget is 900TiB; " in done.stderr and "Traceback" not in done.stderr
    assert not Path(config["data_dir"]).exists()


def test_embedded_mode_refuses_it_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^memory_budget is "):
        connect(f"embedded:{tmp_path / 'a'}", config={**TABLES, "memory_budget": "900TiB"})
    assert not (tmp_path / "a").exists()


def test_address_space_that_the_system_refuses_is_told_by_the_key(tmp_path: Path) -> None:
    """A process whose address space is bounded, as by `ulimit -v`."""
    program = (
        "import resource, ps_client\n"
        "from ps_server.serve.embedded import open_embedded\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (3 << 30, {resource.RLIM_INFINITY}))\n"
        "try:\n"
        f"    open_embedded({str(tmp_path)!r}, {{**{TABLES!r}, 'memory_budget': '4GiB'}})\n"
        "except ps_client.ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=1_200, check=False
    )
    assert done.stdout.startswith("memory_budget: "), done.stderr
