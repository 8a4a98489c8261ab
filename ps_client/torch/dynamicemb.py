# SPDX-License-Identifier: Apache-2.0
"""The `Storage` of NVIDIA's dynamicemb over a client: the memory behind its cache on the GPU.

dynamicemb keeps hot rows on the GPU and steps them there; a Storage has all of them. The contract is that of
corelib/dynamicemb of NVIDIA/recsys-examples at commit 43465aea (2026): types.py, and what its callers use
beyond (older commits differ). A value is an embedding with the optimizer's state behind it, and a score of 64
bits says what a cache evicts first.

    table's row, dim D + S + 3 │ embedding D │ state S │ score, 3 pieces of 24 bits │

Such a table needs an optimizer without state and dtype fp32: nobody pushes to it. Thread safety: that of the
client.
"""

import json
from collections.abc import Iterator, Sequence
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
from ps_client.torch.dynamicemb_file import RowFiles
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
    optimizer
        dynamicemb's optimizer, which it passes to `external_storage`: it says what a new row's state begins
        with, and dumps keep its settings. None: states begin with 0, and dumps keep no settings.

    Raises
    ------
    UnknownTableError, ConfigError
        The cluster has no such table; or its dim is too small or does not fit the optimizer, its dtype is not
        fp32, or its optimizer keeps a state.
    """

    _state: Final = None
    """dynamicemb's write-back of a cache asks here for a state on the GPU."""

    def __init__(
        self,
        client: Client,
        tables: Sequence[str],
        embedding_dims: Sequence[int],
        *,
        optimizer: Any = None,
    ) -> None:
        if len(tables) != len(embedding_dims) or not tables:
            raise InvalidRequestError(
                f"{len(tables)} tables and {len(embedding_dims)} embedding_dims; as many"
            )
        self._client, self._optimizer = client, optimizer
        self._tables = [find_table(client.tables, name) for name in tables]
        self._dims = list(embedding_dims)
        for table, dim in zip(self._tables, self._dims, strict=True):
            _check_table(table, dim, optimizer)
        self._dims_of: dict[bool, Tensor] = {}

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

    def embedding_dims(self, on_device: bool = False) -> Tensor:
        """Each table's `embedding_dim`.

        Parameters
        ----------
        on_device
            Whether it is on the current GPU, where there is one.

        Returns
        -------
        Tensor
            (tables,) int64, the same one at each call.
        """
        cuda = on_device and torch.cuda.is_available()
        if cuda not in self._dims_of:
            self._dims_of[cuda] = torch.tensor(self._dims, device="cuda" if cuda else "cpu")
        return self._dims_of[cuda]

    def all_dims_vec4(self) -> bool:
        """Whether 4 divides every `embedding_dim` and every `value_dim`."""
        sizes = self._dims + [self.value_dim(number) for number in range(len(self._dims))]
        return all(size % 4 == 0 for size in sizes)

    def init_optimizer_state(self) -> float:
        """What the state of a new row begins with."""
        return 0.0 if self._optimizer is None else float(self._optimizer.get_initial_optim_states())

    # ------------------------------------------------------------ rows
    def find(
        self,
        unique_keys: Tensor,
        table_ids: Tensor,
        copy_mode: Any,
        lfu_accumulated_frequency: Tensor | None = None,
    ) -> tuple[int, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Rows that are there; nothing is written.

        Parameters
        ----------
        unique_keys
            (n,) int64, taken bit for bit.
        table_ids
            (n,) integers.
        copy_mode
            dynamicemb's CopyMode: EMBEDDING for the embeddings alone, VALUE with the state.
        lfu_accumulated_frequency
            (n,) integers, how often each key came since; None where scores are no frequencies.

        Returns
        -------
        tuple
            How many are missing; their keys, positions, table ids and frequencies (None where none were
            given); (n,) bool whether each is there; (n,) int64 scores, with the frequencies added, 0 for
            missing ones; (n, max_embedding_dim or max_value_dim) float32, zeros for missing ones. All on the
            device of `unique_keys`.
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
        missing_scores = None
        if lfu_accumulated_frequency is not None:
            frequencies = lfu_accumulated_frequency.cpu().numpy()
            missing_scores = torch.from_numpy(frequencies[missing]).to(device)
            scores[founds] += frequencies[founds].astype(np.int64)
        keys = torch.from_numpy(ids.view(np.int64)[missing]).to(device, unique_keys.dtype)
        numbers = table_ids.cpu().numpy().astype(np.int64)
        at_missing, of_missing, there, all_scores, all_values = (
            torch.from_numpy(part).to(device) for part in (missing, numbers[missing], founds, scores, values)
        )
        return len(missing), keys, at_missing, of_missing, missing_scores, there, all_scores, all_values

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
            (n,) integers; None: 0.
        preserve_existing
            Rows that are there keep their scores; their values are replaced all the same.
        """
        ids, given = id_bits(keys), values.detach().to("cpu", torch.float32).numpy()
        marks = np.zeros(ids.shape[0], np.int64)
        if scores is not None:
            marks = scores.cpu().numpy().astype(np.int64)
        self._check_rows(ids.shape[0], table_ids, given, marks)
        for number, places in self._by_table(table_ids):
            if preserve_existing:
                there = self._client.read_rows(self._tables[number].name, ids[places])
                known = dict(zip(there.ids.tolist(), _scores_of(there).tolist(), strict=True))
                for place in places[np.isin(ids[places], there.ids)]:
                    marks[place] = known[int(ids[place])]
            rows = self._as_row(number, given[places], marks[places])
            self._client.assign(self._tables[number].name, ids[places], rows)

    def _check_rows(
        self, count: int, table_ids: Tensor, values: NDArray[np.float32], scores: NDArray[np.int64]
    ) -> None:
        shapes = [tuple(part.shape) for part in (table_ids, values, scores)]
        if shapes != [(count,), (count, self.max_value_dim()), (count,)]:
            raise InvalidRequestError(
                f"{count} keys with table_ids, values and scores of shapes {shapes}; they must be "
                f"({count},), ({count}, {self.max_value_dim()}) and ({count},)"
            )
        for _ in self._by_table(table_ids):  # a wrong table id is refused before anything is assigned
            pass

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
        include_optim: bool = True,
        include_meta: bool = True,
        current_score: int | None = None,
        timestamp: int = 0,
    ) -> None:
        """Write the rows of a table that are the rank's whom `emb_key_path` names (see `dynamicemb_file`).

        Parameters
        ----------
        table_id
            Number of the table.
        meta_file_path, emb_key_path, embedding_file_path, score_file_path, opt_file_path
            The files; None: not written. The first has the optimizer's settings and `current_score`, in JSON.
        include_optim
            Whether the states are written.
        include_meta
            Whether the first file is written; dynamicemb has rank 0 write it.
        current_score
            What `load` gives back.
        timestamp
            Not used: scores are written as they are.
        """
        files = RowFiles(
            keys=emb_key_path,
            embeddings=embedding_file_path,
            scores=score_file_path,
            states=opt_file_path if include_optim else None,
        )
        width = self._saved_state_dim(table_id)
        try:
            files.write(
                (keys, embeddings, None if states is None else states[:, :width], scores)
                for keys, embeddings, states, scores in self.export_keys_values(
                    torch.device("cpu"), table_id=table_id
                )
            )
            if include_meta:
                facts = {} if self._optimizer is None else dict(self._optimizer.get_opt_args())
                facts |= {} if current_score is None else {"step_score": current_score}
                Path(meta_file_path).write_text(json.dumps(facts), encoding="utf-8")
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
        include_optim: bool = True,
        timestamp: int = 0,
    ) -> int | None:
        """Assign the rows that `dump` wrote: of all ranks' files together, each row by one rank.

        Parameters
        ----------
        table_id
            Number of the table.
        meta_file_path, emb_file_path, embedding_file_path, score_file_path, opt_file_path
            The files; the second has the keys. Without scores they are 0. Without states, or with those of
            another kind of optimizer, states begin anew.
        include_optim
            Whether the states are taken, and with them the optimizer's settings.
        timestamp
            Not used: scores are taken as they are.

        Returns
        -------
        int or None
            The `current_score` of the dump.
        """
        optimizer, dim = self._optimizer, self._dims[table_id]
        try:
            meta = Path(meta_file_path)
            facts = json.loads(meta.read_text(encoding="utf-8")) if meta.exists() else {}
            if optimizer is not None and (kind := facts.get("opt_type")) is not None:
                include_optim = include_optim and kind == optimizer.get_opt_args()["opt_type"]
            files = RowFiles(
                keys=emb_file_path,
                embeddings=embedding_file_path,
                scores=score_file_path,
                states=opt_file_path if include_optim else None,
            )
            keys, rows, states, scores = files.read(dim, self._saved_state_dim(table_id))
        except InvalidRequestError:
            raise
        except (OSError, ValueError) as error:
            raise StoreError(f"table {self._tables[table_id].name!r}: load: {error}") from error
        values = np.zeros((keys.shape[0], self.max_value_dim()), np.float32)
        values[:, :dim] = rows
        start = self.max_embedding_dim()
        values[:, start:] = self.init_optimizer_state()
        if states is not None:
            values[:, start : start + states.shape[1]] = states
            if optimizer is not None and "opt_type" in facts:
                optimizer.set_opt_args(facts)
        numbers = torch.full(keys.shape, table_id)
        self.insert(torch.from_numpy(keys), numbers, torch.from_numpy(values), torch.from_numpy(scores))
        score: int | None = facts.get("step_score")
        return score

    def _saved_state_dim(self, table_id: int) -> int:
        """Numbers of a row's state in files: dynamicemb leaves out what only aligns it on the GPU."""
        dim = self._dims[table_id]
        saved = 0 if self._optimizer is None else int(self._optimizer.get_ckpt_state_dim(dim))
        return saved or self.value_dim(table_id) - dim


def _scores_of(rows: Rows) -> NDArray[np.int64]:
    pieces = rows.weights[:, -SCORE_WORDS:].astype(np.uint64)
    scores: NDArray[np.uint64] = pieces[:, 0] | pieces[:, 1] << np.uint64(24) | pieces[:, 2] << np.uint64(48)
    return scores.view(np.int64)


def _check_table(table: Table, dim: int, optimizer: Any) -> None:
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
    if optimizer is not None and table.dim != (wanted := dim + optimizer.get_state_dim(dim) + SCORE_WORDS):
        raise ConfigError(
            f"table {table.name!r} has dim {table.dim}; for embeddings of {dim}, the optimizer's state of "
            f"{optimizer.get_state_dim(dim)} and the score of {SCORE_WORDS} it must be {wanted}"
        )
