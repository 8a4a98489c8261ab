# SPDX-License-Identifier: Apache-2.0
"""The progress bar of every command: on stderr, where a person watches. Thread safety: as rich's own."""

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

__all__ = ["progress_bar"]


def progress_bar(quiet: bool, *further: ProgressColumn) -> Progress:
    """A bar that is gone when the work is done, with `further` columns at its end; nothing where `quiet`, or
    into a pipe, where it would leave an empty line."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    quiet = quiet or not console.is_terminal
    return Progress(*columns, *further, console=console, disable=quiet, transient=True)
