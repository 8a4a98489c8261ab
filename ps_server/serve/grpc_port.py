# SPDX-License-Identifier: Apache-2.0
"""The gRPC port of a shard: every call of rowhouse.v1.ParameterService, health and reflection.

    call ──▶ event loop: room, message (reading.py) ──▶ a thread of a pool: work ──▶ event loop: answer

One thread runs the event loop; no thread belongs to a call whose message is not here, or whose answer is
not read. So peers that are slow, silent or gone cost memory that is counted, and nothing else. The calls have
pools by what they wait for: none of them can use up the threads that another kind needs.

Every call is registered as one that takes a stream, which is the same on the wire: so its handler runs before
its message is received. GetCluster and GetStats ask nothing, so their message is not read at all.

Invariants: 1. health is answered while the process lives; GetCluster and GetStats wait for no other kind of
call; 2. `stop` takes its grace and a second at most, whatever peers do.
Thread safety: `listen`, `start`, `set_serving` and `stop` may be called from any thread, one at a time.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from rowhouse import frame
from rowhouse.control import METHODS, SERVICE_NAME
from rowhouse.error import BusyError, InvalidRequestError, UnavailableError

from ps_server.serve.call import Call, Context, Handle
from ps_server.serve.connection_limit import CONNECTIONS_MAX
from ps_server.serve.reading import Line, Reading
from ps_server.serve.service import ParameterService

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),  # else a second server on the port would silently take half of the calls
    ("grpc.keepalive_time_ms", 30_000),  # a trainer that vanished is noticed within a minute
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),  # trainers idle between epochs; their channel stays
    ("grpc.http2.bdp_probe", 0),  # windows that grow would hold what nobody reads yet
    ("grpc.max_concurrent_streams", 128),  # of one connection; further calls wait at the client
    ("grpc.server_handshake_timeout_ms", 10_000),
)

_HOT: Final = {"Pull": frame.PULL, "Push": frame.PUSH, "Contribute": frame.CONTRIBUTE}

_QUICK: Final = ("GetCluster", "GetStats")
"""Calls without a word in their request."""

_GROUP: Final = ("JoinGroup", "AwaitStep")
"""Calls that wait for other trainers; the others (checkpoints, copies, evictions) wait for the disk."""

OPEN_MAX: Final = 4096
"""Calls without their message, some 20 KB each. Past it the oldest is told to come back: a message that comes
is here within milliseconds, so that is a silent one."""

_ENDING_S: Final = 1.0
"""What calls have to notice that they were cut; they need no more than a turn of the loop."""

_QUICK_THREADS: Final = 2
_UPKEEP_THREADS: Final = 4

Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

Q = TypeVar("Q", bound=Message)
R = TypeVar("R")


class GrpcPort:
    """The gRPC server of one shard.

    Parameters
    ----------
    service
        Answers calls.
    threads
        Hot calls served at once, and as many calls that wait for other trainers.
    connections_max
        Connections past it are closed as they come; their clients try again.
    """

    def __init__(
        self, service: ParameterService, threads: int, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._service = service
        self._connections_max = connections_max
        self._hot = ThreadPoolExecutor(threads, "rpc")
        self._group = ThreadPoolExecutor(threads, "rpc-group")
        self._upkeep = ThreadPoolExecutor(_UPKEEP_THREADS, "rpc-upkeep")
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, "rpc-quick")
        self._health = health.aio.HealthServicer()
        self._reflection = reflection.aio.ReflectionServicer(
            (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        )
        self._server: grpc.aio.Server | None = None
        self._started = False

    def listen(self, address: str) -> int:
        """Bind the port; its number, or 0 when it cannot be bound. Connections wait until `start`."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_on_loop_error)
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc-loop", daemon=True)
        self._thread.start()
        return self._in_loop(self._listen(address))

    def start(self) -> None:
        """Serve from now on; health says NOT_SERVING."""
        assert self._server is not None, "listen comes before start"
        self._started = True
        self._in_loop(self._server.start())

    def set_serving(self, serving: bool) -> None:
        """Let health say so, while there is a port."""
        if self._server is not None:
            self._in_loop(self._set_serving(serving))

    def stop(self, grace_s: float) -> None:
        """Take no more calls, cut those whose message is not here, give `grace_s` to those at work, and cut
        what is left then; nothing if it never listened, or has stopped."""
        if self._server is None:
            return
        if not self._started:  # gRPC lets go of the port of a server that has run, and of no other
            self.start()
        self._in_loop(self._stop(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for pool in (self._hot, self._group, self._upkeep, self._quick):
            pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ in the loop
    def _in_loop(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self, address: str) -> int:
        bytes_max = self._service.message_bytes_max
        self._reading = Reading(bytes_max)
        self._service.when_refused(self._press)
        self._line, self._small_line = Line(), Line()
        self._open: dict[Call, None] = {}
        options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", bytes_max),
            ("grpc.max_send_message_length", bytes_max),
            ("grpc.max_allowed_incoming_connections", self._connections_max),
        )
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers(self._handlers())
        await self._set_serving(False)
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError:
            return 0

    def _press(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._reading.press)

    async def _set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def _stop(self, grace_s: float) -> None:
        assert self._server is not None
        stopped = asyncio.ensure_future(self._server.stop(grace_s))
        for call in list(self._open):
            call.cut(UnavailableError("the shard stops; retry"))
        await stopped
        self._server = None
        if ending := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(ending, timeout=_ENDING_S)

    # ------------------------------------------------------------ calls
    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        hot = {name: self._hot_call(kind) for name, kind in _HOT.items()}
        control = {name: self._control_call(name) for name in METHODS}
        calls = {name: self._unary(handle) for name, handle in (hot | control).items()}
        watch: Method = grpc.stream_stream_rpc_method_handler(
            self._guarded(self._watch), response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        )
        reflect: Method = grpc.stream_stream_rpc_method_handler(
            self._guarded(self._reflect),
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        services: dict[str, dict[str, Method]] = {
            SERVICE_NAME: calls,
            health.SERVICE_NAME: {"Check": self._unary(self._check), "Watch": watch},
            reflection.SERVICE_NAME: {"ServerReflectionInfo": reflect},
        }
        return tuple(grpc.method_handlers_generic_handler(name, them) for name, them in services.items())

    def _unary(self, handle: Handle) -> Method:
        return grpc.stream_unary_rpc_method_handler(self._guarded(handle))

    def _guarded(self, handle: Handle) -> Callable[[Any, Context], Coroutine[Any, Any, Any]]:
        async def guarded(_: Any, context: Context) -> Any:
            return await Call(context, self._service).answer(handle, self._service.unforeseen)

        return guarded

    def _hot_call(self, kind: int) -> Handle:
        """A call of a training step."""

        async def answer(call: Call) -> bytes:
            data = await self._received(call, self._line)
            return await call.work(self._hot, self._service.answer_whole, kind, data, call.hold)

        return answer

    def _control_call(self, name: str) -> Handle:
        pool = self._group if name in _GROUP else self._upkeep

        async def answer(call: Call) -> bytes:
            data = await self._received(call, self._small_line)
            return await call.work(pool, self._service.control, name, data)

        async def answer_quickly(call: Call) -> bytes:
            return await call.work(self._quick, self._service.control, name, b"")

        return answer_quickly if name in _QUICK else answer

    async def _received(self, call: Call, line: Line) -> bytes:
        with self._waiting(call):
            return await self._reading.receive(call, line)

    @contextmanager
    def _waiting(self, call: Call) -> Iterator[None]:
        """The call has no work here yet, or never has: it may be cut."""
        if len(self._open) >= OPEN_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cut(BusyError(f"{OPEN_MAX} calls wait for their messages: back off and retry"))
        self._open[call] = None
        try:
            yield
        finally:
            self._open.pop(call, None)

    async def _asked(self, call: Call, kind: type[Q]) -> Q | None:
        """The next message of a call whose messages are few bytes."""
        data = await self._reading.of_unknown_size(call, self._small_line)
        if data is None:
            return None
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise InvalidRequestError(f"{kind.DESCRIPTOR.name}: {error}") from None

    async def _check(self, call: Call) -> bytes:
        with self._waiting(call):
            request = await self._asked(call, health_pb2.HealthCheckRequest)
            answer = await self._health.Check(request or health_pb2.HealthCheckRequest(), call.context)
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def _watch(self, call: Call) -> None:
        with self._waiting(call):
            request = await self._asked(call, health_pb2.HealthCheckRequest)
            await self._health.Watch(request or health_pb2.HealthCheckRequest(), call.context)

    async def _reflect(self, call: Call) -> None:
        with self._waiting(call):
            async for answer in self._reflection.ServerReflectionInfo(self._questions(call), call.context):
                await call.context.write(answer)

    async def _questions(self, call: Call) -> AsyncIterator[Any]:
        while (question := await self._asked(call, reflection_pb2.ServerReflectionRequest)) is not None:
            yield question


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Several event loops of a process share one socket of gRPC's; one of those that it wakes reads it."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
