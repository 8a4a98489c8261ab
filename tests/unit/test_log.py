# SPDX-License-Identifier: Apache-2.0
"""The push log: torn ends are cut, everything else that is wrong is named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from rowhouse.error import CorruptionError, StoreError

from ps_server.disk.log import SPARE_NAME, PushLog
from ps_server.disk.segment import (
    KIND_EVICT,
    KIND_PUSH,
    RECORD_HEADER,
    SEGMENT_HEADER,
    TRAILER_BYTES,
    Owner,
    Record,
    check_segments,
    cut_lost_end,
    cut_torn_end,
    encode_header,
    encode_record,
    list_segments,
    read_records,
    segment_path,
)
from tests.conftest import ROOT

OWNER = Owner("0f" * 16, 3)


def _write(directory: Path, first: int, last: int, rotate_after: tuple[int, ...] = ()) -> list[Record]:
    log = PushLog(directory, first - 1, first, owner=OWNER, durable=True)
    records = [
        Record(lsn, KIND_PUSH, lsn * 10, bytes([lsn % 251]) * (lsn * 7)) for lsn in range(first, last + 1)
    ]
    for record in records:
        log.append(record)
        if record.lsn in rotate_after:
            log.rotate()
    log.close()
    return records


def test_the_header_is_that_of_the_format_page() -> None:
    """The worked example of docs/log_format.md."""
    found = encode_header(3, 2, Owner("000102030405060708090a0b0c0d0e0f", 1))
    text = (ROOT / "docs" / "log_format.md").read_text()
    example = text[text.index("52 57 48") :].split("An evict")[0]
    words = [word for word in example.split() if len(word) == 2 and set(word) <= set("0123456789abcdef")]
    assert found.hex(" ") == " ".join(words)


def test_a_segment_of_version_1_is_read_and_followed(tmp_path: Path) -> None:
    """As an earlier version wrote it: no cluster, no shard."""
    head = bytes.fromhex("52574853 4c4f4731 0100000000000000 0000000000000000")
    record = Record(1, KIND_PUSH, 10, b"old")
    path = tmp_path / f"{1:020d}.log"
    path.write_bytes(
        head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little") + b"".join(encode_record(record))
    )
    check_segments(tmp_path, OWNER, 1)
    assert cut_torn_end(tmp_path) == 0
    log = PushLog(tmp_path, 1, 2, owner=OWNER, durable=True)
    log.append(Record(2, KIND_PUSH, 0, b"new"))
    log.close()
    assert [r.payload for r in read_records(tmp_path, 0)] == [b"old", b"new"]


@pytest.mark.parametrize(
    ("owner", "complaint"),
    [
        (OWNER, None), (Owner("", 3), None), (Owner("0f" * 16, 4), "of shard 3 of cluster 0f0f"),
        (Owner("1f" * 16, 3), "this is shard 3 of cluster 1f1f"),
    ],
)  # fmt: skip
def test_whose_a_segment_is(tmp_path: Path, owner: Owner, complaint: str | None) -> None:
    _write(tmp_path, 1, 3, rotate_after=(2,))
    if complaint is None:
        check_segments(tmp_path, owner, 3)
        return
    with pytest.raises(CorruptionError, match=complaint):
        check_segments(tmp_path, owner, 3)


def test_reads_back_what_was_written_over_segments(tmp_path: Path) -> None:
    records = _write(tmp_path, 1, 9, rotate_after=(3, 6))
    assert [p.name for p in list_segments(tmp_path)] == [f"{n:020d}.log" for n in (1, 4, 7)]
    assert list(read_records(tmp_path, 0)) == records
    assert list(read_records(tmp_path, 5)) == records[5:]
    assert cut_torn_end(tmp_path) == 0


def test_goes_on_after_reopening_and_after_skipped_numbers(tmp_path: Path) -> None:
    records = _write(tmp_path, 1, 3)
    log = PushLog(tmp_path, 3, 1000, owner=OWNER, durable=True)
    log.append(Record(1000, KIND_EVICT, 0, b""))
    log.close()
    assert [r.lsn for r in read_records(tmp_path, 0)] == [1, 2, 3, 1000]
    assert list(read_records(tmp_path, 0))[:3] == records


def test_a_checkpoint_after_skipped_numbers_and_before_a_record_leaves_none(tmp_path: Path) -> None:
    """psctl stats tells the number of records; below 0 it could tell nothing."""
    log = PushLog(tmp_path, 3, 1000, owner=OWNER, durable=False)
    log.rotate()
    log.drop_before(999)
    assert log.records == 0
    log.close()


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_segment_whose_header_a_power_cut_left_as_zeros_is_a_torn_end(tmp_path: Path, earlier: int) -> None:
    records = _write(tmp_path, 1, earlier) if earlier else []
    segment_path(tmp_path, earlier + 1).write_bytes(bytes(SEGMENT_HEADER.size))
    assert cut_torn_end(tmp_path) == 0
    records += _write(tmp_path, earlier + 1, earlier + 2)
    assert list(read_records(tmp_path, 0)) == records


def test_a_rotation_that_failed_leaves_other_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a file descriptor: the closed segment's number is the next file's."""
    log = PushLog(tmp_path / "log", 0, 1, owner=OWNER, durable=True)
    number = log._file

    def refused(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("ps_server.disk.log.os.open", refused)
        with pytest.raises(StoreError, match="Too many open files"):
            log.rotate()
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    assert other == number
    os.write(other, b"x" * 1_000)
    log.close()
    assert os.fstat(other).st_size == 1_000
    os.close(other)


def test_drop_before_deletes_whole_segments_only(tmp_path: Path) -> None:
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=True)
    for lsn in (1, 2):
        log.append(Record(lsn, KIND_PUSH, 0, b"x"))
    log.rotate()
    log.append(Record(3, KIND_PUSH, 0, b"y"))
    log.drop_before(1)
    assert len(list_segments(tmp_path)) == 2
    log.drop_before(2)
    assert [p.stem.lstrip("0") for p in list_segments(tmp_path)] == ["3"]
    assert log.records == 1
    log.close()
    assert [r.lsn for r in read_records(tmp_path, 2)] == [3]


