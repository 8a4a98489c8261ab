# SPDX-License-Identifier: Apache-2.0
"""The store: RocksDB, and the only module that knows it.

One database per shard with a column family of rows per table, and `meta`. Rows are
written with the write-ahead log off (the push log covers them); `meta` is written with it on, and synced.
Block checksums (xxh3) are on and verified on every read.

Invariants: 1. every error of rocksdict leaves here as an error of rowhouse.error; 2. keys are
mix64(id), big-endian, so scans go by partition; 3. a value of another length than the table's is
CorruptionError, never served; 4. what is opened read-only is not written to, and may be where nobody can
write; 5. a family's record of its number of rows, where it has one, is right after any kill, because each
write of rows has it in itself, and a kill leaves the first writes of a family.
Thread safety: every method may be called from any thread; those that write to a family, by one at a time.
"""

import re
import resource
import shutil
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import rocksdict
from numpy.typing import NDArray
from rowhouse.error import BusyError, CorruptionError, DirectoryInUseError, RowhouseError, StoreError

from ps_server.disk.framing import check_framing
from ps_server.disk.open_file import store_files

META: Final = "meta"
KEY_BYTES: Final = 8
COUNT_KEY: Final = b"\xff" * KEY_BYTES + b"\0"
"""No row's, and behind the last row's. Its value is the number of rows
in the family (docs/row_format.md)."""

COUNT_BYTES: Final = 8
BLOCK_BYTES: Final = 4 * 1024
"""A cold row costs its block. Bytes per row on disk, and cold multi-gets per CPU second (5 M random ids, dim
16, 128 MiB cache, files in the page cache), fp32 / fp16 SGD with LSNs that vary: 4 KiB 74.5 / 44.1 and
72 k / 112 k; 8 KiB 73.2 / 43.0 and 51 k / 81 k; 16 KiB 72.7 / 42.5 and 50 k / 80 k. A hash index in each
block (DataBlockIndexType) costs 1.2 bytes per row and made multi-gets slower: 57 k / 92 k at 4 KiB."""

ZSTD_LEVEL: Final = 1
LOAD_ZSTD_LEVEL: Final = -1
"""Level 1 is as small as 3 (0.1 bytes per row more), 1.15 times as fast; -1 1.3 times as fast again, at 76.4
/ 43.4 bytes, not 72.5 / 42, where rows share an LSN (until a compaction). Not compressed: 89.2 / 56.9.

Cold fp16 rows read from files in memory, after training: 0.17 M rows/s at level 1, 0.29 at -1, 0.35 with lz4.
But at -1 blocks of fp32 rows with LSNs that vary are hardly a tenth smaller, and RocksDB keeps those as they
are: 89 bytes, not 74."""

DELETIONS_MAX: Final = 0.5
"""Share of deletions in a file from which on it is compacted."""

WRITE_ROWS: Final = 256
"""Rows of one write: rocksdict holds Python's lock for its 0.25 ms, and the interpreter takes 5 ms to ask for
it back; so it is given up after each."""

READ_THREADS: Final = 2
DISK_THREADS: Final = 16
"""Threads of a multi-get whose files are in memory, and of one that waits for the disk. Thousands of rows/s
in batches of 26,624 of 40 M fp16 rows: in memory 132 with one thread, 247 with two, 180 with 16; from the
disk 14 to 23 with two, 31 to 55 with 8, 38 to 61 with 16; this disk does 65,000 reads/s at most."""

DISK_SHARE: Final = 0.05
"""Share of a multi-get's keys that came from the disk from which on the next one uses DISK_THREADS."""

PARALLEL_KEYS_MIN: Final = 512
DISK_KEYS_MIN: Final = 64
"""A multi-get of fewer keys is faster in one piece than handed to two threads; from the disk, to 16."""

SCRATCH_PREFIX: Final = "rowhouse-read-"
_SCRATCH_PATH: Final = re.compile(rf"\S*/{SCRATCH_PREFIX}[^/\s]+(?=/)")
"""In front of a file's own path where RocksDB names a link to it (see `_linked`)."""

_OLD_FAMILY: Final = "tombstone."
"""Directories of earlier versions have a family of these for each table; nobody reads them."""

