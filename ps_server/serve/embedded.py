# SPDX-License-Identifier: Apache-2.0
"""Embedded mode: one shard in the caller's process, no socket, the same code as behind one.

`rowhouse.embedded` entry points lead here, so ps_client reaches the server without importing it. The
directory holds `cluster.yaml`, the resolved config of its last open, and the shard's own folder; so a
directory that was opened once can be opened again without a config.

Invariants: 1. `cluster.yaml` changes only after an open that succeeded; 2. a config that does not fit
the rows on disk is refused by the shard, and changes nothing.
Thread safety: a function; the shard it returns is thread-safe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rowhouse.error import ConfigError, DirectoryInUseError, StoreError
from rowhouse.file import write_synced
from rowhouse.malloc import keep_large_blocks

from ps_server.config.cluster import load_config, shard_directory
from ps_server.config.memory import check_memory
from ps_server.life.saved import check_no_restore
from ps_server.shard.shard import Shard

CONFIG_NAME: Final = "cluster.yaml"
SERVED_NAME: Final = "resolved.yaml"
"""What supervisor.py leaves in the data_dir of a cluster that it served."""


def open_embedded(directory: str | Path, config: str | Path | Mapping[str, Any] | None = None) -> Shard:
    """Open (or create) the single shard in `directory`.

    Parameters
    ----------
    directory
        Folder of the shard; created when it is not there. It stands in for the config's data_dir.
    config
        A mapping or a YAML file with the keys of ClusterConfig, of which `tables` is enough; None takes
        the config of the last open.

    Returns
    -------
    Shard
        Recovered and ready; `close()` checkpoints it.

    Raises
    ------
    ConfigError
        A wrong config, more than one shard, or None for a directory that was never opened
        this way (a cluster's data_dir among them).
    DirectoryInUseError
        Another process holds the directory, or another client of this one.
    """
    folder = Path(directory).expanduser().absolute()
    stored = folder / CONFIG_NAME
    if config is None:
        if (folder / SERVED_NAME).is_file() and not stored.is_file():
            raise ConfigError(
                f"directory {str(folder)!r} is the data_dir of a cluster (it has a {SERVED_NAME}); serve it "
                f"with `ps-server up` and connect to its endpoints"
            )
        if not stored.is_file():
            raise ConfigError(
                f"directory {str(folder)!r} has no {CONFIG_NAME} of an earlier open; give a config"
            )
        config = stored
    resolved = load_config(config, {"data_dir": str(folder)})
    if resolved.shard_count != 1:
        raise ConfigError(f"shards is {resolved.shard_count}; embedded mode has exactly 1")
    check_memory(resolved)
    keep_large_blocks()
    try:
        shard_directory(resolved, 0).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"directory {str(folder)!r}: {error.strerror}") from None
    check_no_restore(shard_directory(resolved, 0))
    try:
        shard = Shard.open(resolved, 0, shard_directory(resolved, 0))
    except DirectoryInUseError as error:
        if "this process" not in str(error):
            raise
        raise DirectoryInUseError(
            f"directory {str(folder)!r}: a client of this process has it open: use that client, or close it "
            "(client.close(), or the end of its `with`). A client is closed by itself when nothing refers to "
            "it any more; a module over it does, and in a notebook `_` and `Out` may"
        ) from error
    text = resolved.to_yaml()
    try:
        if not stored.is_file() or stored.read_bytes() != text.encode():
            write_synced(stored, text)
    except StoreError:
        shard.close()
        raise
    return shard
