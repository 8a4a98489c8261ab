# SPDX-License-Identifier: Apache-2.0
"""Peer: PaddlePaddle's parameter server (paddle.distributed.fleet, C++, brpc), one server and one trainer.

A static program looks rows up in a MemorySparseTable and pushes their gradients; the rule on the server is
SparseNaiveSGDRule or StdAdaGradSGDRule, whose rate takes the sum of squares without the new gradient
(formula "paddle"). 2.6.2 is the last CPU wheel with the parameter server inside.

Pushes are asynchronous and merged by the trainer (up to 12, its default): a batch's time is that of the
executor's run, and the wait for what is outstanding is charged at the end of each turn.
"""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peer.driver import (
    DIM,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Ids,
    Rows,
    free_port,
    listening,
    main,
    start_server,
    wait_for,
)

TABLE: Final = "embedding"
TABLE_SHARDS: Final = 16
NOMINAL_ROWS: Final = 2_000_000
"""The program wants a size; the table is a hash map and takes any id."""


def set_environment(role: str, port: int, work: Path) -> None:
    """What fleet reads from the environment."""
    os.environ.update(
        PADDLE_PSERVERS_IP_PORT_LIST=f"127.0.0.1:{port}", PADDLE_TRAINERS_NUM="1", PADDLE_TRAINER_ID="0",
        POD_IP="127.0.0.1", PADDLE_PORT=str(port), TRAINING_ROLE=role, PADDLE_WITH_GLOO="0",
        PADDLE_TRAINER_ENDPOINTS="127.0.0.1:1", GLOG_minloglevel="2",
        FLAGS_rocksdb_path=str(work / "rocksdb"),
    )  # fmt: skip


def table_config(optimizer: str) -> dict[str, Any]:
    """Config of the sparse table: its accessor's rules."""
    config: dict[str, Any] = {
        "table_class": "MemorySparseTable", "shard_num": TABLE_SHARDS,
        "accessor.accessor_class": "SparseAccessor",
    }  # fmt: skip
    for part in ("embed_sgd_param", "embedx_sgd_param"):
        prefix = f"accessor.{part}."
        if optimizer == "sgd":
            config |= {
                f"{prefix}name": "SparseNaiveSGDRule", f"{prefix}naive.learning_rate": LEARNING_RATE,
                f"{prefix}naive.initial_range": 0.0,
            }  # fmt: skip
        else:
            config |= {
                f"{prefix}name": "StdAdaGradSGDRule", f"{prefix}adagrad.learning_rate": LEARNING_RATE,
                f"{prefix}adagrad.initial_range": 0.0, f"{prefix}adagrad.initial_g2sum": INITIAL_ACCUMULATOR,
            }  # fmt: skip
    return config


class Program:
    """The static program, built the same way in trainer and server.

    Parameters
    ----------
    optimizer
        "sgd" or "adagrad".
    """

    def __init__(self, optimizer: str) -> None:
        warnings.filterwarnings("ignore")
        self.paddle: Any = import_module("paddle")
        self.fleet: Any = import_module("paddle.distributed.fleet")
        # its own __repr__ needs protobuf's removed C++ backend
        self.fleet.DistributedStrategy.__repr__ = lambda _strategy: "strategy"
        paddle = self.paddle
        paddle.enable_static()
        self.fleet.init(self.fleet.PaddleCloudRoleMaker())
        ids = paddle.static.data("ids", [None, 1], "int64")
        gradients = paddle.static.data("gradients", [None, DIM], "float32")
        zeros = paddle.nn.initializer.Constant(0.0)
        looked_up = paddle.static.nn.sparse_embedding(
            ids, [NOMINAL_ROWS, DIM], table_class="MemorySparseTable",
            param_attr=paddle.ParamAttr(name=TABLE, initializer=zeros),
        )  # fmt: skip
        self.rows = paddle.reshape(looked_up, [-1, DIM])
        loss = paddle.sum(self.rows * gradients)
        strategy = self.fleet.DistributedStrategy()
        strategy.a_sync = True
        strategy.sparse_table_configs = {
            TABLE: {
                f"table_parameters.{TABLE}.{key}": value for key, value in table_config(optimizer).items()
            }
        }
        rule = self.fleet.distributed_optimizer(paddle.optimizer.SGD(LEARNING_RATE), strategy)
        rule.minimize(loss)


class PaddleServer:
    """The adapter.

    Parameters
    ----------
    work
        Folder for its files.
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only, pushes acknowledged before they are applied"

    def __init__(self, work: Path, optimizer: str) -> None:
        self._optimizer = optimizer
        self.formula = "adagrad" if optimizer == "sgd" else "paddle"
        port = free_port()
        module = [
            sys.executable,
            "-m",
            "benchmarks.peer.paddle_brpc",
            "--serve",
            str(port),
            str(work),
            optimizer,
        ]
        self._server = start_server(module)
        self.server_pids = [self._server.pid]
        set_environment("TRAINER", port, work)
        program = Program(optimizer)
        wait_for("Paddle's server", lambda: listening(port))
        paddle = program.paddle
        self._executor = paddle.static.Executor(paddle.CPUPlace())
        self._executor.run(paddle.static.default_startup_program())
        program.fleet.init_worker()
        self._worker = program.fleet.fleet._runtime_handle._worker
        self._main = paddle.static.default_main_program()
        self._pull_program = self._main._prune_with_input(["ids"], [program.rows])
        self._rows_name = program.rows.name
        self.name = (
            f"paddlepaddle {paddle.__version__} brpc parameter server, MemorySparseTable, "
            f"{TABLE_SHARDS} table shards, asynchronous push"
        )

    def _push(self, ids: Ids, gradients: Rows) -> None:
        """Paddle multiplies a gradient by the number of ids in the batch; here it is divided out."""
        feed = {"ids": ids.view(np.int64)[:, None], "gradients": gradients / np.float32(ids.shape[0])}
        self._executor.run(self._main, feed=feed, fetch_list=[self._rows_name])

    def load(self, ids: Ids, rows: Rows) -> None:
        """The first push makes a row, the second its second part; SGD's second carries the rows."""
        zeros = np.zeros_like(rows)
        self._push(ids, zeros)
        self._worker.client_flush()
        self._push(ids, rows / np.float32(-LEARNING_RATE) if self._optimizer == "sgd" else zeros)
        self._worker.client_flush()

    def pull(self, ids: Ids) -> Rows:
        """The program without its gradients."""
        feed = {"ids": ids.view(np.int64)[:, None]}
        rows: Rows = self._executor.run(self._pull_program, feed=feed, fetch_list=[self._rows_name])[0]
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """One run of the whole program: it pulls the rows itself."""
        self._push(distinct, gradients)

    def finish(self) -> None:
        """Wait for the merged pushes; the library polls, at 100 ms."""
        self._worker.client_flush()

    def close(self) -> None:
        """Kill the server."""
        self._server.kill()
        self._server.wait()


def serve(port: int, work: Path, optimizer: str) -> None:
    """Be the server until killed."""
    set_environment("PSERVER", port, work)
    program = Program(optimizer)
    program.fleet.init_server()
    program.fleet.run_server()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main(PaddleServer)
