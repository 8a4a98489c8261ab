# SPDX-License-Identifier: Apache-2.0
"""The tables in checkpoints that something else writes: torch.distributed.checkpoint, Lightning, Accelerate.

    trainer's checkpoint ── state_dict() ──▶ every shard keeps a copy; the checkpoint gets its name
                         ── load_state_dict() ──▶ are the shards' tables the ones of that name? else an error

Such a checkpoint holds the dense part; of the tables it holds what `Client.save_tables` gave, as a training
state does (state.py). Thread safety: one object in each process of a job; its calls are of all processes.
"""

import importlib
import json
import re
import secrets
import sys
from collections.abc import Mapping
from typing import Any, Final

from rowhouse.error import CorruptionError, InvalidRequestError, PreconditionError
from torch import distributed

from ps_client.client import Client
from ps_client.report import SavedTables
from ps_client.torch.state import check_client

_LIGHTNING: Final = ("lightning.pytorch", "pytorch_lightning")
"""Two packages of the same code, whose classes are not each other's."""


class TablesState:
    """What stands for the tables in a checkpoint: an object with `state_dict` and `load_state_dict`.

    `state_dict()` has every shard keep a copy of its tables, and gives what names the copy: a little text.
    `load_state_dict()` raises unless the shards hold just those tables; the message says how to restore them.
    In a job of several processes (torch.distributed) all of them call `state_dict`: the first one saves when
    all have come, and all get the same.

    Parameters
    ----------
    client
        Of the cluster; a trainer's client is its first argument too. Nobody may push during `state_dict`.
    name
        What the copies' names begin with: letters, digits, dots, dashes and underscores, at most 40.
    keep
        How many copies of this object the shards keep beside the newest, whose checkpoint is perhaps not
        written yet: when one more is made the oldest is dropped. At least as many as there are checkpoints at
        a time, where those go by age. None: all, until `client.drop_tables`.

    Raises
    ------
    InvalidRequestError
        Another name, or a `keep` below 1.
    """

    def __init__(self, client: Client, name: str = "checkpoint", *, keep: int | None = None) -> None:
        check_client(client)
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name):
            raise InvalidRequestError(
                f"name is {name!r}; it must have 1 to 40 letters, digits, dots, - and _"
            )
        if keep is not None and (not isinstance(keep, int) or keep < 1):
            raise InvalidRequestError(f"keep is {keep!r}; it must be an integer from 1 up, or None")
        self._client, self._name, self._keep = client, name, keep
        self._kept: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Save the tables, and give what names the copy: text only, so that any checkpoint can hold it.

        Raises
        ------
        PreconditionError
            Somebody pushes meanwhile: in every process of the job.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._saved()
        distributed.barrier()  # everybody's pushes are made
        said: list[Any] = [None]
        if distributed.get_rank() == 0:
            try:
                said = [self._saved()]
            except Exception as failure:  # whatever it is: the others wait
                said = [failure]
        distributed.broadcast_object_list(said)
        if isinstance(said[0], Exception):
            raise said[0]
        answer: dict[str, Any] = said[0]
        self._kept = list(answer["kept"])
        return answer

    def _saved(self) -> dict[str, Any]:
        saved = self._client.save_tables(f"{self._name}-{secrets.token_hex(4)}")
        self._kept.append(saved.name)
        while self._keep is not None and len(self._kept) > self._keep + 1:
            self._client.drop_tables(self._kept.pop(0))
        return {"tables": json.dumps(saved.to_document()), "kept": list(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See that the shards hold the tables of a checkpoint.

        Parameters
        ----------
        state
            What `state_dict` gave.

        Raises
        ------
        PreconditionError
            The shards hold something else: it names the shard, both LSNs, and how to restore the tables.
        CorruptionError
            It is not what `state_dict` gives.
        """
        self._client.check_tables(saved_tables_in(state))
        self._kept = list(state.get("kept", []))


def saved_tables_in(state: Mapping[str, Any]) -> SavedTables:
    """What the tables of a checkpoint were saved as: the name for `ps-server restore`.

    Parameters
    ----------
    state
        What TablesState.state_dict gave.
    """
    try:
        return SavedTables.from_document(json.loads(state["tables"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"the checkpoint names no saved tables: {error}") from None


def lightning_callback(client: Client, name: str = "checkpoint") -> Any:
    """A callback for a Lightning Trainer: its checkpoints name a copy of the tables, and are checked on load.

    Every copy stays until `client.drop_tables`: which checkpoints Lightning keeps does not go by age.

    Parameters
    ----------
    client, name
        As of TablesState.

    Returns
    -------
    object
        A Callback of `lightning.pytorch`, or of `pytorch_lightning` where only that was imported.

    Raises
    ------
    PreconditionError
        Neither package is installed.
    """
    package = next((found for found in _LIGHTNING if found in sys.modules), None)
    for candidate in [package] if package else _LIGHTNING:
        try:
            lightning = importlib.import_module(candidate)
            break
        except ImportError:
            continue
    else:
        raise PreconditionError("no Lightning is installed: pip install lightning")

    class TablesCallback(TablesState, lightning.Callback):  # type: ignore[name-defined,misc]
        """A TablesState, under one key whatever its arguments are."""

        state_key = "rowhouse"

    return TablesCallback(client, name)