@pytest.mark.parametrize("cut", range(1, RECORD_HEADER.size + 14 + TRAILER_BYTES))
def test_a_torn_end_of_the_last_segment_is_cut(tmp_path: Path, cut: int) -> None:
    records = _write(tmp_path, 1, 2)
    path = list_segments(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read_records(tmp_path, 0)) == records[:1]
    assert 0 < cut_torn_end(tmp_path) <= RECORD_HEADER.size + 14 + TRAILER_BYTES - cut
    assert cut_torn_end(tmp_path) == 0


def test_zeros_after_the_last_record_are_a_torn_end(tmp_path: Path) -> None:
    records = _write(tmp_path, 1, 2)
    path = list_segments(tmp_path)[-1]
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert list(read_records(tmp_path, 0)) == records
    assert cut_torn_end(tmp_path) == 0
    assert path.stat().st_size < 5000
    cut_off = path.read_bytes()[:-11]
    path.write_bytes(cut_off + bytes(5000))
    assert list(read_records(tmp_path, 0)) == records[:1]
    assert cut_torn_end(tmp_path) > 0


@pytest.mark.parametrize("written", range(1, RECORD_HEADER.size + 14 + TRAILER_BYTES))
def test_a_write_that_broke_off_anywhere_in_allocated_space_is_a_torn_end(
    tmp_path: Path, written: int
) -> None:
    records = _write(tmp_path, 1, 2)
    path = list_segments(tmp_path)[-1]
    good = path.read_bytes()
    before = len(good) - (RECORD_HEADER.size + 14 + TRAILER_BYTES)
    path.write_bytes(good[: before + written] + bytes(5000))
    # once its payload is there the record is proven by its checksums, whatever its trailer lacks
    found = 2 if written >= RECORD_HEADER.size + 14 else 1
    assert list(read_records(tmp_path, 0)) == records[:found]
    cut_torn_end(tmp_path)
    log = PushLog(tmp_path, found, found + 1, owner=OWNER, durable=True)
    log.append(Record(found + 1, KIND_PUSH, 0, b"next"))
    log.close()
    assert [r.lsn for r in read_records(tmp_path, 0)] == list(range(1, found + 2))


