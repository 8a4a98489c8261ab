# SPDX-License-Identifier: Apache-2.0
"""Admission: which pushed ids may become rows.

Most ids of a recommender are seen once or twice and never learn anything; a row for each is memory lost.
A table may ask for a number of pushes first (`min_count`) or roll a die at each push (`probability`).
Ids that are not admitted pull the table's shared default row, and their gradients are dropped; an id that
has a row is never asked again (the table sees to that).

Invariants: 1. every pushed id is counted, whether its row exists or not, so the answers of a replay equal
the first ones; 2. under `min_count` without halving, an id is admitted at its min_count-th push at the
latest (the sketch may overestimate, and admit some earlier); 3. `load_state(state_bytes())` changes
nothing.
Thread safety: AdmissionFilter has none; a table's pushes come one at a time.
"""

import struct
from typing import Annotated, Any, Final, Literal

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rowhouse.error import ConfigError, CorruptionError
from rowhouse.mix import mix64_scalar

from ps_server.kernel.sketch import LINE_BYTES, sketch_add, sketch_halve

STATE_MAGIC: Final = b"RWHSADM1"
_HEADER: Final = struct.Struct("<8sBBHIQQQ")
"""docs/admission_format.md: magic, width_bits, counter bytes, 0, 0, seed, counted, checksum."""

SKETCH_BITS_MIN: Final = 10
"""1,024 counters: 16 cache lines, the fewest that are a sketch at all."""

SKETCH_BITS_MAX: Final = 32
"""4 Gi counters: one sketch for some hundred million live ids; a shard with more has too few peers."""


class MinCount(BaseModel):
    """Admit an id once it was in `min_count` pushes.

    Attributes
    ----------
    min_count
        Pushes, the admitting one included; how often an id stands in one push does not matter.
    halve_after_ids
        Halve all counts each time that this many ids were counted, so that admission means "frequent
        lately" and the sketch does not fill up; None never does. With it, ids rarer than min_count
        within that window may never be admitted.
    width_bits
        The sketch has 2^width_bits counters, of 1 byte up to min_count 255, else of 2. With 16
        counters for each distinct id counted so far, 1 % of new ids are taken for ones seen before;
        with 8, 4 % (tests/unit/test_admission.py); with 4, 20 %. A stream that never ends needs
        halve_after_ids as well. The default is 16 MiB, good for a million ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["min_count"] = "min_count"
    min_count: Annotated[int, Field(strict=True, ge=2, le=65_535)]
    halve_after_ids: Annotated[int, Field(strict=True, ge=1, lt=1 << 63)] | None = None
    width_bits: Annotated[int, Field(strict=True, ge=SKETCH_BITS_MIN, le=SKETCH_BITS_MAX)] = 24

    @property
    def sketch_bytes(self) -> int:
        """Bytes of the counters; they count against the shard's memory budget."""
        return (2 if self.min_count > 255 else 1) << self.width_bits


class Probability(BaseModel):
    """Admit an id with `probability` at each push, decided by (seed, id, LSN); nothing is remembered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["probability"] = "probability"
    probability: Annotated[float, Field(strict=True, gt=0, lt=1)]

    @property
    def sketch_bytes(self) -> int:
        """Nothing is counted."""
        return 0


AdmissionConfig = Annotated[MinCount | Probability, Field(discriminator="kind")]
"""Any admission policy; `kind` tells which. A table without one admits every id."""


@njit(nogil=True, cache=True, error_model="numpy")
def _roll(seed: np.uint64, ids: NDArray[np.uint64], lsn: np.uint64, probability: float) -> NDArray[np.bool_]:
    """Whether each id is admitted: a uniform deviate of (seed, id, LSN) below `probability`."""
    # Mixed twice, so that neither the initializer's nor the rounding's bits come again.
    key = mix64_scalar(mix64_scalar(mix64_scalar(seed)) ^ lsn)
    out = np.empty(ids.shape[0], np.bool_)
    for i in range(ids.shape[0]):
        bits = mix64_scalar(ids[i] ^ key)
        out[i] = np.float64(bits >> np.uint64(11)) * 2.0**-53 < probability
    return out


def _aligned_zeros(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`count` zeros that begin on a cache line."""
    memory = np.zeros(count * dtype.itemsize + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + count * dtype.itemsize].view(dtype)


