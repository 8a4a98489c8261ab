# SPDX-License-Identifier: Apache-2.0
"""A real local cluster for the demo: `ps-server up` as a child process, its shards killed and measured.

Thread safety: one thread.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rowhouse.document import dump

from examples.process import Child
from ps_client import connect

PATIENCE_S: Final = 900.0
"""How long a client waits for a shard that gives no answer: a recovery on a slow machine takes minutes."""

_POLL_S: Final = 0.05


@dataclass(frozen=True)
class TableSize:
    """Size of one table, all shards together: rows, bytes in memory (records and index), bytes on disk."""

    rows: int
    hot_rows: int
    record_bytes: int
    index_bytes: int
    disk_bytes: int


class LocalCluster(Child):
    """`ps-server up` of one config; the shards end with the `with` block.

    Parameters
    ----------
    config
        What `ps-server up` reads; `data_dir` in it must be absolute.
    folder
        For the config file and the log.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        path = folder / "cluster.yaml"
        path.write_text(dump(config), encoding="utf-8")
        self._state = Path(config["data_dir"]) / "endpoints.json"
        self._state.unlink(missing_ok=True)
        command = [sys.executable, "-m", "ps_server.cli", "up", "--config", str(path), "--json"]
        super().__init__("ps-server up", command, folder / "cluster.log", stop_s=PATIENCE_S)
        self.wait_healthy()

    @property
    def endpoints(self) -> str:
        """host:port,host:port"""
        return ",".join(self._facts()["endpoints"])

    @property
    def pids(self) -> list[int]:
        """Process ids of the shards that run."""
        return [pid for pid in self._facts().get("pids", []) if pid is not None]

    def _facts(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads(self._state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return facts

    def wait_healthy(self, other_than: tuple[int, ...] = ()) -> None:
        """Wait until every shard serves, in processes `other_than` those, however long that takes; ChildError
        when `ps-server up` gives up."""
        try:
            while True:
                facts = self._facts()
                running = facts.get("pids", [])
                if running and all(facts["healthy"]) and not set(running) & set(other_than):
                    return
                if self.process.poll() is not None:
                    raise self.failure()
                time.sleep(_POLL_S)
        except BaseException:  # a Ctrl-C while the cluster starts comes before `with` can clean up
            self.stop()
            raise

    def kill(self) -> tuple[int, ...]:
        """SIGKILL every shard at once; their process ids. The supervisor starts new ones."""
        killed = tuple(self.pids)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        return killed

    def recover(self, killed: tuple[int, ...]) -> float:
        """Wait for the shards that follow `killed`; seconds until all serve."""
        started_s = time.monotonic()
        self.wait_healthy(other_than=killed)
        return time.monotonic() - started_s

    def checkpoint(self) -> None:
        """Have every shard write its dirty rows."""
        with connect(self.endpoints, timeout_s=PATIENCE_S) as client:
            client.checkpoint()

    def sizes(self) -> dict[str, TableSize]:
        """Sizes by table, summed over the shards."""
        with connect(self.endpoints, timeout_s=PATIENCE_S) as client:
            shards = client.stats()
        fields = TableSize.__dataclass_fields__
        by_name: dict[str, list[int]] = {}
        for shard in shards:
            for table in shard.tables:
                sums = by_name.setdefault(table.name, [0] * len(fields))
                for number, field in enumerate(fields):
                    sums[number] += getattr(table, field)
        return {name: TableSize(*sums) for name, sums in by_name.items()}
