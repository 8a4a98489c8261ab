# SPDX-License-Identifier: Apache-2.0
"""Peer: Arrow Flight that carries the bytes of a pull and does nothing else, in one DoExchange stream.

A request is a record batch with the ids' bytes and, as its metadata, how many bytes are wanted back; the
answer is a batch of so many zeros. Run as a module it serves: `python -m benchmarks.peer_flight`.
"""

from importlib import import_module
from typing import Any, Final

import numpy as np
import pyarrow as pa
from rowhouse.malloc import keep_large_blocks

from benchmarks.batch import Batch
from benchmarks.peer_grpc import HEAD_BYTES, ID_BYTES, ROW_BYTES

flight: Any = import_module("pyarrow.flight")
SCHEMA: Final = pa.schema([("bytes", pa.uint8())])
NAME: Final = f"pyarrow {pa.__version__} Flight, DoExchange, the same bytes, no table"


def zeros(count: int) -> Any:
    """A record batch of so many zero bytes."""
    return pa.record_batch([pa.array(np.zeros(count, np.uint8))], schema=SCHEMA)


class FlightCalls:
    """A stream to the Flight server at `endpoint`; payloads are made once per size."""

    def __init__(self, endpoint: str) -> None:
        self._client = flight.connect(f"grpc+tcp://{endpoint}")
        self._writer, self._reader = self._client.do_exchange(flight.FlightDescriptor.for_command(b"bare"))
        self._writer.begin(SCHEMA)
        self._sent: dict[int, Any] = {}

    def pull(self, batch: Batch) -> None:
        """The bytes of a pull of the batch's distinct ids."""
        ids = batch.distinct.shape[0]
        out_bytes, back_bytes = HEAD_BYTES + ids * ID_BYTES, HEAD_BYTES + ids * ROW_BYTES
        if out_bytes not in self._sent:
            self._sent[out_bytes] = zeros(out_bytes)
        self._writer.write_with_metadata(self._sent[out_bytes], back_bytes.to_bytes(8, "little"))
        answer = self._reader.read_chunk().data
        assert answer.num_rows == back_bytes, "the Flight server answers what was asked for"

    def close(self) -> None:
        """End the stream."""
        self._writer.close()
        self._client.close()


def serve() -> None:
    """Serve on a free port of loopback until killed."""
    keep_large_blocks()
    answers: dict[int, Any] = {}

    class Server(flight.FlightServerBase):  # type: ignore[misc] # pyarrow has no types
        """Answers each chunk with as many bytes as its metadata asks for."""

        def do_exchange(self, _context: Any, _descriptor: Any, reader: Any, writer: Any) -> None:
            """One stream."""
            writer.begin(SCHEMA)
            for chunk in reader:
                size = int.from_bytes(chunk.app_metadata.to_pybytes(), "little")
                if size not in answers:
                    answers[size] = zeros(size)
                writer.write_batch(answers[size])

    server = Server("grpc+tcp://127.0.0.1:0")
    print(f"bare Flight serves at 127.0.0.1:{server.port}", flush=True)
    server.serve()


if __name__ == "__main__":
    serve()
