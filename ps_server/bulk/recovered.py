# SPDX-License-Identifier: Apache-2.0
"""A shard that was not stopped cleanly, recovered beside its directory, to export what it had acknowledged.

The directory is only read, so it may be a snapshot that is mounted read-only. In a temporary folder the row
files are links, the log is copied, and both are opened and replayed like after any kill; so the folder takes
the bytes of the log, and of the rows that it touches.

Thread safety: pure functions.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rowhouse.error import StoreError

from ps_server.bulk.open_table import is_whole
from ps_server.config.cluster import ClusterConfig
from ps_server.disk.directory import held, read_descriptor
from ps_server.shard.shard import Shard


@contextmanager
def exportable(directory: Path, config: ClusterConfig | None) -> Iterator[Path | Shard]:
    """What to export from a stopped shard's directory, for as long as the context lasts.

    Parameters
    ----------
    directory
        The shard's, or a saved copy.
    config
        The cluster's, to replay the log of a shard that was not stopped cleanly; None: that is refused by
        those who open it.

    Raises
    ------
    DirectoryInUseError, CorruptionError, StoreError
        A shard runs there; damage; the temporary folder cannot be written.
    """
    if config is None or is_whole(directory):
        yield directory
        return
    with (
        held(directory),
        tempfile.TemporaryDirectory(prefix="rowhouse-recovered-") as scratch,
    ):
        folder = Path(scratch) / directory.name
        try:
            _copy(directory, folder)
        except OSError as error:
            raise StoreError(
                f"{directory}: cannot be recovered in {scratch} (TMPDIR names another place): "
                f"{error.strerror or error}"
            ) from error
        shard = Shard.open(config, read_descriptor(directory).shard, folder)
        try:
            yield shard
        finally:
            shard.poison = shard.poison or "it was opened for an export"  # nothing of it is kept
            shard.close()


def _copy(directory: Path, folder: Path) -> None:
    """A shard's files: those that nobody writes again as links."""
    for name in ("store", "log"):
        (folder / name).mkdir(parents=True)
        for path in (directory / name).iterdir() if (directory / name).is_dir() else ():
            if path.suffix == ".sst":
                (folder / name / path.name).symlink_to(path.absolute())
            elif path.is_file() and path.name not in ("LOCK", "LOG"):
                shutil.copyfile(path, folder / name / path.name)
    for path in directory.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
