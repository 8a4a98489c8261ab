# SPDX-License-Identifier: Apache-2.0
"""What a trainer imports: pull rows, push gradients. `ps_client.torch` has the PyTorch modules.

client = connect("embedded:/data/model", config={"tables": [{"name": "user", "dim": 16}]})
rows = client.pull("user", ids)
client.push("user", ids, gradients)
"""

from ps_client.client import Client
from ps_client.connection import connect
from ps_client.pace.asynchronous import AsyncClient, connect_async
from ps_client.pace.pipeline import Pipeline
from ps_client.pace.trainer import Trainer
from ps_client.report import SavedTables
from ps_client.step import StepClient, UniqueRows
from ps_client.table import Table

__all__ = [
    "AsyncClient", "Client", "Pipeline", "SavedTables", "StepClient", "Table", "Trainer", "UniqueRows",
    "connect", "connect_async",
]  # fmt: skip
