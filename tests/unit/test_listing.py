# SPDX-License-Identifier: Apache-2.0
"""Pages of a running shard's rows: every row once, whole, and no older than the listing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rowhouse.error import PreconditionError, UnknownTableError
from rowhouse.mix import mix64
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.bulk.column import to_record_batch
from ps_server.bulk.export import export_schema, export_table
from ps_server.disk.row import get_lsn
from ps_server.shard.listing import from_message
from ps_server.shard.shard import Shard
from tests.stopped import fill, make_config, open_shard, pull, push
from tests.unit.test_bulk_round_trip import POLICIES, make_table, trained

IDS = np.arange(3000, dtype=np.uint64)


def pages(shard: Shard, table: str, rows_max: int = 0) -> list[pb.ListRowsResponse]:
    found = [shard.list_rows(pb.ListRowsRequest(table=table, rows_max=rows_max))]
    while found[-1].next_key:
        request = pb.ListRowsRequest(table=table, rows_max=rows_max, first_key=found[-1].next_key)
        found.append(shard.list_rows(request))
    return found


@pytest.mark.parametrize("rows_max", [0, 1, 700, 10**6])
def test_pages_hold_every_row_once(tmp_path: Path, rows_max: int) -> None:
    shard = open_shard(make_config(tmp_path))
    rows = 40 if rows_max == 1 else 3000
    fill(shard, rows)
    for table in ("user", "item"):
        listed = pages(shard, table, rows_max)
        ids = np.concatenate([np.frombuffer(page.rows.ids, "<u8") for page in listed])
        assert np.array_equal(ids, IDS[:rows][np.argsort(mix64(IDS[:rows]))])
        assert {(page.lsn_before, page.lsn_after) for page in listed} == {(4, 4)}
    shard.close()


def test_a_page_has_all_that_an_export_has(tmp_path: Path) -> None:
    """State and metadata too, bit for bit."""
    driver = trained(tmp_path, make_table("adam", tuple(POLICIES)))
    driver.shard = shard = driver._open()
    schema = export_schema(shard, "t")
    (page,) = pages(shard, "t")
    layout = driver.config.tables[0].layout
    ids, values = from_message(page.rows, layout)
    batch = to_record_batch(mix64(ids), values, layout, schema)
    assert pa.Table.from_batches([batch]).equals(pa.Table.from_batches(export_table(shard, "t"), schema))
    shard.close()


def test_what_changes_after_the_beginning_is_taken_from_memory(tmp_path: Path) -> None:
    """A row of a later page is as of that page, with its LSN; one that is evicted meanwhile is gone."""
    shard = open_shard(make_config(tmp_path))
    fill(shard, 3000)
    first = shard.list_rows(pb.ListRowsRequest(table="user", rows_max=1000))
    push(shard, 5, "user", IDS)
    later = shard.list_rows(pb.ListRowsRequest(table="user", first_key=first.next_key, rows_max=1000))
    layout = shard.config.tables[0].layout
    ids, values = from_message(later.rows, layout)
    weights = values[:, :16].copy().view(np.float32)
    assert np.array_equal(weights, pull(shard, "user", ids))
    assert set(get_lsn(values).tolist()) == {5} and (later.lsn_before, later.lsn_after) == (5, 5)
    shard.close()


def test_a_listing_does_not_go_on_over_a_restart(tmp_path: Path) -> None:
    """What was written to the store when it began may be in the log only after a kill."""
    config = make_config(tmp_path)
    shard = open_shard(config)
    fill(shard, 3000)
    first = shard.list_rows(pb.ListRowsRequest(table="user", rows_max=1000))
    shard.close()
    shard = open_shard(config)
    later = pb.ListRowsRequest(table="user", first_key=first.next_key)
    with pytest.raises(PreconditionError, match="was restarted since this listing of table 'user' began"):
        shard.list_rows(later)
    assert len(pages(shard, "user")) == 1 and shard.list_rows(later).next_key == 0
    shard.close()


def test_the_first_page_is_a_long_call(tmp_path: Path) -> None:
    """Its ticket is begun once, and asked about until it has ended."""
    shard = open_shard(make_config(tmp_path))
    fill(shard, 10)
    request = pb.ListRowsRequest(table="user", ticket=7)
    assert shard.call("ListRows", request) is shard.call("ListRows", request)
    shard.close()


def test_an_empty_table_and_an_unknown_one(tmp_path: Path) -> None:
    shard = open_shard(make_config(tmp_path))
    (page,) = pages(shard, "item")
    assert page.rows.ids == b"" and from_message(page.rows, shard.config.tables[1].layout)[0].shape == (0,)
    with pytest.raises(UnknownTableError, match="did you mean 'item'"):
        pages(shard, "itm")
    shard.close()
