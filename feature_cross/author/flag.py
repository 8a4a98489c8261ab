# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands have, and the numbers that flags are. Thread safety: pure functions."""

import argparse
from collections.abc import Callable
from typing import Final

from feature_cross.author.size import DTYPE_BYTES, OPTIMIZER_STATE, TIERS, RowShape, parse_size
from feature_cross.error import FlagError

__all__ = ["DIM_MAX", "MakeCommand", "add_row_flags", "number", "row_shape", "size"]

DIM_MAX: Final = 65_536

MakeCommand = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
"""(name, action, summary, example) to the parser of a command; feature_cross/author/program.py has it."""


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer within bounds; `1e9` and `1_000_000` are integers too."""
    bound = f"at least {least}" if most is None else f"{least} to {most}"

    def parse(text: str) -> int:
        try:
            exact = float(text) if set(text) & set(".eE") else int(text)
            value = int(exact)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number") from None
        if value != exact:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be a whole number")
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"is {value}; it must be {bound}")
        return value

    return parse


def size(text: str) -> int:
    """An argparse type: bytes, as 8GB."""
    try:
        return parse_size(text)
    except FlagError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--budget ")) from error


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what a row is made of, so that every command counts its bytes alike.

    Parameters
    ----------
    parser
        To add them to.
    """
    parser.add_argument("--dim", type=number(1, DIM_MAX), default=16, help="weights per row, for bytes (16)")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="fp32", help="type of weights (fp32)")
    parser.add_argument(
        "--optimizer", choices=list(OPTIMIZER_STATE), default="adagrad", help="its state is counted (adagrad)"
    )
    parser.add_argument(
        "--state", type=number(0, 4 * DIM_MAX),
        help="float32 words of state per row, instead of --optimizer's",
    )  # fmt: skip
    parser.add_argument(
        "--metadata-bytes", type=number(0, 64), default=0,
        help="of the table's policies: 4 TTL, 4 least-frequent eviction, 12 show/click scores (0)",
    )  # fmt: skip
    parser.add_argument(
        "--tier", choices=TIERS, default="memory",
        help="bytes that count: all rows hot with their index, or on disk before compression (memory)",
    )  # fmt: skip


def row_shape(flags: argparse.Namespace) -> RowShape:
    """What `add_row_flags` took."""
    return RowShape(
        dim=flags.dim, dtype=flags.dtype, optimizer=flags.optimizer, state=flags.state,
        metadata_bytes=flags.metadata_bytes,
    )  # fmt: skip
