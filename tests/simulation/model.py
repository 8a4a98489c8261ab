# SPDX-License-Identifier: Apache-2.0
"""What the shards of a simulation must hold: dicts of rows and NumPy arithmetic, nothing of the server's.

The model is told each push and eviction in the order in which the shard says that it applied them. It holds
rows as the store has them, byte by byte, so weights, optimizer state and metadata are all compared.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.mix import mix64

from ps_server.table.config import TableConfig
from tests import naive

Ids = NDArray[np.uint64]
Row = bytes
"""A row as the store has it, without its LSN."""

_NARROW = {dtype.FLOAT16: (11, -14, 65504.0), dtype.BFLOAT16: (8, -126, 3.3895313892515355e38)}
"""Significant bits, least exponent of a normal value, and largest value of a narrow type."""


def rounded(values: NDArray[np.float32], ids: Ids, lsn: int, code: int) -> NDArray[np.float32]:
    """naive.round_stochastically of each element of (n, dim) values; each row is seeded by (id, LSN)."""
    digits, least, largest = _NARROW[code]
    columns = np.arange(values.shape[1], dtype=np.uint64)
    push = np.uint64(naive.mix64(lsn))
    keys: Any = mix64(ids ^ push)[:, np.newaxis] + (columns >> np.uint64(1))
    words: Any = mix64(keys.reshape(-1)).reshape(keys.shape) >> ((columns & np.uint64(1)) << np.uint64(5))
    magnitude = np.abs(values.astype(np.float64))
    exponents = np.frexp(magnitude)[1] - 1  # of 0: -1, which rounds it to 0 as any other would
    ulp = np.ldexp(1.0, np.maximum(exponents, least) - (digits - 1))
    whole = np.floor(magnitude / ulp)
    # a float32 has so many bits below its narrow value's last one; below the least exponent 32 are drawn
    bits = np.where((exponents < least) & (code == dtype.FLOAT16), 32, 24 - digits)
    random = (words & np.uint64(0xFFFFFFFF)).astype(np.int64) & ((1 << bits) - 1)
    goes_up = np.floor(np.ldexp(magnitude / ulp - whole, bits)) + random >= np.ldexp(1.0, bits)
    out = np.minimum((whole + goes_up) * ulp, largest)
    found: NDArray[np.float32] = np.copysign(out, values).astype(np.float32)
    return found


@dataclass(frozen=True)
class Part:
    """One table's part of a push, as its author meant it: distinct ids, summed gradients."""

    table: str
    ids: Ids
    gradients: NDArray[np.float32]
    rate: float | None


@dataclass(frozen=True)
class Pushed:
    """A push that a shard applied."""

    lsn: int
    client: int
    sequence: int
    parts: tuple[Part, ...]
    time_s: int


@dataclass(frozen=True)
class Evicted:
    """An eviction that a shard made."""

    lsn: int
    table: str
    ids: tuple[int, ...]


Record = Pushed | Evicted


