# SPDX-License-Identifier: Apache-2.0
"""What every command says of its work: a progress bar on stderr where a person watches, and counts.

Thread safety: as rich's own.
"""

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rowhouse.program import screen

__all__ = ["counted", "progress_bar"]


def counted(number: int, thing: str) -> str:
    """`1 feature`, `2 features`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def progress_bar(quiet: bool, *further: ProgressColumn) -> Progress:
    """A bar that is gone when the work is done, with `further` columns at its end; nothing where `quiet`, or
    into a pipe, where it would leave an empty line."""
    watched = screen(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    quiet = quiet or not watched.is_terminal
    return Progress(*columns, *further, console=watched, disable=quiet, transient=True)
