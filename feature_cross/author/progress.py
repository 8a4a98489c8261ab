# SPDX-License-Identifier: Apache-2.0
"""What every command says of its work: tables, a progress bar on stderr where a person watches, and counts.

Thread safety: as rich's own.
"""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

__all__ = ["console", "counted", "progress_bar"]


def counted(number: int, thing: str) -> str:
    """`1 feature`, `2 features`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def console(width_min: int = 120) -> Console:
    """Standard output, wide enough for a table where it is no terminal: a log wraps its own lines."""
    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, width_min))


def progress_bar(quiet: bool, *further: ProgressColumn) -> Progress:
    """A bar that is gone when the work is done, with `further` columns at its end; nothing where `quiet`, or
    into a pipe, where it would leave an empty line."""
    screen = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    quiet = quiet or not screen.is_terminal
    return Progress(*columns, *further, console=screen, disable=quiet, transient=True)
