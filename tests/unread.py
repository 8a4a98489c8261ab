# SPDX-License-Identifier: Apache-2.0
"""A service whose answers are large, for peers that ask for them and never read."""

import numpy as np
from rowhouse import codec, message
from rowhouse.dtype import FLOAT32

from ps_server.serve.service import ParameterService
from tests.stub_shard import StubShard

BOUND = 128 << 20
ANSWER = 16 << 20
"""Rows of one pull: more than both ends' sockets take (Linux: 4 and 6 MiB)."""


class Filled(StubShard):
    """Its rows are memory that is there, which zeros are not."""

    def pull(self, request: message.PullRequest) -> message.PullResponse:
        rows = [np.full((t.ids.shape[0], t.dim), 1.5, np.float32) for t in request.tables]
        parts = zip(request.tables, rows, strict=True)
        return message.PullResponse(7, tuple(message.TableRows(t.table, FLOAT32, r) for t, r in parts))


def held_bytes(service: ParameterService) -> int:
    return service._in_flight._held_bytes


def pull_bytes(rows_bytes: int) -> bytes:
    """A pull whose answer has that many bytes of rows."""
    ids = np.arange(rows_bytes // 4096, dtype=np.uint64)
    return codec.encode_pull_request(
        message.PullRequest(0, FLOAT32, True, (message.TableIds("user", 1024, ids),))
    )