Keys = NDArray[np.uint64]
Values = NDArray[np.uint8]
Answer = TypeVar("Answer")


def _translated(error: Exception, what: str) -> RowhouseError:
    """The error of ours that a rocksdict error stands for."""
    text = _SCRATCH_PATH.sub("", str(error))
    if ("No such file" in text and ".sst" in text) or "Corruption" in text or "checksum" in text.lower():
        return CorruptionError(f"{what}: {text}")
    if "lock" in text.lower() and ("LOCK" in text or "No locks available" in text):
        who = "this process holds it already" if "current process" in text else "another process holds it"
        return DirectoryInUseError(f"{what}: {who} ({text})")
    if "Too many open files" in text:
        return BusyError(f"{what}: {text}")  # of a read, nothing is broken; a write poisons all the same
    if "No space left" in text:
        return StoreError(f"{what}: the disk is full ({text})")
    return StoreError(f"{what}: {text}")


def _guarded(what: str, action: Callable[[], Answer]) -> Answer:
    try:
        return action()
    except Exception as error:  # rocksdict raises no other
        raise _translated(error, what) from error


def key_bytes(keys: Keys) -> list[bytes]:
    """RocksDB keys of mixed ids; `keys` is (n,) uint64 images of mix64."""
    data = keys.astype(">u8").tobytes()
    return [data[i : i + 8] for i in range(0, len(data), 8)]


def _pairs(records: Values) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each of (n, KEY_BYTES + value_bytes) records, for a loop without bytecode per row."""
    return struct.Struct(f"{KEY_BYTES}s{records.shape[1] - KEY_BYTES}s").iter_unpack(records.data)


def _row_options(cache: rocksdict.Cache, memtable_bytes: int) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.set_write_buffer_size(memtable_bytes)
    options.set_max_write_buffer_number(3)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    # zstd squeezes the keys' overhead out of the last level, where nearly all rows live; -14: not used by it
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.zstd())
    options.set_bottommost_compression_options(-14, ZSTD_LEVEL, 0, 0, True)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_target_file_size_base(64 << 20)
    # Evicted rows keep their bytes until a compaction meets what deletes them: a file of which that is the
    # half is compacted at once. So what evictions leave is less than the rows beside it.
    options.add_compact_on_deletion_collector_factory(0, 0, DELETIONS_MAX)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(BLOCK_BYTES)
    table.set_format_version(5)
    table.set_checksum_type(rocksdict.ChecksumType.xxh3())
    table.set_bloom_filter(10, False)
    # in pieces: a whole filter (1.25 bytes per row) does not fit into a cache that is small beside the rows
    table.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_pin_top_level_index_and_filter(True)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options.set_block_based_table_factory(table)
    return options


def _row_read_options() -> rocksdict.ReadOptions:
    """Of reads of rows: blocks stay in the operating system's cache alone.

    The hot rows are in the arena, so a block that was read is hardly asked for again before it leaves a
    cache; to put it in, and another one out, costs as much as to read it (40 M rows in files that are in
    memory: 132 k rows/s with a cache of 64 MiB that is filled, 179 k with 1 GiB, 255 k with none).
    """
    options = rocksdict.ReadOptions()
    options.fill_cache(False)  # type: ignore[call-arg] # the stub is wrong
    return options


def _disk_reads() -> int:
    """Blocks of BLOCK_BYTES that this thread has read from the disk, about (the kernel counts 512 bytes)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock // (BLOCK_BYTES // 512)


def _database_options(memtable_bytes: int, paranoid: bool) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_paranoid_checks(paranoid)
    options.increase_parallelism(2)
    options.set_max_open_files(store_files())
    options.set_keep_log_file_num(4)
    options.set_db_write_buffer_size(2 * memtable_bytes)
    options.set_stats_dump_period_sec(0)
    return options


def _other_options(name: str) -> rocksdict.Options:
    """Of `meta`, and of tables that are not in use: their files stay as they are."""
    options = rocksdict.Options(raw_mode=True)
    options.set_disable_auto_compactions(name != META)
    return options