def test_what_is_left_of_a_torn_segment_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1, 2)
    path = list_segments(tmp_path)[-1]
    synced: list[tuple[str, int]] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append((os.readlink(f"/proc/self/fd/{fd}"), path.stat().st_size))
    )
    whole = path.stat().st_size
    cut_torn_end(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    cut_torn_end(tmp_path)
    assert synced == [(str(path), whole), (str(path), whole - (RECORD_HEADER.size + 14 + TRAILER_BYTES))]


def test_every_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    _write(tmp_path, 1, 3)
    path = list_segments(tmp_path)[0]
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(CorruptionError, match=path.name):
            list(read_records(tmp_path, 0))


def test_a_cut_or_missing_earlier_segment_is_found(tmp_path: Path) -> None:
    _write(tmp_path, 1, 9, rotate_after=(3, 6))
    first, middle, _ = list_segments(tmp_path)
    good = middle.read_bytes()
    middle.write_bytes(good[:-3])
    with pytest.raises(CorruptionError, match=middle.name):
        list(read_records(tmp_path, 0))
    record = b"".join(encode_record(Record(6, KIND_PUSH, 60, bytes([6]) * 42)))
    middle.write_bytes(good[: -len(record)])
    with pytest.raises(CorruptionError, match="records after 5 are missing"):
        list(read_records(tmp_path, 0))
    middle.write_bytes(good)
    first.unlink()
    with pytest.raises(CorruptionError, match="records after 0 are missing"):
        list(read_records(tmp_path, 0))


def _run_over(directory: Path, rounds: int) -> PushLog:
    """An `os` log whose segments are dropped and used again, shorter each time."""
    log = PushLog(directory, 0, 1, owner=OWNER, durable=False)
    for round_ in range(rounds):
        log.append(Record(log.written_lsn + 1, KIND_PUSH, 0, bytes([65 + round_]) * (5000 - 1000 * round_)))
        kept = log.written_lsn
        log.rotate()
        log.append(Record(kept + 1, KIND_PUSH, 0, b"short"))
        log.drop_before(kept)
    return log


def test_a_dropped_segment_is_written_again_and_shows_nothing_of_what_it_held(tmp_path: Path) -> None:
    log = _run_over(tmp_path, 1)
    spare = tmp_path / SPARE_NAME
    inode, size = spare.stat().st_ino, spare.stat().st_size
    assert size > 5000
    assert not any(spare.read_bytes())
    log.rotate()
    path = list_segments(tmp_path)[-1]
    assert (path.stat().st_ino, path.stat().st_size, spare.exists()) == (inode, size, False)
    log.append(Record(3, KIND_PUSH, 0, b"new"))
    assert [r.payload for r in read_records(tmp_path, 1)] == [b"short", b"new"]  # as a kill leaves it now
    assert cut_torn_end(tmp_path) == 0
    log.append(Record(4, KIND_PUSH, 0, b"n" * 9000))  # past the end of what was there
    log.close()
    assert [len(r.payload) for r in read_records(tmp_path, 1)] == [5, 3, 9000]


def test_a_synced_log_never_uses_a_segment_again(tmp_path: Path) -> None:
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=True)
    log.append(Record(1, KIND_PUSH, 0, b"x" * 5000))
    log.rotate()
    log.drop_before(1)
    assert [p.name for p in tmp_path.iterdir()] == [f"{2:020d}.log"]
    log.close()


def test_a_spare_that_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / SPARE_NAME).write_bytes(b"half zero, half old records")
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=False)
    assert not (tmp_path / SPARE_NAME).exists()
    log.close()


@pytest.mark.parametrize("hit", range(1, 5))
def test_a_kill_at_any_step_of_a_spare_loses_no_record_and_shows_no_old_one(tmp_path: Path, hit: int) -> None:
    """Renamed, filled, with its header, renamed again: the next start reads what was there, and goes on."""
    live, killed, steps = tmp_path / "live", tmp_path / "killed", 0

    def failpoint(name: str) -> None:
        nonlocal steps
        steps += name == "mid spare"
        if name == "mid spare" and steps == hit:
            shutil.copytree(live, killed)

    log = PushLog(live, 0, 1, owner=OWNER, durable=False, failpoint=failpoint)
    log.append(Record(1, KIND_PUSH, 0, b"old" * 2000))
    log.rotate()
    log.append(Record(2, KIND_PUSH, 0, b"kept"))
    log.drop_before(1)
    log.rotate()
    log.close()
    assert steps == 4
    assert (killed / SPARE_NAME).exists() is (hit < 4)
    assert cut_torn_end(killed) == 0
    assert [r.payload for r in read_records(killed, 1)] == [b"kept"]
    after = PushLog(killed, 2, 3, owner=OWNER, durable=False)
    after.append(Record(3, KIND_PUSH, 0, b"next"))
    after.close()
    assert [r.payload for r in read_records(killed, 1)] == [b"kept", b"next"]
    assert not (killed / SPARE_NAME).exists()


