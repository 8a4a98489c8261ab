# SPDX-License-Identifier: Apache-2.0
"""The one error tree, and its mapping to and from gRPC status codes.

    RowhouseError
    ├── ConfigError              a config key or value is wrong; exit code 2
    ├── InvalidRequestError      an id, dim, dtype, shape or value is wrong
    │   ├── UnknownTableError    the table is not declared; names the nearest one
    │   └── LimitExceededError   past a named limit of rowhouse/limit.py
    ├── PreconditionError        right in itself, not in the shard's present state
    │   ├── StalePartitionMapError   routed by another partition map   (retry after a reload)
    │   ├── SequenceGapError         an earlier push of this client never arrived here
    │   ├── TableFrozenError         pushes to this table are refused
    │   └── TrainerLostError         a trainer of the group gave no sign in time
    ├── BusyError                in-flight bytes are at their bound    (retry with back-off)
    ├── UnavailableError         no answer, or the shard is starting   (retry)
    │   ├── DeadlineExceededError    no answer in time                 (retry)
    │   └── StillRunningError        a long call has not ended yet     (ask again)
    ├── StoreError               RocksDB refused something; exit code 74
    │   ├── DirectoryInUseError  another process holds the data directory
    │   ├── PoisonedError        a write failed; the shard takes no more of them (retry: it may be restarted)
    │   └── CorruptionError      a checksum, length or version on disk is wrong
    └── InternalError            a fault of ours

A retry of a push is always safe: pushes are sequenced. `retryable` says whether it can help.
Thread safety: nothing here has state.
"""

from enum import IntEnum
from typing import ClassVar, Final

__all__ = [
    "ERROR_METADATA_KEY", "BusyError", "ConfigError", "CorruptionError", "DeadlineExceededError",
    "DirectoryInUseError", "InternalError", "InvalidRequestError", "LimitExceededError", "PoisonedError",
    "PreconditionError", "RowhouseError", "SequenceGapError", "StalePartitionMapError", "StatusCode",
    "StillRunningError", "StoreError", "TableFrozenError", "TrainerLostError", "UnavailableError",
    "UnknownTableError", "error_class_names", "from_status",
]  # fmt: skip

ERROR_METADATA_KEY: Final = "rowhouse-error"
"""Trailing metadata key that carries the class name of the error."""


class StatusCode(IntEnum):
    """Those of gRPC's status codes that an error has on the wire, without importing gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class RowhouseError(Exception):
    """Base of every error that rowhouse raises on purpose."""

    retryable: bool = False
    code: ClassVar[StatusCode] = StatusCode.UNKNOWN
    exit_code: ClassVar[int] = 1


class ConfigError(RowhouseError):
    """A config key or value is wrong; the message names the key, its value and the bound."""

    code = StatusCode.INVALID_ARGUMENT
    exit_code = 2


class InvalidRequestError(RowhouseError, ValueError):
    """An id, dim, dtype, shape or value in the request is wrong; nothing was changed."""

    code = StatusCode.INVALID_ARGUMENT
    exit_code = 2


class UnknownTableError(InvalidRequestError):
    """No table of that name is declared."""

    code = StatusCode.NOT_FOUND


class LimitExceededError(InvalidRequestError):
    """The request is past a named limit of rowhouse/limit.py."""

    code = StatusCode.OUT_OF_RANGE


class PreconditionError(RowhouseError):
    """The request is right in itself, but not in the shard's present state."""

    code = StatusCode.FAILED_PRECONDITION


class StalePartitionMapError(PreconditionError):
    """The request was routed by another version of the partition map: reload it, then retry."""

    retryable = True


class SequenceGapError(PreconditionError):
    """An earlier push of this client is missing here (lost under `durability: none`, or never sent)."""


class TableFrozenError(PreconditionError):
    """The table refuses pushes (SetTableFreeze)."""


class TrainerLostError(PreconditionError):
    """A trainer of the group gave no sign within the deadline, or another took its place; names it."""


class BusyError(RowhouseError):
    """The shard holds as many in-flight bytes as it may; back off, then retry."""

    retryable = True
    code = StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(RowhouseError):
    """The shard did not answer, or is starting."""

    retryable = True
    code = StatusCode.UNAVAILABLE
    exit_code = 69


class DeadlineExceededError(UnavailableError):
    """No answer within the deadline; whether the request was applied is unknown until a retry."""

    code = StatusCode.DEADLINE_EXCEEDED


class StillRunningError(UnavailableError):
    """A long call was begun and has not ended: ask again with its ticket. The message says how far it is."""


class StoreError(RowhouseError):
    """RocksDB or the file system refused an operation."""

    code = StatusCode.INTERNAL
    exit_code = 74


class DirectoryInUseError(StoreError):
    """Another process holds the data directory."""


class PoisonedError(StoreError):
    """A write failed earlier; the shard acknowledges nothing more. The message says what failed.

    A retry helps when somebody starts the shard again, as `ps-server up` does; in embedded mode nobody does.
    """

    retryable = True
    code = StatusCode.ABORTED


class CorruptionError(StoreError):
    """What is on disk fails its checksum, length or version; it is named and never served."""

    code = StatusCode.DATA_LOSS


class InternalError(RowhouseError):
    """A fault of rowhouse itself; the shard's log has the traceback."""

    code = StatusCode.INTERNAL


def error_class_names(root: type[RowhouseError] = RowhouseError) -> dict[str, type[RowhouseError]]:
    """Every class of the tree below `root` by its name, `root` included."""
    classes = {root.__name__: root}
    for child in root.__subclasses__():
        classes.update(error_class_names(child))
    return classes


_BY_CODE: Final[dict[int, type[RowhouseError]]] = {
    StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    StatusCode.NOT_FOUND: UnknownTableError,
    StatusCode.OUT_OF_RANGE: LimitExceededError,
    StatusCode.FAILED_PRECONDITION: PreconditionError,
    StatusCode.RESOURCE_EXHAUSTED: BusyError,
    StatusCode.UNAVAILABLE: UnavailableError,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    StatusCode.CANCELLED: UnavailableError,
    StatusCode.ABORTED: PoisonedError,
    StatusCode.DATA_LOSS: CorruptionError,
    StatusCode.INTERNAL: InternalError,
}


def from_status(code: int, details: str, name: str | None = None) -> RowhouseError:
    """Turn a gRPC status back into the error that the server raised.

    Parameters
    ----------
    code
        Number of gRPC's status code, of the answer.
    details
        Its message; kept as it is.
    name
        Class name from the trailing metadata `rowhouse-error`, if there was one. An unknown name
        (a newer server) falls back to the status code.
    """
    known = error_class_names().get(name) if name else None
    return (known or _BY_CODE.get(code, RowhouseError))(details)
