# SPDX-License-Identifier: Apache-2.0
"""The files of dynamicemb's checkpoints: keys, embeddings, scores and states of a rank's rows of one table.

Each is one array without a header: little-endian int64 keys and scores, float32 embeddings and states. The
names are dynamicemb's, and end with `.rank_R.world_size_W`: the keys with `key % W == R`, as dynamicemb picks
them, so that the files of all ranks have each row once, whoever reads them. Thread safety: functions over
files.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFiles:
    """Paths of a rank's files of one table; None: there is none.

    Attributes
    ----------
    keys, embeddings
        Always there.
    scores, states
        Scores are 0, and states begin anew, without them.
    """

    keys: str
    embeddings: str
    scores: str | None
    states: str | None

    def write(self, pages: Iterable[tuple[Tensor, Tensor, Tensor | None, Tensor]]) -> None:
        """Write the rank's rows of pages of (keys, embeddings, states, scores)."""
        paths = (self.keys, self.embeddings, self.states, self.scores)
        rank, world_size = _named_ranks(self.keys) or (0, 1)
        with ExitStack() as opened:
            files = [None if path is None else opened.enter_context(Path(path).open("wb")) for path in paths]
            for page in pages:
                own = page[0] % world_size == rank
                for file, part in zip(files, page, strict=True):
                    if file is not None and part is not None:
                        part[own].numpy().tofile(file)

    def read(
        self, dim: int, state_dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.int64]]:
        """(keys, embeddings, states, scores) of this rank.

        Parameters
        ----------
        dim, state_dim
            Numbers of an embedding and of a state in the files.

        Raises
        ------
        InvalidRequestError
            The files have unequal numbers of rows.
        """
        keys = np.fromfile(self.keys, "<i8")
        parts = {"embeddings": np.fromfile(self.embeddings, "<f4"), "scores": np.zeros(keys.shape, "<i8")}
        if self.scores is not None and Path(self.scores).exists():
            parts["scores"] = np.fromfile(self.scores, "<i8")
        if self.states is not None and Path(self.states).exists():
            parts["states"] = np.fromfile(self.states, "<f4")
        for (name, part), width in zip(parts.items(), (dim, 1, state_dim), strict=False):
            if part.shape[0] != keys.shape[0] * width:
                raise InvalidRequestError(
                    f"{self.keys} has {keys.shape[0]} keys, and its {name} {part.shape[0]} numbers; "
                    f"they must be {width} for each key"
                )
        own = _read_here(self.keys, keys)
        states = parts["states"].reshape(-1, state_dim)[own] if parts.get("states", keys[:0]).size else None
        return keys[own], parts["embeddings"].reshape(-1, dim)[own], states, parts["scores"][own]


def _named_ranks(path: str) -> tuple[int, int] | None:
    """The rank and the world size of a file's name; None where it has none."""
    found = re.search(r"\.rank_(\d+)\.world_size_(\d+)$", path)
    return None if found is None else (int(found[1]), int(found[2]))


def _read_here(path: str, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys of a file this rank takes.

    With as many ranks as wrote the files, each rank reads its own file, whole. Else each reads every file.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return np.ones(keys.shape, np.bool_)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if _named_ranks(path) == (rank, world_size):
        return np.ones(keys.shape, np.bool_)
    own: NDArray[np.bool_] = keys % world_size == rank
    return own