@pytest.mark.parametrize("damage", ["zeros", "header", "missing", "stale", "first"])
def test_after_the_machine_went_down_the_log_ends_where_it_is_not_whole(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, 1, 9, rotate_after=(3, 6))
    one, two, three = list_segments(tmp_path)
    if damage == "zeros":  # the last pages of the second segment never reached the disk
        two.write_bytes(two.read_bytes()[:-60] + bytes(60))
    elif damage == "header":
        two.write_bytes(bytes(100))
    elif damage == "missing":
        two.unlink()
    elif damage == "stale":  # an older cycle's content under the new name
        two.write_bytes(one.read_bytes())
    else:
        one.write_bytes(b"")
    with pytest.raises(CorruptionError):
        list(read_records(tmp_path, 0))
    cut_lost_end(tmp_path, 0)
    last = {"zeros": 5, "first": 0}.get(damage, 3)
    assert [r.lsn for r in read_records(tmp_path, 0)] == list(range(1, last + 1))
    assert f"goes up to LSN {last} " in caplog.text
    assert not three.exists()
    log = PushLog(tmp_path, last, 100, owner=OWNER, durable=False)
    log.append(Record(100, KIND_PUSH, 0, b""))
    log.close()
    assert [r.lsn for r in read_records(tmp_path, 0)] == [*range(1, last + 1), 100]


def test_a_whole_log_loses_nothing_after_the_machine_went_down(tmp_path: Path) -> None:
    records = _write(tmp_path, 1, 9, rotate_after=(3, 6))
    cut_lost_end(tmp_path, 0)
    assert list(read_records(tmp_path, 0)) == records
    cut_lost_end(tmp_path / "none", 0)


def test_a_rotation_before_the_first_record_keeps_the_skipped_numbers(tmp_path: Path) -> None:
    log = PushLog(tmp_path, 1, 1000, owner=OWNER, durable=False)
    log.rotate()
    log.drop_before(999)
    log.append(Record(1000, KIND_PUSH, 0, b"x"))
    log.close()
    assert [p.name for p in list_segments(tmp_path)] == [f"{1000:020d}.log"]
    assert [r.lsn for r in read_records(tmp_path, 1)] == [1000]


def test_a_spare_that_cannot_be_filled_is_an_error_and_the_log_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=False)
    log.append(Record(1, KIND_PUSH, 0, b"x" * 5000))
    log.rotate()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ps_server.disk.log.os.pwrite", full)
    with pytest.raises(StoreError, match=r"push log .*spare: No space left"):
        log.drop_before(1)
    monkeypatch.undo()
    log.append(Record(2, KIND_PUSH, 0, b"y"))
    log.rotate()  # makes a new file: half a spare is never used
    log.append(Record(3, KIND_PUSH, 0, b"z"))
    log.close()
    assert [r.payload for r in read_records(tmp_path, 1)] == [b"y", b"z"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_takes_less_than_it_is_given_is_gone_on_with(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header, a record, the zeros of a spare: each whole, 7 bytes at a time."""
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:7]))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, bytes(data)[:7], offset))
    monkeypatch.setattr(
        os, "pwritev", lambda handle, parts, offset: pwrite(handle, b"".join(parts)[:7], offset)
    )
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=durable)
    records = [Record(lsn, KIND_PUSH, lsn, b"payload" * lsn) for lsn in range(1, 5)]
    for record in records:
        log.append(record)
    log.rotate()
    log.append(Record(5, KIND_PUSH, 5, b"last"))
    assert [record.payload for record in read_records(tmp_path, 0)] == [
        *(record.payload for record in records), b"last",
    ]  # fmt: skip
    log.drop_before(4)
    if not durable:
        assert not any((tmp_path / SPARE_NAME).read_bytes())
    log.close()


class Synced:
    """Names of the files that were synced, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for call in ("fsync", "fdatasync"):
            monkeypatch.setattr(f"os.{call}", self._noting(getattr(os, call)))

    def _noting(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            self.names.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
            real(handle)

        return sync


def test_what_was_cut_after_the_machine_went_down_stays_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second power cut would bring the end back, under a next segment that does not know of it."""
    _write(tmp_path, 1, 9, rotate_after=(5,))
    first = list_segments(tmp_path)[0]
    data = first.read_bytes()
    first.write_bytes(data[:-20] + bytes(20))
    synced = Synced(monkeypatch)
    cut_lost_end(tmp_path, 0)
    assert [r.lsn for r in read_records(tmp_path, 0)] == [1, 2, 3, 4]
    assert synced.names == [first.name, tmp_path.name]


def test_the_whole_log_can_be_synced_under_os(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = PushLog(tmp_path, 0, 1, owner=OWNER, durable=False)
    log.append(Record(1, KIND_PUSH, 0, b"one"))
    log.rotate()
    log.append(Record(2, KIND_PUSH, 0, b"two"))
    synced = Synced(monkeypatch)
    log.sync_whole()
    assert synced.names == [*(path.name for path in list_segments(tmp_path)), tmp_path.name]
    log.close()
