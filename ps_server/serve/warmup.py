# SPDX-License-Identifier: Apache-2.0
"""Has the kernels of a config compiled (or loaded from numba's cache) before the first request comes.

Without it the first pull after a start waits for that: half a second with a warm cache, much longer on a
machine that never ran this version. It steps a scratch shard in a temporary folder, so that not one
counter of the real shard moves. A failure costs only speed, so it is logged and forgotten.
Thread safety: a function without state.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
from rowhouse import dtype
from rowhouse.codec import decode_pull_request, decode_push_request, encode_pull_request, encode_push_request
from rowhouse.error import RowhouseError
from rowhouse.message import PullRequest, PushRequest, TableGradients, TableIds

from ps_server.config.cluster import ClusterConfig, shard_directory
from ps_server.shard.shard import Shard
from ps_server.table.config import TableConfig

_log = logging.getLogger(__name__)


def representative_tables(config: ClusterConfig) -> tuple[TableConfig, ...]:
    """One table for each set of kernels that the config's tables use: dim and hyperparameters are not one."""
    kinds = {
        (t.dtype, t.optimizer.kind, t.initializer.kind, t.admission and t.admission.kind): t
        for t in config.tables
        if t.freeze == "off"
    }
    return tuple(kinds.values())


def warm_up(config: ClusterConfig) -> None:
    """Pull and push one id of each representative table, in a scratch shard that is thrown away."""
    tables = representative_tables(config)
    if not tables:
        return
    try:
        with tempfile.TemporaryDirectory(prefix="rowhouse-warmup-") as folder:
            changes = {"tables": tables, "data_dir": Path(folder), "shards": 1, "durability": "none"}
            _step(config.model_copy(update=changes))
    except (RowhouseError, OSError) as error:
        _log.warning("kernels are not warm, the first requests will wait for them: %s", error)


def _step(config: ClusterConfig) -> None:
    shard = Shard.open(config, 0, shard_directory(config, 0))
    try:
        version = shard.partition_map.version
        ids = np.zeros(1, np.uint64)
        pulls = tuple(TableIds(t.name, t.dim, ids) for t in config.tables)
        steps = ((t.name, np.zeros((1, t.dim), np.float32)) for t in config.tables)
        pushes = tuple(TableGradients(name, dtype.FLOAT32, ids, zeros) for name, zeros in steps)
        # Through the codec: arrays from the wire are read-only, which to numba is another type.
        pull = encode_pull_request(PullRequest(version, dtype.FLOAT32, False, pulls))
        push = encode_push_request(PushRequest(version, 1, 1, pushes))
        shard.pull(decode_pull_request(pull))
        shard.push(decode_push_request(push), push)
        shard.pull(decode_pull_request(pull))
    finally:
        shard.close()
