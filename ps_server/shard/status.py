# SPDX-License-Identifier: Apache-2.0
"""What a shard says about itself: its cluster, and its live counters. Pure reads; any thread."""

import json
from collections.abc import Mapping
from typing import cast

from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import ClusterConfig
from ps_server.config.endpoint import as_told
from ps_server.life.recovery import Opened
from ps_server.table.table import Table


def cluster_message(
    config: ClusterConfig, index: int, partition_map: PartitionMap, tables: Mapping[str, Table]
) -> pb.GetClusterResponse:
    """Tables, endpoints and the partition map, as a client asks for them."""
    infos = [
        pb.TableInfo(
            name=name, dim=t.layout.dim, dtype=cast(pb.Dtype, t.layout.dtype),
            config_json=json.dumps(t.config.model_dump(mode="json")), push_rows_max=t.tier.rows_min,
        )
        for name, t in tables.items()
    ]  # fmt: skip
    return pb.GetClusterResponse(
        map_version=partition_map.version, shard=index, cluster_id=partition_map.cluster_id,
        endpoints=[as_told(endpoint) for endpoint in config.endpoints],
        partition_shards=partition_map.shards.tobytes(), tables=infos,
    )  # fmt: skip


def stats_message(
    config: ClusterConfig, index: int, opened: Opened, applied_lsn: int, poison: str | None, *, closed: bool
) -> pb.GetStatsResponse:
    """Live counters of shard `index`; a closed one has no tables and no memory any more."""
    log = opened.log
    synced = log.synced_lsn if log is not None and config.durability == "fsync" else applied_lsn
    return pb.GetStatsResponse(
        shard=index, applied_lsn=applied_lsn, durable_lsn=synced, checkpoint_lsn=opened.state.lsn,
        log_bytes=log.bytes if log else 0, log_records=log.records if log else 0,
        memory_budget_bytes=config.memory_budget,
        memory_used_bytes=0 if closed else opened.budget.granted_bytes + opened.store.memory_bytes(),
        poison=poison or "", tables=[] if closed else [table.stats() for table in opened.tables.values()],
    )  # fmt: skip
