# SPDX-License-Identifier: Apache-2.0
"""Peer: RocksDB through rocksdict, as a store of rows would use it from Python.

One multi_get of ascending keys, values joined once. Options of the in-memory store are those that were
fastest here: no compression, hash index inside blocks, Bloom filters, and a cache that holds everything.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DataBlockIndexType,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    SstFileWriter,
)  # fmt: skip

from benchmarks.batch import DIM

NAME: Final = f"rocksdict {version('rocksdict')}"
FILE_ROWS: Final = 1_000_000


def key_list(keys: NDArray[np.uint64]) -> list[bytes]:
    """Big-endian keys."""
    data = keys.astype(">u8").tobytes()
    return [data[i : i + 8] for i in range(0, len(data), 8)]


def memory_options(cache_bytes: int) -> Options:
    """Options of a store that is read from its cache only."""
    options = Options(raw_mode=True)
    options.increase_parallelism(2)
    options.set_compression_type(DBCompressionType.none())
    table = BlockBasedOptions()
    table.set_block_cache(Cache(cache_bytes))
    table.set_format_version(5)
    table.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    table.set_data_block_hash_ratio(0.75)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options


def write_sorted(path: Path, options: Options, keys: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
    """One SST file by rocksdict's SstFileWriter; `keys` ascend."""
    writer = SstFileWriter(options=options)
    writer.open(str(path))
    data, width, put = rows.tobytes(), rows.shape[1] * 4, writer.__setitem__
    for i, key in enumerate(key_list(keys)):
        put(key, data[i * width : (i + 1) * width])
    writer.finish()


class RocksTable:
    """Rows in a RocksDB of their own, every block cached.

    Parameters
    ----------
    folder
        Where it is made.
    keys, rows
        (n,) uint64 distinct and (n, DIM) float32.
    """

    name: Final = f"{NAME} multi_get, everything cached, keys ascending, no compression"

    def __init__(self, folder: Path, keys: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        options = memory_options(4 * rows.nbytes + (64 << 20))
        self._database: Any = Rdict(str(folder), options)  # its stub knows no list of bytes
        order = np.argsort(keys)
        files = []
        for first in range(0, keys.shape[0], FILE_ROWS):
            part = order[first : first + FILE_ROWS]
            files.append(folder.parent / f"{folder.name}-{first}.sst")
            write_sorted(files[-1], options, keys[part], rows[part])
        moving = IngestExternalFileOptions()
        moving.set_move_files(True)
        self._database.ingest_external_file([str(file) for file in files], moving)
        for first in range(0, keys.shape[0], FILE_ROWS):  # into the cache
            self.get(keys[order[first : first + FILE_ROWS]])

    def get(self, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Rows of `keys`, (n, DIM) float32."""
        return np.frombuffer(b"".join(self._database[key_list(keys)]), np.float32).reshape(-1, DIM)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class StoredRows:
    """A column family of one of our stores, read by rocksdict alone: same files, options and cache size.

    Parameters
    ----------
    folder
        The store's, of a shard that is closed or open (it is read as it is on disk).
    family
        Column family of rows.
    cache_bytes
        Block cache.
    direct
        Read past the operating system's cache.
    """

    name: Final = f"{NAME} multi_get on the same files, same cache, keys ascending, one thread"

    def __init__(self, folder: Path, family: str, cache_bytes: int, *, direct: bool = False) -> None:
        options, families = Options.load_latest(str(folder), cache=Cache(cache_bytes))
        options.set_use_direct_reads(direct)
        self._folder = folder
        self._database: Any = Rdict(
            str(folder), options, column_families=families, access_type=AccessType.read_only(False)
        )
        self._family: Any = self._database.get_column_family(family)

    def values(self, keys: NDArray[np.uint64]) -> list[bytes | None]:
        """Values of `keys` as they are stored; None where there is none."""
        found: list[bytes | None] = self._family[key_list(keys)]
        return found

    def get(self, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Weights of `keys`, which must all be there, of an fp32 table; (n, DIM) float32."""
        values = self._family[key_list(keys)]
        width = len(values[0])
        stored = np.frombuffer(b"".join(values), np.uint8).reshape(-1, width)
        return np.ascontiguousarray(stored[:, : 4 * DIM]).view(np.float32)

    def files(self, share: float) -> list[Path]:
        """Files that hold the first `share` of all keys, and those of `meta`, which are small."""
        end = min(int(share * (1 << 64)), (1 << 64) - 1).to_bytes(8, "big")
        found = self._database.live_files()
        return [self._folder / file["name"].lstrip("/") for file in found if file["start_key"] <= end]

    def levels(self) -> dict[str, int]:
        """Files of each level that has any."""
        lines = self._family.property_value("rocksdb.levelstats").splitlines()[2:]
        return {level: int(files) for level, files, _ in (line.split() for line in lines) if files != "0"}

    def index_filter_bytes(self) -> int:
        """Bytes of index and filter blocks in the files."""
        text = self._family.property_value("rocksdb.aggregated-table-properties")
        facts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
        index = next(value for key, value in facts.items() if key.startswith("index block size"))
        return int(index) + int(facts["filter block size"])

    def close(self) -> None:
        """Close the database."""
        self._family.close()
        del self._family
        self._database.close()
