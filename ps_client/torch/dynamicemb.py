# SPDX-License-Identifier: Apache-2.0
"""The `Storage` of NVIDIA's dynamicemb over a client: the memory behind its cache on the GPU.

dynamicemb keeps hot rows on the GPU and steps them there; a Storage has all of them. The contract is that of
corelib/dynamicemb/dynamicemb/types.py of NVIDIA/recsys-examples of May 2026 (later ones differ): a value is
an embedding with the optimizer's state behind it, and a score of 64 bits says what a cache evicts first.

    table's row, dim D + S + 3 │ embedding D │ state S │ score, 3 pieces of 24 bits │

Such a table needs an optimizer without state and dtype fp32: nobody pushes to it. Thread safety: that of the
client.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rowhouse.error import ConfigError, InvalidRequestError, StoreError
from torch import Tensor

from ps_client.client import Client
from ps_client.row import Rows
from ps_client.table import Table, find_table
from ps_client.torch.lookup import id_bits

try:
    from dynamicemb.types import Storage as _Storage  # type: ignore[import-not-found]
except Exception:  # not installed, or its compiled part does not load: the contract is the methods
    _Storage = object

SCORE_WORDS: Final = 3
"""A score is kept as numbers below 2^24, which float32 holds exactly."""


class RemoteStorage(_Storage):  # type: ignore[misc]
    """A Storage whose rows live on the shards; one table of ours for each of dynamicemb's.

    Parameters
    ----------
    client
        A connected client.
    tables
        Names of our tables, in the order of dynamicemb's table ids.
    embedding_dims
        Weights per embedding of each. What the table's dim has beyond, but for the 3 numbers of the score, is
        the optimizer's state.
    initial_state
        What the state of a new row begins with.

    Raises
    ------
    UnknownTableError, ConfigError
        The cluster has no such table; or its dim is too small, its dtype not fp32, or its optimizer keeps a
        state.
    """

    def __init__(
        self,
        client: Client,
        tables: Sequence[str],
        embedding_dims: Sequence[int],
        *,
        initial_state: float = 0.0,
    ) -> None:
        if len(tables) != len(embedding_dims) or not tables:
            raise InvalidRequestError(
                f"{len(tables)} tables and {len(embedding_dims)} embedding_dims; as many"
            )
        self._client, self._initial_state = client, float(initial_state)
        self._tables = [find_table(client.tables, name) for name in tables]
        self._dims = list(embedding_dims)
        for table, dim in zip(self._tables, self._dims, strict=True):
            _check_table(table, dim)

    # ------------------------------------------------------------ shapes
    def embedding_dtype(self) -> torch.dtype:
        """float32."""
        return torch.float32

    def embedding_dim(self, table_id: int) -> int:
        """Weights of a table's embeddings."""
        return self._dims[table_id]

    def value_dim(self, table_id: int) -> int:
        """Weights and state of a table's rows."""
        return self._tables[table_id].dim - SCORE_WORDS

    def max_embedding_dim(self) -> int:
        """The largest `embedding_dim`."""
        return max(self._dims)

    def max_value_dim(self) -> int:
        """The width of values: the largest embedding, and the largest state behind it."""
        states = [self.value_dim(number) - dim for number, dim in enumerate(self._dims)]
        return self.max_embedding_dim() + max(states)

    def init_optimizer_state(self) -> float:
        """What the state of a new row begins with."""
        return self._initial_state

    # ------------------------------------------------------------ rows
    def find(
        self,
        unique_keys: Tensor,
        table_ids: Tensor,
        copy_mode: Any,
        lfu_accumulated_frequency: Tensor | None = None,
    ) -> tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rows that are there.

        Parameters
        ----------
        unique_keys
            (n,) int64, taken bit for bit.
        table_ids
            (n,) integers.
        copy_mode
            dynamicemb's CopyMode: EMBEDDING for the embeddings alone, VALUE with the state.
        lfu_accumulated_frequency
            (n,) int64, the scores to give back for missing keys; None: 0.

        Returns
        -------
        tuple
            How many are missing; their keys, positions and scores; (n,) bool whether each is there; (n,)
            int64 scores; (n, max_embedding_dim or max_value_dim) float32, zeros for missing ones.
        """
        device, count = unique_keys.device, unique_keys.shape[0]
        whole = str(getattr(copy_mode, "value", copy_mode)) == "value"
        width = self.max_value_dim() if whole else self.max_embedding_dim()
        values = np.zeros((count, width), np.float32)
        scores, founds = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        ids = id_bits(unique_keys)
        for number, places in self._by_table(table_ids):
            rows = self._client.read_rows(self._tables[number].name, ids[places])
            order = np.argsort(ids[places])
            at = places[order[np.searchsorted(ids[places], rows.ids, sorter=order)]]
            founds[at], scores[at] = True, _scores_of(rows)
            values[at] = self._as_value(number, rows.weights)[:, :width]
        missing = np.flatnonzero(~founds)
        wanted = lfu_accumulated_frequency
        missing_scores = (
            np.zeros(missing.shape[0], np.int64) if wanted is None else wanted.cpu().numpy()[missing]
        )
        parts = [ids.view(np.int64)[missing], missing, missing_scores, founds, scores, values]
        moved = [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts]
        return (missing.shape[0], *moved)  # type: ignore[return-value]

    def insert(
        self,
        keys: Tensor,
        table_ids: Tensor,
        values: Tensor,
        scores: Tensor | None = None,
        preserve_existing: bool = False,
    ) -> None:
        """Assign rows; logged, and applied once, as `Client.assign`.

        Parameters
        ----------
        keys
            (n,) int64, each once within its table.
        table_ids
            (n,) integers.
        values
            (n, max_value_dim), as `find` gives them.
        scores
            (n,) int64; None: 0.
        preserve_existing
            Rows that are there keep their scores; their values are replaced all the same.
        """
        ids, given = id_bits(keys), values.detach().to("cpu", torch.float32).numpy()
        marks = (
            np.zeros(ids.shape[0], np.int64) if scores is None else np.array(scores.cpu().numpy(), np.int64)
        )
        for number, places in self._by_table(table_ids):
            if preserve_existing:
                there = self._client.read_rows(self._tables[number].name, ids[places])
                known = dict(zip(there.ids.tolist(), _scores_of(there).tolist(), strict=True))
                for place in places[np.isin(ids[places], there.ids)]:
                    marks[place] = known[int(ids[place])]
            rows = self._as_row(number, given[places], marks[places])
            self._client.assign(self._tables[number].name, ids[places], rows)

    def _by_table(self, table_ids: Tensor) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Positions of the keys of each table."""
        numbers = table_ids.cpu().numpy().astype(np.int64)
        for number in np.unique(numbers).tolist():
            if not 0 <= number < len(self._tables):
                raise InvalidRequestError(f"table id {number}; there are {len(self._tables)} tables")
            yield number, np.flatnonzero(numbers == number)

    def _as_value(self, number: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """A table's rows as values: the embedding, padding, the state, padding."""
        dim, end = self._dims[number], self.value_dim(number)
        values = np.zeros((weights.shape[0], self.max_value_dim()), np.float32)
        values[:, :dim] = weights[:, :dim]
        start = self.max_embedding_dim()
        values[:, start : start + end - dim] = weights[:, dim:end]
        return values

    def _as_row(
        self, number: int, values: NDArray[np.float32], scores: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        dim, end, start = self._dims[number], self.value_dim(number), self.max_embedding_dim()
        bits = scores.view(np.uint64)[:, None] >> np.array([0, 24, 48], np.uint64)
        pieces = (bits & np.uint64((1 << 24) - 1)).astype(np.float32)
        return np.concatenate([values[:, :dim], values[:, start : start + end - dim], pieces], axis=1)

    # ------------------------------------------------------------ whole tables
    def export_keys_values(
        self, device: torch.device, batch_size: int = 65536, table_id: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
        """Every row of a table: keys, embeddings, states (None where there are none) and scores.

        Parameters
        ----------
        device
            Where they go.
        batch_size
            The most rows at a time.
        table_id
            Number of the table.
        """
        dim, end = self._dims[table_id], self.value_dim(table_id)
        for page in self._client.list_rows(self._tables[table_id].name):
            for start in range(0, len(page), batch_size):
                rows = page.chosen(np.arange(start, min(start + batch_size, len(page))))
                parts = [
                    rows.ids.view(np.int64),
                    rows.weights[:, :dim],
                    rows.weights[:, dim:end],
                    _scores_of(rows),
                ]
                keys, embeddings, states, scores = (
                    torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts
                )
                yield keys, embeddings, states if end > dim else None, scores

    def dump(
        self,
        table_id: int,
        meta_file_path: str,
        emb_key_path: str,
        embedding_file_path: str,
        score_file_path: str | None,
        opt_file_path: str | None,
        timestamp: int,
    ) -> None:
        """Write a table as files of little-endian int64 keys and scores and float32 rows, with facts in JSON.

        Parameters
        ----------
        table_id
            Number of the table.
        meta_file_path, emb_key_path, embedding_file_path, score_file_path, opt_file_path
            The files; None: not written.
        timestamp
            Kept in the JSON.
        """
        paths = (emb_key_path, embedding_file_path, opt_file_path, score_file_path)
        try:
            count = 0
            with ExitStack() as opened:
                files = [
                    None if path is None else opened.enter_context(Path(path).open("wb")) for path in paths
                ]
                for parts in self.export_keys_values(torch.device("cpu"), table_id=table_id):
                    count += parts[0].shape[0]
                    for file, part in zip(files, parts, strict=True):
                        if file is not None and part is not None:
                            part.numpy().tofile(file)
            facts = {"rows": count, "dim": self._dims[table_id], "value_dim": self.value_dim(table_id)}
            Path(meta_file_path).write_text(json.dumps({**facts, "timestamp": timestamp}), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"table {self._tables[table_id].name!r}: dump: {error}") from error

    def load(
        self,
        table_id: int,
        meta_file_path: str,
        emb_file_path: str,
        embedding_file_path: str,
        score_file_path: str | None,
        opt_file_path: str | None,
        include_optim: bool,
        timestamp: int,
    ) -> None:
        """Assign the rows that `dump` wrote.

        Parameters
        ----------
        table_id
            Number of the table.
        meta_file_path, emb_file_path, embedding_file_path, score_file_path, opt_file_path
            The files; the second has the keys. Without scores they are 0, without states the initial one.
        include_optim
            Whether the states are taken.
        timestamp
            Not read: every row of the files is loaded.
        """
        dim, state = self._dims[table_id], self.value_dim(table_id) - self._dims[table_id]
        try:
            keys = np.fromfile(emb_file_path, "<i8")
            rows = np.fromfile(embedding_file_path, "<f4").reshape(-1, dim)
            scores = (
                np.fromfile(score_file_path, "<i8") if score_file_path else np.zeros(keys.shape[0], "<i8")
            )
            states = np.full((keys.shape[0], state), self._initial_state, np.float32)
            if include_optim and opt_file_path and state:
                states = np.fromfile(opt_file_path, "<f4").reshape(-1, state)
        except (OSError, ValueError) as error:
            raise StoreError(f"table {self._tables[table_id].name!r}: load: {error}") from error
        values = np.zeros((keys.shape[0], self.max_value_dim()), np.float32)
        if not keys.shape[0] == rows.shape[0] == states.shape[0] == scores.shape[0]:
            raise InvalidRequestError(f"{meta_file_path}: its files have unequal numbers of rows")
        values[:, :dim] = rows
        values[:, self.max_embedding_dim() : self.max_embedding_dim() + state] = states
        numbers = torch.full(keys.shape, table_id)
        self.insert(torch.from_numpy(keys), numbers, torch.from_numpy(values), torch.from_numpy(scores))


def _scores_of(rows: Rows) -> NDArray[np.int64]:
    pieces = rows.weights[:, -SCORE_WORDS:].astype(np.uint64)
    scores: NDArray[np.uint64] = pieces[:, 0] | pieces[:, 1] << np.uint64(24) | pieces[:, 2] << np.uint64(48)
    return scores.view(np.int64)


def _check_table(table: Table, dim: int) -> None:
    kind = table.config.get("optimizer", {}).get("kind")
    if table.dtype != "fp32" or kind not in ("sgd", "fobos"):
        raise ConfigError(
            f"table {table.name!r} is {table.dtype} with optimizer {kind}; a storage needs fp32 and sgd, "
            "because the trainers step the rows"
        )
    if not 1 <= dim <= table.dim - SCORE_WORDS:
        raise ConfigError(
            f"table {table.name!r} has dim {table.dim}; for embeddings of {dim} it must have at least "
            f"{dim + SCORE_WORDS}, and the optimizer's state more: 3 numbers are the score"
        )
