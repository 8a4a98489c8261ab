# SPDX-License-Identifier: Apache-2.0
"""What a flag's text may be, and flags that several commands have. Thread safety: pure functions."""

import argparse
import os
from collections.abc import Callable

from feature_cross.author.limit import DIM_MAX, SAMPLE_IDS_DEFAULT, SAMPLE_IDS_MAX
from feature_cross.author.size import DTYPE_BYTES, OPTIMIZER_STATE, TIERS, RowShape, parse_size
from feature_cross.error import FlagError

__all__ = ["add_data_flags", "add_estimate_flags", "add_rank_flags", "add_row_flags", "add_threads_flag",
           "number", "row_shape", "share", "size"]  # fmt: skip

_ROWS_MAX = 10**15


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


def share(text: str) -> float:
    """An argparse type: from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {value}; it must be from 0 to below 1")
    return value


def _level(text: str) -> float:
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {value}; it must be from 0.5 to below 1")
    return value


def _shares(text: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(number > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be three numbers above 0, as 60,20,20")
    whole = sum(numbers)
    return numbers[0] / whole, numbers[1] / whole, numbers[2] / whole


def _feature_dim(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be FEATURE=DIM")
    return name, number(1, DIM_MAX)(value)


def _power_of_two(text: str) -> int:
    value = number(1024, SAMPLE_IDS_MAX)(text)
    if value & (value - 1):
        raise argparse.ArgumentTypeError(f"is {value}; it must be a power of two")
    return value


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """CONFIG and DATA.

    Parameters
    ----------
    parser
        To add them to.
    """
    parser.add_argument("config", help="YAML config")
    parser.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")


def add_threads_flag(parser: argparse.ArgumentParser, most: int | None = None) -> None:
    """`--threads`, all cores unless it says otherwise.

    Parameters
    ----------
    parser
        To add it to.
    most
        Bound; None for none.
    """
    parser.add_argument(
        "--threads", type=number(1, most), default=os.cpu_count() or 1, help="threads (all cores)"
    )


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


def add_estimate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `estimate` and `plot` have in common.

    Parameters
    ----------
    parser
        To add them to.
    """
    parser.add_argument(
        "--rows", type=number(1, _ROWS_MAX), help="also project to this number of rows, for instance 1e9"
    )
    add_row_flags(parser)
    parser.add_argument(
        "--feature-dim", type=_feature_dim, action="append", default=[], metavar="FEATURE=DIM",
        help="another dim for one feature (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=size, help="hold the sum of the --tier's bytes to it: 8GB, 64GiB, 1.5TB"
    )
    parser.add_argument("--read-rows", type=number(1, _ROWS_MAX), help="read only the first so many rows")
    parser.add_argument(
        "--sample-ids", type=_power_of_two, default=SAMPLE_IDS_DEFAULT,
        help=f"ids that are counted exactly, per feature ({SAMPLE_IDS_DEFAULT}: at most 4 MiB each)",
    )  # fmt: skip
    add_threads_flag(parser, 1024)


def add_rank_flags(parser: argparse.ArgumentParser, correction: bool = True) -> None:
    """The flags that `rank`, `prune` and `suggest` have in common: the data, their division, and a row.

    Parameters
    ----------
    parser
        To add them to.
    correction
        Whether several p are told, so that they have to be corrected.
    """
    add_data_flags(parser)
    parser.add_argument("--label", required=True, help="column of the label: bool, or 0 and 1")
    parser.add_argument("--time-column", help="train on the oldest rows, report on the newest")
    parser.add_argument("--group-column", help="rows that share a value (a user, a session) are dependent")
    parser.add_argument(
        "--split", type=_shares, default=(0.6, 0.2, 0.2), metavar="T,S,F",
        help="shares of training, selection and final rows (60,20,20)",
    )  # fmt: skip
    parser.add_argument("--seed", type=number(0), default=0, help="of the choice and division of rows (0)")
    parser.add_argument(
        "--max-rows", type=number(1), default=1_000_000, help="of more a random choice is read (1,000,000)"
    )
    parser.add_argument("--level", type=_level, default=0.95, help="of the intervals, all together (0.95)")
    if correction:
        parser.add_argument(
            "--correction",
            choices=("holm", "bh"),
            default="holm",
            help="of p: family-wise error, or false discoveries",
        )
    add_row_flags(parser)
    add_threads_flag(parser)
