# SPDX-License-Identifier: Apache-2.0
"""Peers that are slow, silent, stopped or that lie, beside a client that works: it is served all the same."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rowhouse.control import METHODS, SIZE_METADATA_KEY
from rowhouse.error import ERROR_METADATA_KEY
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import connect
from tests.hostile.victim import Victim

SERVICE = "/rowhouse.v1.ParameterService/"
CALLS = ["Pull", "Push", "Contribute", *METHODS]
THREADS = 2
ANSWER_S = 60.0
"""What a call may take beside silent peers; they were silent for ever."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
HALF_A_HEADER = b"\0\x01\0\1\0\0\0\0\1" + b"\x83\x86"  # of 256 bytes, and no end of the headers

PUSHES = """
import sys, threading, grpc
address, body = sys.argv[1], bytes(int(sys.argv[2]))
sizes = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
tells = (("rowhouse-bytes", str(len(body))),)
def push():
    call = grpc.insecure_channel(address, sizes).unary_unary("/rowhouse.v1.ParameterService/Push")
    while True:
        call.future(body, metadata=tells).exception()
        sys.stdout.write("pushed\\n")
        sys.stdout.flush()
for _ in range(16):
    threading.Thread(target=push).start()
"""


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    with Victim(tmp_path, worker_threads=THREADS) as one:
        yield one


def assert_serves(victim: Victim) -> None:
    """Control calls, health, and a client that connects, pushes and pulls, are all answered."""
    with victim.dial() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_S)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert victim.stub.GetStats(pb.GetStatsRequest(), timeout=ANSWER_S).poison == ""
    with connect(victim.address, timeout_s=ANSWER_S) as client:
        ids = np.arange(100)
        before = client.pull("narrow", ids)
        client.push("narrow", ids, np.ones((100, 1)))
        np.testing.assert_allclose(client.pull("narrow", ids), before - 0.1, rtol=1e-6)


def open_silent(channel: grpc.Channel, method: str, **keys: Any) -> tuple[Any, threading.Event]:
    """A call that sends no message, and the event that ends it. (gRPC cancels a call that nobody keeps.)"""
    end = threading.Event()

    def nothing() -> Iterator[Any]:
        end.wait()
        yield from ()

    return channel.stream_unary(method).future(nothing(), **keys), end


def test_idle_streams_to_every_call_hold_nothing(victim: Victim) -> None:
    """Eight of them to Push stopped a shard, and made its stop last 37 s."""
    with ExitStack() as stack:
        silent = []
        for _ in range(2):
            channel = stack.enter_context(victim.dial())
            for method in [SERVICE + name for name in CALLS] + ["/grpc.health.v1.Health/Check"]:
                for _ in range(4):
                    silent.append(open_silent(channel, method))
        with victim.dial() as channel:  # a stub that tells no size waits in line, and comes to its turn
            raw: Any = channel.unary_unary(SERVICE + "Push")
            raw(victim.push("user", 10, client=3, sequence=1), timeout=ANSWER_S)
        assert_serves(victim)
        began_s = time.monotonic()
        assert victim.stop() == 0
        assert time.monotonic() - began_s < 30, "a silent peer held up the stop"
        for _, end in silent:
            end.set()


def test_trainers_that_are_stopped_in_the_middle_of_a_push(victim: Victim) -> None:
    size = victim.message_bytes_max - 1000  # more than sockets take
    arguments = [sys.executable, "-c", PUSHES, victim.address, str(size)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as trainers:
        try:
            assert trainers.stdout is not None
            for _ in range(32):
                assert trainers.stdout.readline() == b"pushed\n"
            trainers.send_signal(signal.SIGSTOP)
            for _ in range(3):
                assert_serves(victim)
        finally:
            trainers.kill()


def test_connections_with_half_a_header_or_none(victim: Victim) -> None:
    host, _, port = victim.address.rpartition(":")
    with ExitStack() as stack:
        for said in (b"", PREFACE, PREFACE[:10], PREFACE + HALF_A_HEADER) * 16:
            peer = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            peer.sendall(said)
        assert_serves(victim)


def test_what_nobody_reads_yet_is_one_window_at_most(victim: Victim) -> None:
    """Calls that wait in line for room: their messages stay with their peers."""
    size = victim.message_bytes_max - 1000
    assert_serves(victim)
    with ExitStack() as stack:
        channels = [stack.enter_context(victim.dial()) for _ in range(8)]
        silent = [open_silent(channels[0], SERVICE + "Push") for _ in range(4)]  # they have the places
        before = victim.memory("VmRSS")
        victim.forget_peak()
        body = bytes(size)
        pushes: list[Any] = [channel.unary_unary(SERVICE + "Push") for channel in channels]
        calls = [push.future(body, timeout=1) for push in pushes for _ in range(8)]
        for call in calls:
            assert call.exception() is not None
        grown = victim.memory("VmHWM") - before
        # four in flight, two that come, each in gRPC's memory and in Python's, and what malloc keeps
        assert grown < 16 * size, f"{len(calls)} messages of {size} bytes: {grown >> 20} MiB"
        for _, end in silent:
            end.set()
    assert_serves(victim)


def test_who_tells_too_small_a_size_is_refused_and_not_believed_again(victim: Victim) -> None:
    body = victim.push("user", 5000, client=4, sequence=1)
    with victim.dial() as channel:
        push: Any = channel.unary_unary(SERVICE + "Push")
        with pytest.raises(grpc.RpcError, match=f"{SIZE_METADATA_KEY} told 10") as caught:
            push(body, metadata=((SIZE_METADATA_KEY, "10"),), timeout=ANSWER_S)
        names = [str(m.value) for m in caught.value.trailing_metadata() if m.key == ERROR_METADATA_KEY]
        assert names == ["InvalidRequestError"]
        answer = push(body, metadata=((SIZE_METADATA_KEY, "10"),), timeout=ANSWER_S)
        assert pb.PushResponse.FromString(answer).lsn == 1, "the lie changed nothing; now it is not looked at"


@pytest.mark.parametrize("told", ["", "x", "-1", "1e3", "9" * 5000])
def test_a_size_that_is_none(victim: Victim, told: str) -> None:
    with victim.dial() as channel:
        saved: Any = channel.unary_unary(SERVICE + "GetSavedTables")
        assert saved(b"", metadata=((SIZE_METADATA_KEY, told),), timeout=ANSWER_S) == b""
    assert_serves(victim)


def test_a_call_without_a_message_is_an_invalid_request(victim: Victim) -> None:
    with victim.dial() as channel, pytest.raises(grpc.RpcError, match="without a message") as caught:
        channel.stream_unary(SERVICE + "Push")(iter(()), timeout=ANSWER_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