@contextmanager
def _linked(directory: Path) -> Iterator[Path]:
    """A temporary folder with links to the files of a store, for as long as the context lasts.

    rocksdict writes its own notes even into a store that it opens read-only: then it writes them here. The
    path below the folder is the store's, so that `_translated` finds it again.
    """
    whole = directory.absolute()
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX))
            folder = Path(scratch) / whole.relative_to(whole.anchor)
            folder.mkdir(parents=True)
            for path in whole.iterdir() if whole.is_dir() else ():
                if path.name == "rocksdict-config.json":
                    shutil.copyfile(path, folder / path.name)
                elif path.name not in ("LOCK", "LOG"):
                    (folder / path.name).symlink_to(path)
        except OSError as error:
            raise StoreError(
                f"opening {directory} through a temporary folder (TMPDIR names another place): "
                f"{error.strerror or error}"
            ) from error
        yield folder


class RowFamily:
    """Rows of one table in the store. Made by Store only.

    Parameters
    ----------
    database
        The open database of the shard.
    name
        Column family.
    value_bytes
        Length of every value.
    readers
        Threads for parallel parts of a multi-get.
    """

    def __init__(
        self, database: rocksdict.Rdict, name: str, value_bytes: int, readers: ThreadPoolExecutor
    ) -> None:
        self.name = name
        self.value_bytes = value_bytes
        self._database = database
        self._family = database.get_column_family(name)
        self._handle = database.get_column_family_handle(name)
        self._readers = readers
        self._write_options = rocksdict.WriteOptions()
        self._write_options.disable_wal = True  # type: ignore[method-assign, assignment] # the stub is wrong
        self._family.set_read_options(_row_read_options())
        self._threads = READ_THREADS
        self._recorded: int | None = None

    def get(self, keys: Keys) -> tuple[NDArray[np.bool_], Values]:
        """present (n,) bool of `keys` ((n,) uint64, images of mix64), and the values of those that are here,
        (present.sum(), value_bytes) uint8, in the order of the keys.

        Raises CorruptionError where a block fails its checksum or a value has a wrong length.
        """
        order = np.argsort(keys)  # neighbours share blocks: each is found and decompressed once
        wanted = key_bytes(keys[order])
        least = PARALLEL_KEYS_MIN if self._threads == READ_THREADS else DISK_KEYS_MIN
        parts = self._threads if len(wanted) >= least else 1
        size = -(-len(wanted) // parts) or 1
        chunks = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        read: Callable[[Any], Any] = self._family.__getitem__

        def fetch(chunk: list[bytes]) -> tuple[Any, int]:
            before = _disk_reads()
            values = _guarded(f"reading {self.name}", lambda: read(chunk))
            return values, _disk_reads() - before

        answers = list((self._readers.map if parts > 1 else map)(fetch, chunks))
        if len(wanted) >= DISK_KEYS_MIN:  # where the files are may change; what is read does not depend on it
            from_disk = sum(reads for _, reads in answers)
            self._threads = DISK_THREADS if from_disk > DISK_SHARE * len(wanted) else READ_THREADS
        found = [value for values, _ in answers for value in values]
        here = np.fromiter((value is not None for value in found), np.bool_, len(found))
        values = self._stack([value for value in found if value is not None], keys[order[here]])
        return here[np.argsort(order)], values[np.argsort(order[here])]

    def _stack(self, values: list[bytes], keys: Keys) -> Values:
        data = b"".join(values)
        if set(map(len, values)) - {self.value_bytes}:
            wrong = next(i for i, v in enumerate(values) if len(v) != self.value_bytes)
            raise self._wrong_length(int(keys[wrong]), len(values[wrong]))
        return np.frombuffer(data, np.uint8).reshape(len(values), self.value_bytes)

    @cached_property
    def count(self) -> int | None:
        """Rows that are here; None where a directory of an earlier version does not tell, until it is set to
        what is known from elsewhere."""
        try:
            recorded = self.recorded_count()
            self._recorded = 0 if recorded is None and self.is_empty() else recorded
        except CorruptionError:
            pass  # reads of the rows will tell
        return self._recorded

    def recorded_count(self) -> int | None:
        """The number of rows as it is written here, or None; CorruptionError where it is damaged."""
        data = _guarded(f"reading {self.name}", lambda: self._family.get(COUNT_KEY))
        if data is not None and len(data) != COUNT_BYTES:
            raise CorruptionError(
                f"{self.name}: the number of rows has {len(data)} bytes; it must have {COUNT_BYTES}"
            )
        return None if data is None else int.from_bytes(data, "little")

    def put(self, keys: Keys, values: Values, new: NDArray[np.bool_] | bool) -> None:
        """Write rows without the write-ahead log.

        Parameters
        ----------
        keys, values
            (n,) uint64 and (n, value_bytes) uint8.
        new
            (n,) bool, or one for all: which of them are not here yet.
        """
        order = np.argsort(keys)  # the memtable is sorted: ascending inserts are several times cheaper
        names = keys.astype(">u8").view(np.uint8).reshape(-1, KEY_BYTES)
        added = np.broadcast_to(new, keys.shape)
        for first in range(0, order.shape[0], WRITE_ROWS):
            chosen = order[first : first + WRITE_ROWS]
            rows = _pairs(np.hstack([names[chosen], values[chosen]]))
            batch = self._batch()
            deque(starmap(batch.put, rows), 0)
            self._write(batch, int(added[chosen].sum()))
            time.sleep(0)

    def delete(self, keys: Keys) -> None:
        """Delete rows, all of which are here, without the write-ahead log; `keys` is (n,) uint64."""
        for first in range(0, keys.shape[0], WRITE_ROWS):
            batch, names = self._batch(), key_bytes(keys[first : first + WRITE_ROWS])
            deque(map(batch.delete, names), 0)
            self._write(batch, -len(names))
            time.sleep(0)

    def _batch(self) -> rocksdict.WriteBatch:
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch.set_default_column_family(self._handle)
        return batch

    def _write(self, batch: rocksdict.WriteBatch, added: int) -> None:
        """Write a batch that makes the rows `added` more, with their number in it: RocksDB may flush between
        any two batches, and a kill takes what was not flushed."""
        count = self._count_after(added)
        if count is None:  # one that is not known must not stay behind as if it were right
            batch.delete(COUNT_KEY)
        else:
            batch.put(COUNT_KEY, count.to_bytes(COUNT_BYTES, "little"))
        _guarded(f"writing {self.name}", lambda: self._database.write(batch, self._write_options))
        self.count = self._recorded = count

    def _count_after(self, added: int) -> int | None:
        return None if self.count is None else self.count + added

    def scan(
        self, chunk_rows: int, start: int = 0, end: int | None = None, with_values: bool = True
    ) -> Iterator[tuple[Keys, Values]]:
        """Rows in key order as they were when the scan began, a chunk at a time.

        Parameters
        ----------
        chunk_rows
            Rows per chunk, at most.
        start, end
            First mixed key, and the first one past the range (None: to the end).
        with_values
            False: keys only; the values array then has no columns.

        Raises
        ------
        CorruptionError
            Damage, after every row before it was yielded.
        """
        options = _row_read_options()
        options.set_readahead_size(2 << 20)
        first = start.to_bytes(8, "big")  # rocksdict's iterate bounds do not know raw keys: from_key does
        source = self._family.items if with_values else self._family.keys
        what, width = f"scanning {self.name}", self.value_bytes if with_values else 0
        rows: Iterator[Any] = _guarded(what, lambda: iter(source(from_key=first, read_opt=options)))
        while chunk := _guarded(what, lambda: list(islice(rows, chunk_rows))):
            last = chunk[-1][0] if with_values else chunk[-1]
            first = last + b"\0"
            if last == COUNT_KEY:
                chunk.pop()
                if not chunk:
                    break
            good = len(chunk)
            if with_values and {len(value) for _, value in chunk} != {width}:
                good = next(i for i, (_, value) in enumerate(chunk) if len(value) != width)
            parts = chain.from_iterable(chunk[:good]) if with_values else chunk
            data = np.frombuffer(b"".join(parts), np.uint8)
            table = data.reshape(good, KEY_BYTES + width)
            keys = np.ascontiguousarray(table[:, :KEY_BYTES]).view(">u8").reshape(-1).astype(np.uint64)
            inside = good if end is None else int(np.searchsorted(keys, np.uint64(end)))
            if inside:
                yield keys[:inside], table[:inside, KEY_BYTES:]
            if inside < good:
                return
            if good < len(chunk):
                key = int.from_bytes(chunk[good][0], "big")
                if end is None or key < end:
                    raise self._wrong_length(key, len(chunk[good][1]))
                return
        self._check_end(first, what)

    def _check_end(self, after: bytes, what: str) -> None:
        """Raise what made an iterator end, if it was not the end: rocksdict's items and keys stop at a
        damaged block as if there were nothing more."""
        rows = self._family.iter()
        _guarded(what, lambda: rows.seek(after))
        _guarded(what, rows.status)

    def _wrong_length(self, key: int, length: int) -> CorruptionError:
        return CorruptionError(
            f"{self.name}: the value of key {key:#018x} has {length} bytes; it must have {self.value_bytes}"
        )

    def is_empty(self) -> bool:
        """Whether no row is here."""
        return next(self.scan(1, with_values=False), None) is None

    def flush(self) -> None:
        """Write the memtable to a synced SST file."""
        if self.count != self._recorded:
            self._write(self._batch(), 0)
        _guarded(f"flushing {self.name}", lambda: self._family.flush(True))

    def compact(self) -> None:
        """Compact the whole family (bulk maintenance and measurements)."""
        _guarded(f"compacting {self.name}", lambda: self._family.compact_range(None, None))

    def sorted_runs(self) -> int:
        """Sorted runs of files, each of which a read of a row may have to look into: every file of level 0,
        and each other level that has files. One after a compaction."""
        told = self._family.property_value("rocksdb.levelstats") or ""
        levels = [line.split() for line in told.splitlines()[2:]]
        return sum(int(files) if level == "0" else int(files) > 0 for level, files, *_ in levels)

    def disk_bytes(self) -> int:
        """Bytes of live SST files."""
        return int(self._family.property_int_value("rocksdb.live-sst-files-size") or 0)

    def memory_bytes(self) -> int:
        """Bytes of memtables."""
        return int(self._family.property_int_value("rocksdb.cur-size-all-mem-tables") or 0)

    def close(self) -> None:
        """Let go of the family: RocksDB gives up the directory when the last handle is gone."""
        _guarded(f"closing {self.name}", self._family.close)
        del self._family, self._handle, self._database

    def ingest(self, files: list[Path], added: int) -> None:
        """Move sorted SST files (see SortedFile) in; newest wins over rows that are here.

        `added` is how many rows more there will be. Their number goes in with them, in a file of its own.
        """
        count = self._count_after(added)
        counter = SortedFile(files[0].with_name("count.sst"))
        counter.append_count(count)
        counter.finish()
        options = rocksdict.IngestExternalFileOptions()
        options.set_move_files(True)
        names = [str(file) for file in (*files, counter.path)]
        _guarded(f"ingesting into {self.name}", lambda: self._family.ingest_external_file(names, options))
        self.count = self._recorded = count


class SortedFile:
    """Writer of one SST file for RowFamily.ingest; keys must ascend over all its appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        options = _row_options(rocksdict.Cache(1 << 20), 1 << 20)
        # the last level's, because RocksDB's SstFileWriter compresses for that one where it is set
        options.set_bottommost_compression_options(-14, LOAD_ZSTD_LEVEL, 0, 0, True)
        self._writer = rocksdict.SstFileWriter(options=options)
        _guarded(f"opening {path}", lambda: self._writer.open(str(path)))

    def append(self, records: NDArray[np.uint8]) -> None:
        """Add rows; `records` is (n, KEY_BYTES + value_bytes) uint8, each a big-endian key and its value."""

        def add() -> None:
            for first in range(0, records.shape[0], 4096):  # other threads run between these, each 2 ms
                deque(starmap(self._writer.__setitem__, _pairs(records[first : first + 4096])), 0)

        _guarded(f"writing {self.path}", add)

    def append_count(self, count: int | None) -> None:
        """Add the number of rows in the family, as the file's last; None: it is not known."""

        def add() -> None:
            if count is None:
                del self._writer[COUNT_KEY]
            else:
                self._writer[COUNT_KEY] = count.to_bytes(COUNT_BYTES, "little")

        _guarded(f"writing {self.path}", add)

    def finish(self) -> None:
        """Complete and sync the file."""
        _guarded(f"finishing {self.path}", self._writer.finish)


class Store:
    """The database of one shard.

    Parameters
    ----------
    directory
        Its folder; made when it is not there (not with read_only).
    value_bytes
        Value length of each family of rows, by name.
    cache_bytes, memtable_bytes
        Block cache, and size of one memtable; the database holds two of them in all.
    read_only
        Open without writing anything there; links in a temporary folder are opened (see `_linked`).
    paranoid
        Refuse to open when a file is missing or cut short; without it only its rows cannot be read.

    Raises
    ------
    DirectoryInUseError
        Another process holds the directory.
    StoreError, CorruptionError
        RocksDB cannot open it.
    """

    def __init__(
        self,
        directory: Path,
        value_bytes: dict[str, int],
        *,
        cache_bytes: int,
        memtable_bytes: int,
        read_only: bool = False,
        paranoid: bool = True,
    ) -> None:
        self._cache = rocksdict.Cache(cache_bytes)
        self.cache_bytes, self.memtable_bytes = cache_bytes, memtable_bytes
        options = _database_options(memtable_bytes, paranoid)
        access = rocksdict.AccessType.read_only(False) if read_only else rocksdict.AccessType.read_write()
        what = f"opening {directory}"
        exists = (directory / "CURRENT").exists()
        if exists:
            check_framing(directory)
        with ExitStack() as links:
            path = str(links.enter_context(_linked(directory)) if read_only else directory)
            listed = _guarded(what, lambda: rocksdict.Rdict.list_cf(path, options)) if exists else []
            families = {*listed} - {"default"}
            if not read_only:
                families |= {META, *value_bytes}
            row_options = _row_options(self._cache, memtable_bytes)
            opened = {name: row_options if name in value_bytes else _other_options(name) for name in families}
            self._database: rocksdict.Rdict = _guarded(
                what, lambda: rocksdict.Rdict(path, options, column_families=opened, access_type=access)
            )
            self._links = links.pop_all()
        self._readers = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="store-read")
        for name in families if not read_only else ():
            if name.startswith(_OLD_FAMILY) and name not in value_bytes:
                _guarded(what, partial(self._database.drop_column_family, name))
        self._meta = _guarded(what, lambda: self._database.get_column_family(META))
        kept = {name: width for name, width in value_bytes.items() if name in families}
        self.families = {n: RowFamily(self._database, n, w, self._readers) for n, w in kept.items()}
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True

    def get_meta(self, key: str) -> bytes | None:
        """A value of the meta family, or None."""
        return cast(bytes | None, _guarded(f"reading {META}", lambda: self._meta.get(key.encode())))

    def put_meta(self, entries: dict[str, bytes], *, synced: bool = True) -> None:
        """Write several values of the meta family in one atomic write, which outlives the process, and a
        power cut where it is synced."""
        handle = self._database.get_column_family_handle(META)
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in entries.items():
            batch.put(key.encode(), value, handle)
        options = self._synced if synced else rocksdict.WriteOptions()
        _guarded(f"writing {META}", lambda: self._database.write(batch, options))

    def memory_bytes(self) -> int:
        """Bytes of block cache and memtables in use."""
        return int(self._cache.get_usage()) + sum(f.memory_bytes() for f in self.families.values())

    def link_to(self, folder: Path) -> None:
        """Make `folder`, not there yet, a store with what this one holds now; SST files are linked."""
        what = f"copying the store to {folder}"
        _guarded(what, lambda: rocksdict.Checkpoint(self._database).create_checkpoint(str(folder)))

    def close(self) -> None:
        """Close the database; what was not flushed and is not in a write-ahead log is gone.

        Everything is let go of, also where RocksDB tells of damage only now; then that is raised.
        """
        self._readers.shutdown()
        failures: list[RowhouseError] = []
        ends = [family.close for family in self.families.values()]
        with self._links:
            for end in (*ends, self._meta.close, self._database.close):
                try:
                    _guarded("closing the store", end)
                except RowhouseError as error:
                    failures.append(error)
        if failures:
            raise failures[0]
