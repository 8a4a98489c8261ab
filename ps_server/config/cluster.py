# SPDX-License-Identifier: Apache-2.0
"""The config of a cluster: tables, shards, durability, budgets.

Every value is checked when the config is built. A wrong value is a ConfigError that names the file and line,
the key path, the value and the bound; for an unknown key it names the nearest known one. The config of one
table is `ps_server.table.config`.

Invariants: 1. a ClusterConfig that exists is valid; 2. it never changes; 3. `None` is off, `0` never is;
4. in each model the fields that change behaviour stand before those that change speed.
Thread safety: immutable values and pure functions.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from rowhouse.document import Document, dump, read_document
from rowhouse.error import ConfigError
from rowhouse.limit import CLUSTER_ID_PATTERN, SHARDS_MAX, TABLES_PER_REQUEST_MAX
from rowhouse.problem import DocumentError, counted
from rowhouse.validation import validate

from ps_server.config.endpoint import SOCKET_PREFIX, check_endpoint, data_port_conflict, has_open_port
from ps_server.table.config import ConfigModel, TableConfig

MEMORY_BUDGET_MIN_BYTES: Final = 1 << 20
"""Below 1 MiB the arena's smallest allocation and RocksDB's own buffers leave no room for rows."""

CHECKPOINT_LOG_MIN_BYTES: Final = 1 << 20
"""Below 1 MiB one batch of 26,624 rows would start a checkpoint, so checkpoints would never end."""

WORKER_THREADS_MAX: Final = 256
"""Threads hold requests, not rows: past the in-flight byte bound more of them only wait."""

_UNITS: Final = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as 1024, "512MiB", "2 GiB" or "1.5GB".

    Parameters
    ----------
    text
        A whole number of bytes, or a number and a unit: B, KB, MB, GB, TB (powers of 1000),
        KiB, MiB, GiB, TiB (powers of 1024); the case of letters does not matter.

    Returns
    -------
    int
        Bytes, a fraction rounded down.

    Raises
    ------
    ConfigError
        Not such a size.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    found = (
        re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
        if isinstance(text, str)
        else None
    )
    unit = found[2] or "b" if found else ""
    if found is None or unit not in _UNITS:
        raise ConfigError(
            f"size is {text!r}; it must be bytes or a number with B, KB, MiB, GiB, … as in '2GiB'"
        )
    whole, _, fraction = found[1].partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * _UNITS[unit] // scale


def _bytes_field(value: Any) -> int:
    try:
        return parse_bytes(value)
    except ConfigError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error)) from None


def _shards(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= SHARDS_MAX:
            raise ValueError(f"a count of shards must be 1 to {SHARDS_MAX}")
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(e, str) for e in value):
        raise ValueError("it must be a count or a list of 'host:port' or 'unix:/path'")
    if not 1 <= len(value) <= SHARDS_MAX:
        raise ValueError(f"it has {len(value)} endpoints; it must have 1 to {SHARDS_MAX}")
    for endpoint in value:
        try:
            check_endpoint(endpoint)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    twice = sorted({e for e in value if value.count(e) > 1 and not has_open_port(e)})
    if twice:
        raise ValueError(f"endpoint {twice[0]!r} is there twice; each shard needs its own")
    return tuple(value)


Size = Annotated[int, BeforeValidator(_bytes_field)]


class ClusterConfig(ConfigModel):
    """A whole cluster; every shard is started from the same one.

    Attributes
    ----------
    name
        For people: in logs and in `psctl stats`.
    tables
        At least one TableConfig, names unique.
    data_dir
        Folder of all local shards; shard i lives in `shard_directory(config, i)`. A relative path in
        a file counts from the file's folder, in a mapping from the working directory.
    cluster_id
        32 hexadecimal digits that name this cluster: clients refuse to join shards of two. None: whoever
        claims the data_dir first makes one. It is needed where shards have data_dirs of their own, on
        several machines: give all of them the same.
    shards
        A count (endpoints are then host:base_port, host:base_port+1, …) or the list of "host:port", or of
        "unix:/path" for socket files on this machine.
    host
        Host of the endpoints when `shards` is a count; "unix:/folder" for socket files in that folder.
    base_port
        First port when `shards` is a count; 0 lets the system pick free ones, and `ps-server up`
        writes them to `<data_dir>/endpoints.json`.
    data_port
        Where shard i takes pulls and pushes as plain frames, faster than gRPC: auto (the system picks a
        port, which clients are told), a number (data_port + i, for firewalls), or off. Clients that cannot
        reach it go on over gRPC. Of a socket file: the file beside it, with .data at its end.
    durability
        What an acknowledged push survives: none (a clean stop), os (a kill of the process), fsync (a
        power cut). Default os: fsync costs a disk sync per group of pushes.
    memory_budget
        Bytes of rows, index and store buffers per shard; a hard limit. "2GiB" or a number.
    checkpoint_log_bytes
        Push log past which a checkpoint starts by itself. Larger: fewer write-backs, longer recovery.
    worker_threads
        Requests served at once per shard. Kernels release the GIL; more than a few per core only wait.
    """

    name: Annotated[str, Field(strict=True, min_length=1)] = "rowhouse"
    tables: tuple[TableConfig, ...]
    data_dir: Path
    cluster_id: Annotated[str, Field(strict=True, pattern=f"^{CLUSTER_ID_PATTERN}$")] | None = None
    shards: Annotated[int | tuple[str, ...], BeforeValidator(_shards)] = 1
    host: Annotated[str, Field(strict=True, min_length=1)] = "127.0.0.1"
    base_port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 7470
    data_port: Literal["auto", "off"] | Annotated[int, Field(strict=True, ge=1, le=65535)] = "auto"
    durability: Literal["none", "os", "fsync"] = "os"
    memory_budget: Annotated[Size, Field(ge=MEMORY_BUDGET_MIN_BYTES)] = 1 << 30
    checkpoint_log_bytes: Annotated[Size, Field(ge=CHECKPOINT_LOG_MIN_BYTES)] = 512 << 20
    worker_threads: Annotated[int, Field(strict=True, ge=1, le=WORKER_THREADS_MAX)] = 8

    @field_validator("tables")
    @classmethod
    def _unique_names(cls, tables: tuple[TableConfig, ...]) -> tuple[TableConfig, ...]:
        if not 1 <= len(tables) <= TABLES_PER_REQUEST_MAX:
            raise ValueError(f"it has {len(tables)} tables; it must have 1 to {TABLES_PER_REQUEST_MAX}")
        names = [t.name for t in tables]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            places = [i for i, n in enumerate(names) if n == twice[0]]
            raise ValueError(f"table {twice[0]!r} is declared twice, as entries {places}")
        return tables

    @model_validator(mode="after")
    def _ports_fit(self) -> Self:
        if isinstance(self.shards, int) and self.host.startswith(SOCKET_PREFIX):
            _shards(list(self.endpoints))
        elif isinstance(self.shards, int):
            if self.base_port and self.base_port + self.shards - 1 > 65535:
                last = self.base_port + self.shards - 1
                raise ValueError(
                    f"base_port {self.base_port} + {counted(self.shards, 'shard')} ends at {last}, past 65535"
                )
            _shards([f"[{self.host}]:1" if ":" in self.host else f"{self.host}:1"])
        return self

    @model_validator(mode="after")
    def _data_ports_fit(self) -> Self:
        if isinstance(self.data_port, int) and self.data_port + self.shard_count - 1 > 65535:
            last = self.data_port + self.shard_count - 1
            raise ValueError(
                f"data_port {self.data_port} + {counted(self.shard_count, 'shard')} ends at {last}, "
                "past 65535"
            )
        if isinstance(self.data_port, int) and (
            conflict := data_port_conflict(self.endpoints, self.data_port)
        ):
            raise ValueError(conflict)
        return self

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return self.shards if isinstance(self.shards, int) else len(self.shards)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Address of each shard, by index; port 0 where the system is to pick one."""
        if not isinstance(self.shards, int):
            return self.shards
        if self.host.startswith(SOCKET_PREFIX):
            return tuple(f"{self.host.rstrip('/')}/shard-{i:04d}.sock" for i in range(self.shards))
        host = f"[{self.host}]" if ":" in self.host else self.host
        step = 1 if self.base_port else 0
        return tuple(f"{host}:{self.base_port + i * step}" for i in range(self.shards))

    def table(self, name: str) -> TableConfig | None:
        """The table of that name, or None."""
        return next((t for t in self.tables if t.name == name), None)

    def to_yaml(self) -> str:
        """The resolved config, every default written out, as YAML that `load_config` reads back."""
        return dump(self.model_dump(mode="json"))


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> ClusterConfig:
    """Read and check a cluster config.

    Parameters
    ----------
    source
        Path of a YAML file, or a mapping with the same keys.
    overrides
        Top-level keys that replace those of `source` (the command line's flags).

    Returns
    -------
    ClusterConfig
        Valid and frozen; `data_dir` absolute.

    Raises
    ------
    ConfigError
        The file cannot be read or holds a wrong key or value.
    """
    base = Path() if isinstance(source, Mapping) else Path(source).parent
    data_dir_given = bool(overrides) and "data_dir" in (overrides or {})
    try:
        document = Document(dict(source), "config") if isinstance(source, Mapping) else read_document(source)
        if overrides and isinstance(document.value, Mapping):
            document = Document({**document.value, **overrides}, document.source, document.lines)
        config = validate(ClusterConfig, document)
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    folder = config.data_dir.expanduser()
    resolved = (folder if data_dir_given else base / folder).absolute()
    return config.model_copy(update={"data_dir": resolved})


def shard_directory(config: ClusterConfig, index: int) -> Path:
    """Folder of shard `index` (0 to shard_count - 1) under the config's data_dir; it may not exist yet."""
    if not 0 <= index < config.shard_count:
        raise ConfigError(f"shard is {index}; it must be 0 to {config.shard_count - 1}")
    return config.data_dir / f"shard-{index:04d}"
