# SPDX-License-Identifier: Apache-2.0
"""Peer: TensorFlow Recommenders Addons, its variable of rows by id, in graph mode.

PEER_MODE=server puts a cuckoo-hash variable into a TensorFlow parameter server, a process of its own over
TensorFlow's gRPC; PEER_MODE=process keeps it in the trainer's; PEER_MODE=redis keeps the rows, and the
optimizer's slots, in a redis-server by TFRA's Redis table. The optimizer is TensorFlow's Adagrad (or gradient
descent) behind TFRA's wrapper.
"""

import json
import logging
import os
import shutil
import sys
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

CAPACITY: Final = 1 << 22
"""Slots to begin with, so that it does not grow while it is timed."""

THREADS: Final = 2
MODULE: Final = "benchmarks.peer.tfra"

KEYS_AT_ONCE: Final = 1024
"""Keys in one of the Redis table's commands: its default. 4096 was no faster here, 16384 slower."""

STANDALONE: Final = 2
KEEP_NOTHING: Final = 2
"""The Redis table's codes for one server without a cluster, and for no dump into a file."""


def load_tensorflow() -> Any:
    """TensorFlow in graph mode, quiet, without a GPU."""
    os.environ.update(
        TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", TF_USE_LEGACY_KERAS="1",
        TF_HASHTABLE_INIT_SIZE=str(CAPACITY),
    )  # fmt: skip
    logging.disable(logging.WARNING)
    tensorflow: Any = import_module("tensorflow")
    tensorflow.compat.v1.disable_eager_execution()
    return tensorflow


class Tfra:
    """The adapter.

    Parameters
    ----------
    work
        Folder for the Redis table's config.
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only"
    formula = "adagrad"

    def __init__(self, work: Path, optimizer: str) -> None:
        self._tensorflow = tensorflow = load_tensorflow()
        addons: Any = import_module("tensorflow_recommenders_addons")
        mode = os.environ["PEER_MODE"]
        self._server: Any = None
        self.server_pids, target, trainer, place = [os.getpid()], "", "/CPU:0", "/CPU:0"
        creator, table = None, "cuckoo table in the trainer's process"
        if mode == "server":
            target, table = self._start_server(), "cuckoo table in a TensorFlow parameter server (gRPC)"
            trainer, place = "/job:worker/replica:0/task:0", "/job:ps/replica:0/task:0/device:CPU:0"
        elif mode == "redis":
            creator = self._start_redis(addons.dynamic_embedding, work)
            table = "Redis table in a redis-server (TCP)"
        self._build(addons.dynamic_embedding, optimizer, trainer, place, creator)
        v1 = tensorflow.compat.v1
        config = v1.ConfigProto(inter_op_parallelism_threads=THREADS, intra_op_parallelism_threads=THREADS)
        session = v1.Session(target, config=config)
        session.run(v1.global_variables_initializer())
        self._do_upsert = session.make_callable(self._upsert, [self._ids, self._values])
        self._do_pull = session.make_callable(self._looked_up, [self._ids])
        self._do_step = session.make_callable([self._trained, self._train], [self._ids, self._values])
        self.name = (
            f"TFRA {addons.__version__}, TensorFlow {tensorflow.__version__}, {table}, {THREADS} threads"
        )

    def _start_server(self) -> str:
        cluster = {"ps": [f"127.0.0.1:{free_port()}"], "worker": [f"127.0.0.1:{free_port()}"]}
        self._server = start_server([sys.executable, "-m", MODULE, "--serve", json.dumps(cluster)])
        self.server_pids = [self._server.pid]
        wait_for("the parameter server", lambda: listening(int(cluster["ps"][0].split(":")[1])))
        specification = self._tensorflow.train.ClusterSpec(cluster)
        server = self._tensorflow.distribute.Server(specification, job_name="worker", task_index=0)
        return str(server.target)

    def _start_redis(self, dynamic: Any, work: Path) -> Any:
        """A redis-server, and what makes tables in it."""
        binary = shutil.which("redis-server")
        if binary is None:
            raise FileNotFoundError("redis-server is not on PATH")
        port = free_port()
        flags = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "no", "--dir", str(work)]
        self._server = start_server([binary, *flags, "--save", ""])
        self.server_pids = [self._server.pid]
        wait_for("redis-server", lambda: listening(port))
        config = work / f"tfra-redis-{port}.json"
        settings = {
            "redis_connection_mode": STANDALONE, "redis_host_ip": ["127.0.0.1"], "redis_host_port": [port],
            "redis_socket_timeout": 60_000, "keys_sending_size": KEYS_AT_ONCE,
            "table_store_mode": KEEP_NOTHING,
        }  # fmt: skip
        config.write_text(json.dumps(settings), encoding="utf-8")
        return dynamic.RedisTableCreator(config=dynamic.RedisTableConfig(redis_config_abs_dir=str(config)))

    def _build(self, dynamic: Any, optimizer: str, trainer: str, place: str, creator: Any) -> None:
        """The graph: upsert, lookup, and one optimizer step over ids and the gradients of their rows."""
        tensorflow, v1 = self._tensorflow, self._tensorflow.compat.v1
        with tensorflow.device(trainer):
            self._ids = v1.placeholder(tensorflow.int64, [None])
            self._values = v1.placeholder(tensorflow.float32, [None, DIM])
        variable = dynamic.get_variable(
            "embedding", dim=DIM, devices=[place], initializer=0.0, init_size=CAPACITY, kv_creator=creator
        )
        self._upsert = variable.upsert(self._ids, self._values)
        with tensorflow.device(trainer):
            distinct, inverse = tensorflow.unique(self._ids)
            self._looked_up = tensorflow.gather(variable.lookup(distinct), inverse)
            self._trained, weights = dynamic.embedding_lookup(variable, self._ids, return_trainable=True)
            loss = tensorflow.reduce_sum(self._trained * self._values)
        rule = (
            v1.train.GradientDescentOptimizer(LEARNING_RATE)
            if optimizer == "sgd"
            else v1.train.AdagradOptimizer(LEARNING_RATE, INITIAL_ACCUMULATOR)
        )
        wrapped = dynamic.DynamicEmbeddingOptimizer(rule)
        with tensorflow.device(trainer):
            gradients = wrapped.compute_gradients(loss, var_list=[weights])
        applied = wrapped.apply_gradients(gradients)
        self._train = getattr(applied, "op", applied)

    def load(self, ids: Ids, rows: Rows) -> None:
        """Upsert rows."""
        self._do_upsert(ids.view(np.int64), rows)

    def pull(self, ids: Ids) -> Rows:
        """tf.unique, lookup of the distinct ids, tf.gather: faster than looking up repeats."""
        rows: Rows = self._do_pull(ids.view(np.int64))
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """One session run: lookup, gradient, update; the rows come back to Python."""
        self._do_step(distinct.view(np.int64), gradients)

    def finish(self) -> None:
        """Every call has waited already."""

    def close(self) -> None:
        """Kill the server."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()


def serve(cluster: dict[str, list[str]]) -> None:
    """Be the parameter server until killed."""
    tensorflow = load_tensorflow()
    import_module("tensorflow_recommenders_addons")  # its ops run here
    specification = tensorflow.train.ClusterSpec(cluster)
    tensorflow.distribute.Server(specification, job_name="ps", task_index=0).join()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(json.loads(sys.argv[2]))
    else:
        main(Tfra)
