# SPDX-License-Identifier: Apache-2.0
"""Which ids the newest records of the log touched, for pulls that ask for what changed since an LSN.

Nothing is kept until the first such pull. Thread safety: `note` is called under the shard's push lock;
`changed` from any thread.
"""

import threading
from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.kernel import places_among

from ps_server.table.arena import Ids
from ps_server.table.push import SALT

IDS_MAX: Final = 1 << 20
"""Ids kept, 8 MiB: forty steps of a usual batch."""


class RecentIds:
    """Ids of the newest records, as far as IDS_MAX reaches.

    Attributes
    ----------
    kept
        Whether records are noted.
    """

    def __init__(self) -> None:
        self.kept = False
        self._lock = threading.Lock()
        self._records: deque[tuple[int, Mapping[str, Ids]]] = deque()
        self._count = 0
        self._after_lsn = 0

    def begin(self, lsn: int) -> None:
        """Note the records above `lsn` from now on; the caller holds the push lock."""
        with self._lock:
            if not self.kept:
                self.kept, self._after_lsn = True, lsn

    def note(self, lsn: int, ids: Mapping[str, Ids]) -> None:
        """Copy the ids that record `lsn` touches, by table name, (n,) uint64 each; before rows change."""
        if not self.kept:
            return
        with self._lock:
            self._records.append((lsn, {name: some.copy() for name, some in ids.items()}))
            self._count += sum(some.shape[0] for some in ids.values())
            while self._count > IDS_MAX:
                self._after_lsn, forgotten = self._records.popleft()
                self._count -= sum(some.shape[0] for some in forgotten.values())

    def changed(self, table: str, ids: Ids, since: int) -> NDArray[np.bool_]:
        """Whether records above `since` may have changed each row; all of them where nobody knows.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) uint64.
        since
            An LSN.

        Returns
        -------
        ndarray
            (n,) bool.
        """
        with self._lock:
            known = self.kept and 0 < since >= self._after_lsn  # 0: the caller has no row yet
            touched = [some[table] for lsn, some in self._records if lsn > since and table in some]
        if not known:
            return np.ones(ids.shape[0], np.bool_)
        mask = np.zeros(ids.shape[0], np.bool_)
        mask[places_among(ids, touched, SALT)] = True
        return mask
