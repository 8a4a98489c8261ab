# SPDX-License-Identifier: Apache-2.0
"""The shards of one cluster as a client sees them: transports, lanes, partition map, tables.

Joining asks every target who it is, so targets may be given in any order, and one target is enough
where the cluster advertises the others' endpoints. It makes no retries (exchange.py does), but joining
waits for shards that are starting.

Invariants: 1. `transports[s]` leads to the shard that says it is s; 2. `partition_map` and
`transports` fit: the map names no shard without a transport; 3. a lane lives as long as the client.
Thread safety: `partition_map` is replaced as a whole under a lock; readers take one reference.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from rowhouse.error import ConfigError, InternalError, PreconditionError, RowhouseError
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.lane import Lane
from ps_client.retry import Backoff
from ps_client.table import Table, read_tables
from ps_client.transport.transport import Transport

Dial = Callable[[str], Transport]
"""Makes the transport to one endpoint."""


class Cluster:
    """See the module. Use `Cluster.join`.

    Attributes
    ----------
    tables
        Every table by name.
    partition_map
        The newest map that a shard told us.
    transports, lanes
        By shard.
    client_id
        Random 64-bit name under which this client pushes.
    message_bytes_max
        Largest message that every shard takes and gives.
    """

    def __init__(self, dial: Dial, tables: Mapping[str, Table], partition_map: PartitionMap) -> None:
        self.tables = tables
        self.partition_map = partition_map
        self.transports: list[Transport] = []
        self.client_id = secrets.randbits(64)
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.lanes: list[Lane] = []
        self._dial = dial
        self._lock = threading.Lock()

    @classmethod
    def join(cls, targets: Sequence[str], dial: Dial, backoff: Backoff) -> "Cluster":
        """Reach every shard.

        Parameters
        ----------
        targets
            Endpoints of one or more shards, in any order.
        dial
            Makes the transport to an endpoint.
        backoff
            How long to wait for shards that do not answer yet.

        Raises
        ------
        ConfigError
            Two targets are one shard, or a shard is neither a target nor advertised.
        PreconditionError
            The shards do not share one partition map.
        UnavailableError
            A shard did not answer in time.
        """
        opened: list[Transport] = []
        try:
            return cls._join(targets, dial, backoff, opened)
        except BaseException:
            for transport in opened:
                transport.close()
            raise

    @classmethod
    def _join(
        cls, targets: Sequence[str], dial: Dial, backoff: Backoff, opened: list[Transport]
    ) -> "Cluster":
        found: dict[int, tuple[Transport, pb.GetClusterResponse]] = {}

        def ask(target: str) -> pb.GetClusterResponse:
            transport = dial(target)
            opened.append(transport)
            answer = _get_cluster(transport, backoff)
            if answer.shard in found:
                other = found[answer.shard][0].endpoint
                raise ConfigError(f"targets {other!r} and {target!r} are one shard, number {answer.shard}")
            found[answer.shard] = (transport, answer)
            return answer

        first, *_ = [ask(target) for target in targets]
        partition_map = PartitionMap.from_bytes(first.partition_shards, first.cluster_id)
        for shard in range(partition_map.shard_count):
            if shard not in found:
                ask(_advertised(first, shard, targets[0]))
        for transport, answer in found.values():
            _check_cluster(answer, transport.endpoint, first.cluster_id, f"shard at {targets[0]} is")
            if answer.map_version != partition_map.version:
                raise PreconditionError(
                    f"shard at {transport.endpoint} has partition map {answer.map_version:#x}, shard at "
                    f"{targets[0]} has {partition_map.version:#x}: they are not one cluster"
                )
        others = [info for _, answer in found.values() for info in answer.tables]
        cluster = cls(dial, read_tables(first.tables, others), partition_map)
        told = [answer.message_bytes_max for _, answer in found.values() if answer.message_bytes_max]
        cluster.message_bytes_max = min([MESSAGE_BYTES_MAX, *told])
        cluster._extend([found[shard][0] for shard in range(partition_map.shard_count)])
        return cluster

    def _extend(self, transports: Sequence[Transport]) -> None:
        self.transports += transports
        self.lanes += [Lane(self.client_id) for _ in transports]

    def reload(self, shard: int, stale: PartitionMap, backoff: Backoff) -> bool:
        """Ask `shard` for its map, after it refused a request routed by `stale`.

        Returns
        -------
        bool
            False when its map is the stale one, so that asking again at once would not help.

        Raises
        ------
        PreconditionError
            The shard there is of another cluster now.
        """
        with self._lock:
            if self.partition_map.version != stale.version:
                return True  # another thread was here first
            transport = self.transports[shard]
            answer = _get_cluster(transport, backoff)
            known_id = self.partition_map.cluster_id
            if known_id:
                _check_cluster(answer, transport.endpoint, known_id, "this client joined one")
            fresh = PartitionMap.from_bytes(answer.partition_shards, answer.cluster_id)
            new = range(len(self.transports), fresh.shard_count)
            self._extend([self._dial(_advertised(answer, s, transport.endpoint)) for s in new])
            self.partition_map = fresh
            return fresh.version != stale.version

    def check(self, transport: Transport, timeout_s: float) -> None:
        """PreconditionError when the shard that a transport leads to is of another cluster now.

        Pulls and pushes carry the cluster; control calls do not, and are asked for this first.
        """
        if cluster_id := self.partition_map.cluster_id:
            answer = transport.call("GetCluster", pb.GetClusterRequest(), timeout_s)
            _check_cluster(answer, transport.endpoint, cluster_id, "this client joined one")

    def close(self) -> None:
        """Close every transport."""
        for transport in self.transports:
            transport.close()


def _get_cluster(transport: Transport, backoff: Backoff) -> pb.GetClusterResponse:
    while True:
        try:
            answer: pb.GetClusterResponse = transport.call(
                "GetCluster", pb.GetClusterRequest(), backoff.attempt_s()
            )
        except RowhouseError as failure:
            backoff.wait(failure)
        else:
            break
    if PartitionMap.from_bytes(answer.partition_shards).version != answer.map_version:
        raise InternalError(
            f"shard at {transport.endpoint} names partition map {answer.map_version:#x}, "
            "but the map in its answer has another version"
        )
    return answer


def _check_cluster(answer: pb.GetClusterResponse, endpoint: str, wanted: str, whose: str) -> None:
    """PreconditionError when a shard is of another cluster: rows of two would go into one model."""
    if answer.cluster_id != wanted:
        raise PreconditionError(
            f"shard at {endpoint} is of cluster {answer.cluster_id or 'unknown'}, {whose} of cluster "
            f"{wanted or 'unknown'}. If they are one cluster with a data_dir on each machine, give all of "
            "them the same cluster_id in their config"
        )


def _advertised(answer: pb.GetClusterResponse, shard: int, asked: str) -> str:
    """Endpoint of a shard that is not among the targets, as the shard at `asked` tells it."""
    endpoint = answer.endpoints[shard] if shard < len(answer.endpoints) else ""
    if not endpoint:
        raise ConfigError(
            f"shard {shard} is not among the targets, and the cluster advertises no endpoint for it"
        )
    if endpoint.startswith(":"):  # on every address of its machine
        host = "127.0.0.1" if asked.startswith("unix:") else asked.rpartition(":")[0]
        return host + endpoint
    return endpoint
