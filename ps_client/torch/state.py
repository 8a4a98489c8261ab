# SPDX-License-Identifier: Apache-2.0
"""One training state: the dense part in a file, the tables saved on the shards, and each knows the other.

The file names the save of the tables (ps_client/report.py). Tables are saved first and the file is renamed
into its place last, so a file that is there is complete and its tables are too.

Thread safety: functions; one process of a job saves, while no trainer pushes.
"""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from rowhouse.error import CorruptionError, InvalidRequestError, StoreError
from rowhouse.file import replacing

from ps_client.client import Client
from ps_client.report import SavedTables

FORMAT: Final = 1


def save_training_state(
    path: str | Path, client: Client, state: Mapping[str, Any], timeout_s: float | None = None
) -> SavedTables:
    """Save the dense part and the tables as one state.

    Parameters
    ----------
    path
        The file. One that is there is replaced, and the tables that it named are dropped.
    client
        Of the cluster. Nobody may push meanwhile.
    state
        What `torch.save` takes and a `weights_only` load gives back: state_dicts, tensors, numbers, text.
    timeout_s
        The most seconds for saving the tables; None: as long as the shards say that they are at work.

    Returns
    -------
    SavedTables
        What the tables were saved as.

    Raises
    ------
    PreconditionError
        Somebody pushed meanwhile. Nothing is left of the new state, the old one is whole.
    StoreError
        The file or a shard's copy could not be written.
    """
    check_client(client)
    path = Path(path)
    earlier = _read(path)[0] if path.exists() else None
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", path.stem)[:40]
    saved = client.save_tables(f"{stem}-{secrets.token_hex(4)}", timeout_s)
    try:
        _write(path, {"format": FORMAT, "tables": saved.to_document(), "state": dict(state)})
    except BaseException:
        client.drop_tables(saved.name)
        raise
    if earlier is not None:
        client.drop_tables(earlier.name)
    return saved


def check_client(client: object) -> None:
    """InvalidRequestError unless it is a client: a trainer or a pipeline is not the one that saves."""
    if not isinstance(client, Client):
        raise InvalidRequestError(
            f"client is {client!r}; it must be the client that connect() gave, also where a pipeline or a "
            "trainer of it trains"
        )


def load_training_state(path: str | Path, client: Client) -> dict[str, Any]:
    """The dense part of a training state, once it is sure that the shards hold its tables.

    Parameters
    ----------
    path
        The file.
    client
        Of the cluster.

    Returns
    -------
    dict
        What was saved as `state`, tensors on the CPU.

    Raises
    ------
    PreconditionError
        The shards hold something else: it names the shard, both LSNs, and how to restore the tables.
    CorruptionError, StoreError
        The file is damaged, or is no training state; it cannot be read.
    """
    check_client(client)
    saved, state = _read(Path(path))
    client.check_tables(saved)
    return state


def saved_tables_of(path: str | Path) -> SavedTables:
    """What the tables of a training state were saved as: the name for `ps-server restore`.

    Parameters
    ----------
    path
        The file.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[SavedTables, dict[str, Any]]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StoreError(f"training state {str(path)!r}: {error.strerror}") from None
    except Exception as error:  # torch tells damage by many classes
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptionError(f"training state {str(path)!r} cannot be read: {text}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CorruptionError(f"{str(path)!r} is no training state of format {FORMAT}")
    return SavedTables.from_document(document["tables"]), document["state"]


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(document, file)
            torch.load(temporary, map_location="cpu", weights_only=True)  # while there still is a better one
    except StoreError as error:
        raise StoreError(f"training state {error}") from None
    except Exception as error:
        raise InvalidRequestError(
            f"training state {str(path)!r}: state cannot be loaded back: {error}"
        ) from None
