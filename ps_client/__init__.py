# SPDX-License-Identifier: Apache-2.0
"""What a trainer imports: pull rows, push gradients. `ps_client.torch` has the PyTorch modules.

    client = connect("embedded:/data/model", config={"tables": [{"name": "user", "dim": 16}]})
    rows = client.pull("user", ids)
    client.push("user", ids, gradients)

Each name is imported when it is first used: kernels and gRPC take half a second to load, and a program that
reads a config or prints its help needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import rowhouse as _rowhouse  # noqa: F401  # finds a folder for compiled kernels before one is declared

if TYPE_CHECKING:
    from rowhouse.error import (
        BusyError,
        ConfigError,
        CorruptionError,
        DeadlineExceededError,
        DirectoryInUseError,
        InternalError,
        InvalidRequestError,
        LimitExceededError,
        PoisonedError,
        PreconditionError,
        RowhouseError,
        SequenceGapError,
        StalePartitionMapError,
        StillRunningError,
        StoreError,
        TableFrozenError,
        TrainerLostError,
        UnavailableError,
        UnknownTableError,
    )

    from ps_client.client import Client
    from ps_client.connection import connect
    from ps_client.pace.asynchronous import AsyncClient, connect_async
    from ps_client.pace.pipeline import Pipeline
    from ps_client.pace.trainer import Trainer
    from ps_client.report import Checkpoint, SavedTables, ShardStats, TableStats
    from ps_client.row import Rows
    from ps_client.step import StepClient, StepProtocol, UniqueRows
    from ps_client.table import Table

__all__ = [
    "AsyncClient", "BusyError", "Checkpoint", "Client", "ConfigError", "CorruptionError",
    "DeadlineExceededError", "DirectoryInUseError", "InternalError", "InvalidRequestError",
    "LimitExceededError", "Pipeline", "PoisonedError", "PreconditionError", "RowhouseError", "Rows",
    "SavedTables", "SequenceGapError", "ShardStats", "StalePartitionMapError", "StepClient",
    "StepProtocol", "StillRunningError", "StoreError", "Table", "TableFrozenError", "TableStats",
    "Trainer", "TrainerLostError", "UnavailableError", "UniqueRows", "UnknownTableError", "connect",
    "connect_async",
]  # fmt: skip

_HOMES: Final = {
    "ps_client.client": ("Client",),
    "ps_client.connection": ("connect",),
    "ps_client.pace.asynchronous": ("AsyncClient", "connect_async"),
    "ps_client.pace.pipeline": ("Pipeline",),
    "ps_client.pace.trainer": ("Trainer",),
    "ps_client.report": ("Checkpoint", "SavedTables", "ShardStats", "TableStats"),
    "ps_client.row": ("Rows",),
    "ps_client.step": ("StepClient", "StepProtocol", "UniqueRows"),
    "ps_client.table": ("Table",),
}
"""Where each public name is defined; the errors are in rowhouse.error."""


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = next((home for home, names in _HOMES.items() if name in names), "rowhouse.error")
        value = globals()[name] = getattr(import_module(home), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
