# SPDX-License-Identifier: Apache-2.0
"""Peer: bare gRPC that carries the bytes of a pull, or of a push, and does nothing else.

The server answers each call with as many zero bytes as its first 8 bytes ask for; no (de)serialisation.
Run as a module it serves: `python -m benchmarks.peer_grpc`.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from rowhouse.malloc import keep_large_blocks

from benchmarks.batch import DIM, Batch

OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
METHOD: Final = "/benchmark.Bare/Call"
NAME: Final = f"grpcio {grpc.__version__}, the same bytes, no table"
ID_BYTES: Final = 8
ROW_BYTES: Final = 4 * DIM
HEAD_BYTES: Final = 40
"""Names, counts and tags of our messages beside their arrays, about."""


class BareCalls:
    """A channel to the bare server at `endpoint`; payloads are made once per batch size."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint, OPTIONS)
        self._call: Any = self._channel.unary_unary(METHOD)
        self._sent: dict[tuple[int, int], bytes] = {}

    def _exchange(self, out_bytes: int, back_bytes: int) -> None:
        key = (out_bytes, back_bytes)
        if key not in self._sent:
            self._sent[key] = back_bytes.to_bytes(8, "little") + bytes(out_bytes - 8)
        answer = self._call(self._sent[key])
        assert len(answer) == back_bytes, "the bare server answers what was asked for"

    def pull(self, batch: Batch) -> None:
        """The bytes of a pull of the batch's distinct ids."""
        ids = batch.distinct.shape[0]
        self._exchange(HEAD_BYTES + ids * ID_BYTES, HEAD_BYTES + ids * ROW_BYTES)

    def step(self, batch: Batch) -> None:
        """The bytes of a pull, then those of a push."""
        self.pull(batch)
        self._exchange(HEAD_BYTES + batch.distinct.shape[0] * (ID_BYTES + ROW_BYTES), HEAD_BYTES)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def serve() -> None:
    """Serve on a free port of loopback until killed."""
    keep_large_blocks()  # the peer gets what makes large messages fast here, as our server does
    answers: dict[int, bytes] = {}

    def call(request: bytes, _context: grpc.ServicerContext) -> bytes:
        size = int.from_bytes(request[:8], "little")
        if size not in answers:
            answers[size] = bytes(size)
        return answers[size]

    handler = grpc.method_handlers_generic_handler(
        "benchmark.Bare", {"Call": grpc.unary_unary_rpc_method_handler(call)}
    )
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"bare gRPC serves at 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
