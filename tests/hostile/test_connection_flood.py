# SPDX-License-Identifier: Apache-2.0
"""More connections than a shard may have files open: the store keeps what it needs, and clients come back."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import connect
from tests.hostile.victim import Victim
from tests.process import wait_until

FILES = 256
"""A limit that is small, so that the flood is."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def flood(port: int, said: bytes, stack: ExitStack) -> list[socket.socket]:
    """Connections past every limit, that say this and no more."""
    opened = []
    for _ in range(2 * FILES):
        opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)))
        opened[-1].sendall(said)
    return opened


@pytest.mark.parametrize("said", [PREFACE, b""], ids=["that speak HTTP/2", "that say nothing"])
def test_idle_connections_leave_the_store_its_files(tmp_path: Path, said: bytes) -> None:
    with Victim(tmp_path, files_max=FILES) as victim, connect(victim.address, timeout_s=60) as client:
        with ExitStack() as stack:
            flood(int(victim.address.rpartition(":")[2]), said, stack)
            if said:  # the others are closed after some seconds
                with victim.dial() as late, pytest.raises(grpc.RpcError) as caught:
                    _ask(late)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, "which clients try again"
            flood(int(victim.cluster.data_endpoint[1:]), b"", stack)
            for step in range(5):
                client.push("user", np.arange(1000) + step, np.ones((1000, 16)))
                victim.stub.CreateCheckpoint(pb.CreateCheckpointRequest(), timeout=60)
            assert victim.stub.GetStats(pb.GetStatsRequest(), timeout=60).poison == ""
        wait_until(lambda: _can_connect(victim))
        assert victim.stop() == 0


def _ask(channel: grpc.Channel) -> None:
    stats: Any = channel.unary_unary("/rowhouse.v1.ParameterService/GetStats")
    stats(b"", timeout=60)


def _can_connect(victim: Victim) -> bool:
    with victim.dial() as channel:
        try:
            _ask(channel)
        except grpc.RpcError:
            return False
    return True
