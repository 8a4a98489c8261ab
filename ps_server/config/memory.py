# SPDX-License-Identifier: Apache-2.0
"""Whether `memory_budget` fits: into the machine, and into the control group (container) of this process.

The kernel kills a process that passes either, without a word; so a config that cannot fit is refused at the
start, and one that leaves no room for what a process takes beside its budget is warned of.

Thread safety: functions that read files of the system.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rowhouse.error import ConfigError
from rowhouse.limit import in_flight_bytes_max

from ps_server.config.cluster import MEMORY_BUDGET_MIN_BYTES, ClusterConfig

INTERPRETER_BYTES: Final = 200 << 20
"""What a shard's process takes before its first row: the interpreter, its libraries, compiled kernels."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most memory that the processes here may take together, and whose limit it is."""

    bytes: int
    whose: str


def beyond_budget(memory_budget: int) -> int:
    """Bytes that a shard's process may take beside its memory_budget: the interpreter, calls in flight."""
    return INTERPRETER_BYTES + in_flight_bytes_max(memory_budget)


def memory_limit(root: Path = Path("/")) -> Limit | None:
    """The least of the machine's memory and the limits of this process's control groups; None where the
    system does not tell (no Linux).

    Parameters
    ----------
    root
        Where `proc` and `sys` are; tests give their own.
    """
    limits = [Limit(bytes_, f"the container's limit ({path})") for path, bytes_ in _control_groups(root)]
    meminfo = root / "proc/meminfo"
    lines = meminfo.read_text(encoding="utf-8").splitlines() if meminfo.exists() else []
    limits += [
        Limit(int(line.split()[1]) << 10, "the machine") for line in lines if line.startswith("MemTotal:")
    ]
    return min(limits, key=lambda limit: limit.bytes, default=None)


def _control_groups(root: Path) -> list[tuple[Path, int]]:
    """The limits of this process's control groups and of those above them; of version 1 and 2.

    Inside a container the path of /proc/self/cgroup may be the host's, where nothing is mounted; then the
    container's own group is the topmost one that is.
    """
    listing = root / "proc/self/cgroup"
    found = []
    for line in listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []:
        number, kinds, path = line.split(":", 2)
        mounts, name = [], ""
        if number == "0" and not kinds:
            mounts, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in kinds.split(","):
            mounts, name = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        for mount in mounts:
            group = Path(path.lstrip("/"))
            for part in (group, *group.parents):
                file = root / mount / part / name
                text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
                if text.isdigit():  # "max": none
                    found.append((file, int(text)))
    return found


def check_memory(config: ClusterConfig, shards: int = 1, *, limit: Limit | None = None) -> None:
    """Refuse a memory_budget that cannot fit; warn of one that is tight.

    Parameters
    ----------
    config
        The cluster's.
    shards
        How many of its shards run here.
    limit
        None: that of this process.

    Raises
    ------
    ConfigError
        The budgets alone are past the memory.
    """
    limit = limit or memory_limit()
    if limit is None:
        return
    each = f"memory_budget is {_size(config.memory_budget)}"
    if shards > 1:
        each += f" for each of {shards} shards, {_size(shards * config.memory_budget)} together"
    has = f"{limit.whose} has {_size(limit.bytes)}"
    if shards * config.memory_budget > limit.bytes:
        raise ConfigError(f"{each}; {has}{_advice(limit.bytes // shards)}")
    beyond = beyond_budget(config.memory_budget)
    if shards * (config.memory_budget + beyond) > limit.bytes:
        _log.warning(
            "%s, and a shard's process may take %s more; %s: the kernel may kill it%s",
            each, _size(beyond), has, _advice(limit.bytes // shards),
        )  # fmt: skip


def _advice(bytes_each: int) -> str:
    """The budget that fits into so many bytes, in the words of a message."""
    budget = bytes_each >> 20 << 20
    while budget >= MEMORY_BUDGET_MIN_BYTES and budget + beyond_budget(budget) > bytes_each:
        budget -= max(budget >> 6 >> 20 << 20, 1 << 20)
    return f"; {_size(budget)} would fit" if budget >= MEMORY_BUDGET_MIN_BYTES else ""


def _size(bytes_: int) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if bytes_ >= 1 << shift:
            return f"{bytes_ / (1 << shift):.4g} {unit}".replace(" ", "")
    return f"{bytes_} bytes"