class TableModel:
    """The rows of one table in one shard."""

    def __init__(self, config: TableConfig) -> None:
        self.config, self.layout = config, config.layout
        self.rows: dict[int, Row] = {}
        self._first: dict[int, Row] = {}
        policies: dict[str, Any] = {policy.kind: policy for policy in config.eviction}
        self._ttl, self._norm = policies.get("ttl"), policies.get("l2_norm")
        self._frequent = policies.get("least_frequent")
        self._counted = 0
        self._sketch: naive.Sketch | None = None
        if config.admission is not None and config.admission.kind == "min_count":
            self._sketch = naive.Sketch(config.admission.width_bits, 1, config.seed)

    def copy(self) -> "TableModel":
        """Another one with the same rows."""
        other = copy(self)
        other.rows = dict(self.rows)
        if self._sketch is not None:
            other._sketch = copy(self._sketch)
            other._sketch.counters = list(self._sketch.counters)
        return other

    # ------------------------------------------------------------ rows
    def _initial(self, one: int) -> Row:
        """The row that an id starts from."""
        if one not in self._first:
            weights = self.config.initializer.fill(
                self.config.seed, np.array([one], np.uint64), self.config.dim
            )
            packed = np.ascontiguousarray(dtype.narrow(weights, self.layout.dtype)).tobytes()
            state = self.config.optimizer.initial_state(self.config.dim).tobytes()
            start = self.layout.state_at - self.layout.weights_at
            self._first[one] = (packed.ljust(start, b"\0") + state).ljust(self.layout.stored_bytes, b"\0")
        return self._first[one]

    def _weights(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        storage = dtype.STORAGE[self.layout.dtype]
        raw = np.ascontiguousarray(rows[:, : self.config.dim * storage.itemsize]).view(storage)
        return dtype.widen(raw, self.layout.dtype)

    def stacked(self, rows: Sequence[Row]) -> NDArray[np.uint8]:
        """Rows as the store has them, (n, stored_bytes) uint8."""
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), self.layout.stored_bytes)

    def pull(self, ids: Ids) -> NDArray[np.float32]:
        """What a pull must answer, (n, dim)."""
        default = 0 if self.config.admission else None
        rows = [self.rows.get(i) or self._initial(i if default is None else default) for i in ids.tolist()]
        return self._weights(self.stacked(rows))

    # ------------------------------------------------------------ changes
    def _admitted(self, ids: Ids, lsn: int) -> NDArray[np.bool_]:
        policy = self.config.admission
        if policy is None:
            return np.ones(ids.shape[0], np.bool_)
        if policy.kind == "probability":
            key = np.uint64(naive.mix64(naive.mix64(naive.mix64(self.config.seed)) ^ lsn))
            bits: Any = mix64(ids ^ key) >> np.uint64(11)
            lucky: NDArray[np.bool_] = bits.astype(np.float64) * 2.0**-53 < policy.probability
            return lucky
        assert self._sketch is not None
        counts = [self._sketch.add(one) for one in ids.tolist()]
        self._counted += len(counts)
        if policy.halve_after_ids is not None and self._counted >= policy.halve_after_ids:
            self._sketch.counters = [counter >> 1 for counter in self._sketch.counters]
            self._counted = 0
        return np.array(counts) >= policy.min_count

    def push(self, part: Part, lsn: int, time_s: int) -> None:
        """Step the rows of a push."""
        admitted = self._admitted(part.ids, lsn)
        here = np.array([i in self.rows for i in part.ids.tolist()], np.bool_) | admitted
        ids, gradients = part.ids[here], part.gradients[here]
        if not ids.shape[0]:
            return
        layout, names = self.layout, ids.tolist()
        rows = self.stacked([self.rows.get(i) or self._initial(i) for i in names]).copy()
        weights = self._weights(rows)
        hyper = self.config.optimizer.hyper(part.rate).astype(np.float32)
        if self.config.optimizer.kind == "sgd":
            weights = weights - hyper[0] * gradients
        else:
            start = layout.state_at - layout.weights_at
            state = rows[:, start : start + 4 * layout.state_size]
            sums = np.ascontiguousarray(state).view(np.float32) + gradients * gradients
            state[:] = sums.view(np.uint8)
            weights = weights - hyper[0] * gradients / (np.sqrt(sums) + hyper[2])
        if layout.dtype != dtype.FLOAT32:
            weights = rounded(weights, ids, lsn, layout.dtype)
        packed = np.ascontiguousarray(dtype.narrow(weights, layout.dtype)).view(np.uint8)
        rows[:, : packed.shape[1]] = packed
        if layout.push_time:
            self._word(rows, layout.push_time_at)[:] = time_s
        if layout.push_count:
            self._word(rows, layout.push_count_at)[:] += np.uint32(1)
        data, size = rows.tobytes(), layout.stored_bytes
        for number, one in enumerate(names):
            self.rows[one] = data[number * size : (number + 1) * size]

    def _word(self, rows: NDArray[np.uint8], at: int) -> NDArray[np.uint32]:
        """A metadata word of each row, to be written to; every stored part is a multiple of four bytes."""
        assert self.layout.stored_bytes % 4 == 0
        return rows.view("<u4")[:, (at - self.layout.weights_at) // 4]

    def victims(self, now_s: int) -> tuple[int, ...]:
        """Ids that the table's policies want gone."""
        if not self.rows:
            return ()
        ids = list(self.rows)
        rows = self.stacked([self.rows[i] for i in ids]).copy()
        gone: set[int] = set()
        if self._ttl is not None:
            times = self._word(rows, self.layout.push_time_at)
            gone |= {
                i for i, t in zip(ids, times.tolist(), strict=True) if t < max(0, now_s - self._ttl.ttl_s)
            }
        if self._norm is not None:
            norms = np.sqrt((self._weights(rows).astype(np.float64) ** 2).sum(axis=1))
            gone |= {i for i, n in zip(ids, norms.tolist(), strict=True) if n < self._norm.min_l2_norm}
        if self._frequent is not None:
            counts = self._word(rows, self.layout.push_count_at).tolist()
            order = sorted(zip(counts, mix64(np.array(ids, np.uint64)).tolist(), ids, strict=True))
            gone |= {i for _, _, i in order[: max(0, len(order) - self._frequent.max_rows)]}
        return tuple(sorted(gone))

    def evict(self, ids: Sequence[int]) -> None:
        """Remove rows."""
        for one in ids:
            self.rows.pop(one, None)


class ShardModel:
    """One shard: its tables, and the last push of each client."""

    def __init__(self, tables: Sequence[TableConfig]) -> None:
        self.tables = {table.name: TableModel(table) for table in tables}
        self.lsn = 0
        self.sessions: dict[int, int] = {}

    def copy(self) -> "ShardModel":
        """Another one with the same rows."""
        other = copy(self)
        other.tables = {name: table.copy() for name, table in self.tables.items()}
        other.sessions = dict(self.sessions)
        return other

    def apply(self, record: Record) -> None:
        """Take over what the shard applied."""
        assert record.lsn > self.lsn, f"LSN {record.lsn} came after {self.lsn}"
        self.lsn = record.lsn
        if isinstance(record, Evicted):
            self.tables[record.table].evict(record.ids)
            return
        expected = self.sessions.get(record.client, 0) + 1
        assert record.sequence == expected, (
            f"push {record.sequence} of client {record.client:#x} was applied; {expected} is the next one"
        )
        self.sessions[record.client] = record.sequence
        for part in record.parts:
            self.tables[part.table].push(part, record.lsn, record.time_s)
