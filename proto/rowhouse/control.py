# SPDX-License-Identifier: Apache-2.0
"""Control calls: every RPC of the service but the hot ones, by the name that the .proto gives them.

The hot calls (Pull, Push, Contribute) have typed methods and a codec of their own. Every other RPC goes
through one `call(method, request, …)` on each side, and `METHODS` says which messages belong to its name. So
a new RPC is a message in the .proto, a handler of the shard and a method of the client.
Thread safety: immutable values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from rowhouse.error import InvalidRequestError, LimitExceededError
from rowhouse.limit import CONTROL_BYTES_MAX
from rowhouse.v1 import rowhouse_pb2 as pb

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ParameterService"]

SERVICE_NAME: Final[str] = _SERVICE.full_name

SIZE_METADATA_KEY: Final = "rowhouse-bytes"
"""Metadata of a call: the bytes of its message, so that a shard makes room before it comes. A call without it
is taken all the same, but stands in line."""

HOT: Final = frozenset({"Pull", "Push", "Contribute"})
"""The calls of a training step."""


@dataclass(frozen=True, slots=True)
class Method:
    """One control call: its name, and the messages that it takes and gives."""

    name: str
    request: type[Message]
    response: type[Message]

    def read_request(self, data: bytes) -> Any:
        """The request in `data`, without fields that are not known here.

        InvalidRequestError where it is none (gRPC would call that our fault), or LimitExceededError past
        CONTROL_BYTES_MAX: what a call leaves behind, such as the name of a trainer, is small.
        """
        if len(data) > CONTROL_BYTES_MAX:
            name = self.request.DESCRIPTOR.name
            raise LimitExceededError(f"{name} of {len(data)} bytes; at most {CONTROL_BYTES_MAX}")
        try:
            request = self.request.FromString(data)
            request.DiscardUnknownFields()
            return request
        except DecodeError as error:
            raise InvalidRequestError(f"{self.request.DESCRIPTOR.name}: {error}") from None


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: Method(
            method.name, GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        )
        for method in _SERVICE.methods
        if method.name not in HOT
    }
)
"""Every control call by its name."""


FREEZE_MODES: Final[Mapping[str, pb.FreezeMode]] = MappingProxyType(
    {"off": pb.FREEZE_MODE_OFF, "refuse": pb.FREEZE_MODE_REFUSE, "ignore": pb.FREEZE_MODE_IGNORE}
)
"""What a table does with a push, as configs and commands write it: apply it, refuse it (TableFrozenError), or
acknowledge it and drop its gradients."""


def method_of(name: str) -> Method:
    """The control call of that name; InvalidRequestError where there is none."""
    try:
        return METHODS[name]
    except KeyError:
        raise InvalidRequestError(
            f"method {name!r} is unknown; it must be one of {sorted(METHODS)}"
        ) from None
