from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]

class FreezeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FREEZE_MODE_UNSPECIFIED: _ClassVar[FreezeMode]
    FREEZE_MODE_OFF: _ClassVar[FreezeMode]
    FREEZE_MODE_REFUSE: _ClassVar[FreezeMode]
    FREEZE_MODE_IGNORE: _ClassVar[FreezeMode]

class Pace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PACE_UNSPECIFIED: _ClassVar[Pace]
    PACE_BSP: _ClassVar[Pace]
    PACE_SSP: _ClassVar[Pace]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_BFLOAT16: Dtype
FREEZE_MODE_UNSPECIFIED: FreezeMode
FREEZE_MODE_OFF: FreezeMode
FREEZE_MODE_REFUSE: FreezeMode
FREEZE_MODE_IGNORE: FreezeMode
PACE_UNSPECIFIED: Pace
PACE_BSP: Pace
PACE_SSP: Pace

class TableInfo(_message.Message):
    __slots__ = ("name", "dim", "dtype", "config_json", "push_rows_max")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    PUSH_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    dtype: Dtype
    config_json: str
    push_rows_max: int
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., config_json: _Optional[str] = ..., push_rows_max: _Optional[int] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("map_version", "shard", "endpoints", "partition_shards", "tables", "data_endpoint", "data_token", "message_bytes_max", "cluster_id")
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_SHARDS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    DATA_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DATA_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    map_version: int
    shard: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    partition_shards: bytes
    tables: _containers.RepeatedCompositeFieldContainer[TableInfo]
    data_endpoint: str
    data_token: int
    message_bytes_max: int
    cluster_id: str
    def __init__(self, map_version: _Optional[int] = ..., shard: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ..., partition_shards: _Optional[bytes] = ..., tables: _Optional[_Iterable[_Union[TableInfo, _Mapping]]] = ..., data_endpoint: _Optional[str] = ..., data_token: _Optional[int] = ..., message_bytes_max: _Optional[int] = ..., cluster_id: _Optional[str] = ...) -> None: ...

class TableIds(_message.Message):
    __slots__ = ("table", "dim", "count", "ids")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    table: str
    dim: int
    count: int
    ids: bytes
    def __init__(self, table: _Optional[str] = ..., dim: _Optional[int] = ..., count: _Optional[int] = ..., ids: _Optional[bytes] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("map_version", "dtype", "read_only", "tables", "changed_since")
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    CHANGED_SINCE_FIELD_NUMBER: _ClassVar[int]
    map_version: int
    dtype: Dtype
    read_only: bool
    tables: _containers.RepeatedCompositeFieldContainer[TableIds]
    changed_since: int
    def __init__(self, map_version: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., read_only: bool = ..., tables: _Optional[_Iterable[_Union[TableIds, _Mapping]]] = ..., changed_since: _Optional[int] = ...) -> None: ...

class TableRows(_message.Message):
    __slots__ = ("table", "dim", "count", "dtype", "rows", "changed")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    table: str
    dim: int
    count: int
    dtype: Dtype
    rows: bytes
    changed: bytes
    def __init__(self, table: _Optional[str] = ..., dim: _Optional[int] = ..., count: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., rows: _Optional[bytes] = ..., changed: _Optional[bytes] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("lsn", "tables")
    LSN_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    tables: _containers.RepeatedCompositeFieldContainer[TableRows]
    def __init__(self, lsn: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableRows, _Mapping]]] = ...) -> None: ...

class TableGradients(_message.Message):
    __slots__ = ("table", "dim", "count", "dtype", "ids", "gradients", "learning_rate", "shows", "clicks", "weights", "state", "remove")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SHOWS_FIELD_NUMBER: _ClassVar[int]
    CLICKS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    table: str
    dim: int
    count: int
    dtype: Dtype
    ids: bytes
    gradients: bytes
    learning_rate: float
    shows: bytes
    clicks: bytes
    weights: bytes
    state: bytes
    remove: bool
    def __init__(self, table: _Optional[str] = ..., dim: _Optional[int] = ..., count: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., ids: _Optional[bytes] = ..., gradients: _Optional[bytes] = ..., learning_rate: _Optional[float] = ..., shows: _Optional[bytes] = ..., clicks: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., state: _Optional[bytes] = ..., remove: bool = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("map_version", "client_id", "sequence", "tables")
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    map_version: int
    client_id: int
    sequence: int
    tables: _containers.RepeatedCompositeFieldContainer[TableGradients]
    def __init__(self, map_version: _Optional[int] = ..., client_id: _Optional[int] = ..., sequence: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableGradients, _Mapping]]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("lsn", "duplicate")
    LSN_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    duplicate: bool
    def __init__(self, lsn: _Optional[int] = ..., duplicate: bool = ...) -> None: ...

class CreateCheckpointRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    def __init__(self, ticket: _Optional[int] = ...) -> None: ...

