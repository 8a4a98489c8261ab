# SPDX-License-Identifier: Apache-2.0
"""A fake shard behind a real data port: a transport whose pulls and pushes can be begun."""

import socket
from typing import Any

from rowhouse import codec, frame
from rowhouse.codec import Part
from rowhouse.message import PullRequest, PullResponse, PushRequest, PushResponse

from ps_client.transport.embedded import EmbeddedTransport
from ps_client.transport.frame import FrameTransport
from ps_client.transport.transport import Begun
from ps_server.serve.data_port import DataPort
from tests.data_peer import Counted

from .fake_shard import FakeShard


class LinkedTransport(EmbeddedTransport):
    """Hot calls over sockets, the others in this process."""

    def __init__(self, shard: FakeShard, name: str) -> None:
        super().__init__(shard, name)
        self.fake = shard
        service = Counted()
        service.work = self._work
        self.port = DataPort(service, 2)
        self.port.start(socket.create_server(("127.0.0.1", 0)))
        self.frames = FrameTransport("127.0.0.1:1", self.port.endpoint, self.port.token)

    def _work(self, kind: int, data: memoryview) -> list[Part]:
        if kind == frame.PULL:
            return [codec.encode_pull_response(self.fake.pull(codec.decode_pull_request(data)))]
        return [codec.encode_push_response(self.fake.push(codec.decode_push_request(data)))]

    def begin(self, request: PullRequest | PushRequest, timeout_s: float) -> Begun[Any]:
        return self.frames.begin(request, timeout_s)

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        return self.frames.pull(request, timeout_s)

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        return self.frames.push(request, timeout_s)

    def close(self) -> None:
        self.frames.close()
        self.port.stop(20)
        super().close()