class AdmissionFilter:
    """The admission policy of one table in one shard, with its counters.

    Parameters
    ----------
    config
        The table's policy.
    seed
        The table's seed, 0 to 2^64 - 1.
    """

    def __init__(self, config: MinCount | Probability, seed: int) -> None:
        self._config = config
        self._seed = np.uint64(seed)
        self._counted = 0  # ids since the last halving
        wide = isinstance(config, MinCount) and config.min_count > 255
        counter = np.dtype("<u2" if wide else "u1")
        self._counters = _aligned_zeros(config.sketch_bytes // counter.itemsize, counter)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the counters take."""
        return self._counters.nbytes

    def admit(self, ids: NDArray[np.uint64], lsn: int) -> NDArray[np.bool_]:
        """Count a push's ids, and say which may become rows.

        Parameters
        ----------
        ids
            (n,) uint64: all distinct ids of the push, those with rows too.
        lsn
            The push's log sequence number.

        Returns
        -------
        NDArray
            (n,) bool.
        """
        config = self._config
        if isinstance(config, Probability):
            return _roll(self._seed, ids, np.uint64(lsn), config.probability)
        limit = int(np.iinfo(self._counters.dtype).max)
        admitted: NDArray[np.bool_] = sketch_add(self._counters, self._seed, ids, limit) >= config.min_count
        self._counted += ids.shape[0]
        if config.halve_after_ids is not None and self._counted >= config.halve_after_ids:
            sketch_halve(self._counters)
            self._counted = 0
        return admitted

    def _header(self, payload: memoryview) -> bytes:
        """The header in front of `payload`, checksum included."""
        bits = self._counters.shape[0].bit_length() - 1
        fields = (STATE_MAGIC, bits, self._counters.itemsize, 0, 0, int(self._seed), self._counted)
        plain = _HEADER.pack(*fields, 0)[:-8]
        digest = xxhash.xxh3_64(plain)
        digest.update(payload)
        return _HEADER.pack(*fields, digest.intdigest())

    def state_bytes(self) -> bytes:
        """The counters for a checkpoint, by docs/admission_format.md; empty for `probability`."""
        if isinstance(self._config, Probability):
            return b""
        payload = self._counters.view(np.uint8).data
        return b"".join((self._header(payload), payload))

    def load_state(self, state: bytes) -> None:
        """Take up the counters of a checkpoint.

        Parameters
        ----------
        state
            What `state_bytes` gave. Empty (the table's policy was `probability` then) counts from zero;
            `probability` itself ignores it.

        Raises
        ------
        ConfigError
            The sketch has another width, counter size or seed than the config now says.
        CorruptionError
            The state is cut off, damaged, or of another format.
        """
        if isinstance(self._config, Probability):
            return
        if not state:
            self._counters[:] = 0
            self._counted = 0
            return
        if len(state) < _HEADER.size:
            raise CorruptionError(f"admission state has {len(state)} bytes; its header alone {_HEADER.size}")
        magic, bits, item, _, _, seed, counted, checksum = _HEADER.unpack_from(state)
        payload = memoryview(state)[_HEADER.size :]
        digest = xxhash.xxh3_64(state[: _HEADER.size - 8])
        digest.update(payload)
        if magic != STATE_MAGIC or digest.intdigest() != checksum:
            raise CorruptionError(
                f"admission state: its magic number or its checksum is wrong (it is {magic!r}, and must be "
                f"{STATE_MAGIC!r})"
            )
        own = (self._counters.shape[0].bit_length() - 1, self._counters.itemsize, int(self._seed))
        if (bits, item, seed) != own:
            raise ConfigError(
                f"admission state was written with width_bits {bits}, {item}-byte counters and seed {seed}; "
                f"the config says {own[0]}, {own[1]} (2 above min_count 255) and {own[2]}"
            )
        self._counters.view(np.uint8)[:] = np.frombuffer(payload, np.uint8)
        self._counted = counted
