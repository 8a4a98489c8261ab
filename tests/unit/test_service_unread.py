# SPDX-License-Identifier: Apache-2.0
"""gRPC clients that ask for much and never read (service.py, invariant 1)."""

import signal
import subprocess
import sys
import threading
import time
from typing import Any

import grpc
import psutil
import pytest
from rowhouse import message

from ps_server.serve.grpc_port import GrpcPort
from ps_server.serve.service import ParameterService
from tests.data_peer import until
from tests.unread import ANSWER, BOUND, Filled, held_bytes, pull_bytes

PULLS = 60
SHARE = BOUND // 2
"""What one peer may have when others have nothing."""

METHOD = "/rowhouse.v1.ParameterService/Pull"
ASKS = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1], [("grpc.max_receive_message_length", -1)])
pull, body = channel.unary_unary(sys.argv[2]), sys.stdin.buffer.read()
calls = [pull.future(body) for _ in range(int(sys.argv[3]))]
for call in calls:
    call.exception()
"""


class Gated(Filled):
    """Answers when the gate is open, and counts its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.answered = threading.Event(), threading.Semaphore(0)

    def pull(self, request: message.PullRequest) -> message.PullResponse:
        assert self.gate.wait(60)
        answer = super().pull(request)
        self.answered.release()
        return answer


def test_a_client_that_asks_and_never_reads_finds_it_busy_and_its_memory_bounded() -> None:
    service, this = ParameterService(0, in_flight_bytes_max=BOUND), psutil.Process()
    shard = Gated()
    service.attach(shard)
    port = GrpcPort(service, 16)
    endpoint = f"127.0.0.1:{port.listen('127.0.0.1:0')}"
    port.start()
    before = this.memory_info().rss
    arguments = [sys.executable, "-c", ASKS, endpoint, METHOD, str(PULLS)]
    with (
        subprocess.Popen(arguments, stdin=subprocess.PIPE) as child,
        grpc.insecure_channel(endpoint) as channel,
    ):
        try:
            assert child.stdin is not None
            child.stdin.write(pull_bytes(ANSWER))
            child.stdin.close()
            until(lambda: held_bytes(service) > SHARE - 2 * ANSWER)
            child.send_signal(signal.SIGSTOP)  # from here on it reads nothing
            until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
            shard.gate.set()
            for _ in range(SHARE // ANSWER - 1):
                assert shard.answered.acquire(timeout=30)
            time.sleep(0.3)  # an answer that gRPC has, and nobody reads, still counts
            assert SHARE - 2 * ANSWER < held_bytes(service) <= SHARE + 2 * ANSWER
            assert this.memory_info().rss - before < 4 * BOUND, "60 answers are 960 MB"
            pull: Any = channel.unary_unary(METHOD)
            assert len(pull(pull_bytes(4096), timeout=10)) > 4096, "what still fits is served"
            with pytest.raises(grpc.RpcError) as caught:
                pull(pull_bytes(BOUND), timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        finally:
            shard.gate.set()
            child.kill()
        until(lambda: held_bytes(service) == 0)
    port.stop(0)