class CreateCheckpointResponse(_message.Message):
    __slots__ = ("lsn", "rows_written")
    LSN_FIELD_NUMBER: _ClassVar[int]
    ROWS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    rows_written: int
    def __init__(self, lsn: _Optional[int] = ..., rows_written: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TableStats(_message.Message):
    __slots__ = ("name", "rows", "rows_exact", "hot_rows", "dirty_rows", "record_bytes", "index_bytes", "pulled_ids", "hot_hits", "pushed_ids", "spilled_rows", "evicted_rows", "refused_ids", "disk_bytes", "frozen", "freeze")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_EXACT_FIELD_NUMBER: _ClassVar[int]
    HOT_ROWS_FIELD_NUMBER: _ClassVar[int]
    DIRTY_ROWS_FIELD_NUMBER: _ClassVar[int]
    RECORD_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULLED_IDS_FIELD_NUMBER: _ClassVar[int]
    HOT_HITS_FIELD_NUMBER: _ClassVar[int]
    PUSHED_IDS_FIELD_NUMBER: _ClassVar[int]
    SPILLED_ROWS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_IDS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    rows_exact: bool
    hot_rows: int
    dirty_rows: int
    record_bytes: int
    index_bytes: int
    pulled_ids: int
    hot_hits: int
    pushed_ids: int
    spilled_rows: int
    evicted_rows: int
    refused_ids: int
    disk_bytes: int
    frozen: bool
    freeze: FreezeMode
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., rows_exact: bool = ..., hot_rows: _Optional[int] = ..., dirty_rows: _Optional[int] = ..., record_bytes: _Optional[int] = ..., index_bytes: _Optional[int] = ..., pulled_ids: _Optional[int] = ..., hot_hits: _Optional[int] = ..., pushed_ids: _Optional[int] = ..., spilled_rows: _Optional[int] = ..., evicted_rows: _Optional[int] = ..., refused_ids: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., frozen: bool = ..., freeze: _Optional[_Union[FreezeMode, str]] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("shard", "applied_lsn", "durable_lsn", "checkpoint_lsn", "log_bytes", "log_records", "memory_budget_bytes", "memory_used_bytes", "poison", "tables")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    APPLIED_LSN_FIELD_NUMBER: _ClassVar[int]
    DURABLE_LSN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_LSN_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    POISON_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    applied_lsn: int
    durable_lsn: int
    checkpoint_lsn: int
    log_bytes: int
    log_records: int
    memory_budget_bytes: int
    memory_used_bytes: int
    poison: str
    tables: _containers.RepeatedCompositeFieldContainer[TableStats]
    def __init__(self, shard: _Optional[int] = ..., applied_lsn: _Optional[int] = ..., durable_lsn: _Optional[int] = ..., checkpoint_lsn: _Optional[int] = ..., log_bytes: _Optional[int] = ..., log_records: _Optional[int] = ..., memory_budget_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., poison: _Optional[str] = ..., tables: _Optional[_Iterable[_Union[TableStats, _Mapping]]] = ...) -> None: ...

class SetTableFreezeRequest(_message.Message):
    __slots__ = ("table", "mode", "ticket")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    table: str
    mode: FreezeMode
    ticket: int
    def __init__(self, table: _Optional[str] = ..., mode: _Optional[_Union[FreezeMode, str]] = ..., ticket: _Optional[int] = ...) -> None: ...

class SetTableFreezeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EvictRowsRequest(_message.Message):
    __slots__ = ("table", "ticket")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    table: str
    ticket: int
    def __init__(self, table: _Optional[str] = ..., ticket: _Optional[int] = ...) -> None: ...

class EvictRowsResponse(_message.Message):
    __slots__ = ("rows_evicted",)
    ROWS_EVICTED_FIELD_NUMBER: _ClassVar[int]
    rows_evicted: int
    def __init__(self, rows_evicted: _Optional[int] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("ids", "weights", "state", "push_time", "push_count", "shows", "clicks", "lsn")
    IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PUSH_TIME_FIELD_NUMBER: _ClassVar[int]
    PUSH_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHOWS_FIELD_NUMBER: _ClassVar[int]
    CLICKS_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    weights: bytes
    state: bytes
    push_time: bytes
    push_count: bytes
    shows: bytes
    clicks: bytes
    lsn: bytes
    def __init__(self, ids: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., state: _Optional[bytes] = ..., push_time: _Optional[bytes] = ..., push_count: _Optional[bytes] = ..., shows: _Optional[bytes] = ..., clicks: _Optional[bytes] = ..., lsn: _Optional[bytes] = ...) -> None: ...

class ReadRowsRequest(_message.Message):
    __slots__ = ("map_version", "table", "ids")
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    map_version: int
    table: str
    ids: bytes
    def __init__(self, map_version: _Optional[int] = ..., table: _Optional[str] = ..., ids: _Optional[bytes] = ...) -> None: ...

class ReadRowsResponse(_message.Message):
    __slots__ = ("rows", "lsn")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    rows: Rows
    lsn: int
    def __init__(self, rows: _Optional[_Union[Rows, _Mapping]] = ..., lsn: _Optional[int] = ...) -> None: ...

class ListRowsRequest(_message.Message):
    __slots__ = ("table", "first_key", "rows_max", "ticket")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FIRST_KEY_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    table: str
    first_key: int
    rows_max: int
    ticket: int
    def __init__(self, table: _Optional[str] = ..., first_key: _Optional[int] = ..., rows_max: _Optional[int] = ..., ticket: _Optional[int] = ...) -> None: ...

class ListRowsResponse(_message.Message):
    __slots__ = ("rows", "next_key", "lsn_before", "lsn_after")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_KEY_FIELD_NUMBER: _ClassVar[int]
    LSN_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LSN_AFTER_FIELD_NUMBER: _ClassVar[int]
    rows: Rows
    next_key: int
    lsn_before: int
    lsn_after: int
    def __init__(self, rows: _Optional[_Union[Rows, _Mapping]] = ..., next_key: _Optional[int] = ..., lsn_before: _Optional[int] = ..., lsn_after: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("group", "trainer", "trainers", "incarnation", "name", "pace", "staleness", "deadline_ms", "go_on", "uneven_go_on")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    GO_ON_FIELD_NUMBER: _ClassVar[int]
    UNEVEN_GO_ON_FIELD_NUMBER: _ClassVar[int]
    group: int
    trainer: int
    trainers: int
    incarnation: int
    name: str
    pace: Pace
    staleness: int
    deadline_ms: int
    go_on: bool
    uneven_go_on: bool
    def __init__(self, group: _Optional[int] = ..., trainer: _Optional[int] = ..., trainers: _Optional[int] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ..., pace: _Optional[_Union[Pace, str]] = ..., staleness: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., go_on: bool = ..., uneven_go_on: bool = ...) -> None: ...

class Leaver(_message.Message):
    __slots__ = ("trainer", "incarnation", "name", "step")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    trainer: int
    incarnation: int
    name: str
    step: int
    def __init__(self, trainer: _Optional[int] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class LeaveGroupRequest(_message.Message):
    __slots__ = ("member", "step")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    member: Member
    step: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class LeaveGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinGroupRequest(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: Member
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ...) -> None: ...

class JoinGroupResponse(_message.Message):
    __slots__ = ("step", "held")
    STEP_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    step: int
    held: bool
    def __init__(self, step: _Optional[int] = ..., held: bool = ...) -> None: ...

class ContributeRequest(_message.Message):
    __slots__ = ("member", "push")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    member: Member
    push: PushRequest
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., push: _Optional[_Union[PushRequest, _Mapping]] = ...) -> None: ...

class ContributeResponse(_message.Message):
    __slots__ = ("applied",)
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    applied: bool
    def __init__(self, applied: bool = ...) -> None: ...

class AwaitStepRequest(_message.Message):
    __slots__ = ("member", "step", "left")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    member: Member
    step: int
    left: _containers.RepeatedCompositeFieldContainer[Leaver]
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., step: _Optional[int] = ..., left: _Optional[_Iterable[_Union[Leaver, _Mapping]]] = ...) -> None: ...

class AwaitStepResponse(_message.Message):
    __slots__ = ("done", "resend", "lost", "left")
    DONE_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    done: bool
    resend: bool
    lost: _containers.RepeatedScalarFieldContainer[str]
    left: _containers.RepeatedCompositeFieldContainer[Leaver]
    def __init__(self, done: bool = ..., resend: bool = ..., lost: _Optional[_Iterable[str]] = ..., left: _Optional[_Iterable[_Union[Leaver, _Mapping]]] = ...) -> None: ...

class SaveTablesRequest(_message.Message):
    __slots__ = ("name", "token", "ticket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: int
    ticket: int
    def __init__(self, name: _Optional[str] = ..., token: _Optional[int] = ..., ticket: _Optional[int] = ...) -> None: ...

class GetSavedTablesRequest(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class SavedTables(_message.Message):
    __slots__ = ("name", "token", "lsn", "applied_lsn")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    APPLIED_LSN_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: int
    lsn: int
    applied_lsn: int
    def __init__(self, name: _Optional[str] = ..., token: _Optional[int] = ..., lsn: _Optional[int] = ..., applied_lsn: _Optional[int] = ...) -> None: ...

class DropSavedTablesRequest(_message.Message):
    __slots__ = ("name", "token", "ticket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: int
    ticket: int
    def __init__(self, name: _Optional[str] = ..., token: _Optional[int] = ..., ticket: _Optional[int] = ...) -> None: ...

class DropSavedTablesResponse(_message.Message):
    __slots__ = ("dropped",)
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    dropped: bool
    def __init__(self, dropped: bool = ...) -> None: ...
