# SPDX-License-Identifier: Apache-2.0
"""Peer: Keras' HashedCrossing, in an environment of its own, for TensorFlow and ours cannot share protobuf.

    python -m benchmarks.peer.keras_crossing --columns FOLDER

FOLDER has a column per file, in order of name: NumPy arrays of bytes (text) or int64. The layer runs as a
compiled graph over tensors made beforehand. It answers one JSON line at a time, {"seconds": …, "passes": …},
with the passes done and the CPU seconds of all its threads. benchmarks/cross_peer.py is the other end.
Thread safety: one thread. Invariant: the end of standard input ends the process.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

BINS: Final = 1 << 20


def make(folder: Path) -> Callable[[], Any]:
    """A pass of the layer over the columns."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    tensorflow: Any = import_module("tensorflow")
    layer = import_module("keras").layers.HashedCrossing(num_bins=BINS)
    columns = tuple(tensorflow.constant(np.load(path)) for path in sorted(folder.glob("*.npy")))
    graph = tensorflow.function(lambda *given: layer(given))
    crossed = graph(*columns).numpy()
    if crossed.shape != columns[0].shape or not 1 < len(np.unique(crossed)) <= BINS:
        raise AssertionError(f"the layer gave {crossed.shape} of {columns[0].shape} rows")
    return lambda: graph(*columns)


def main() -> None:
    """Entry point: one answer when it is ready, and one for each turn."""
    parser = argparse.ArgumentParser(description="Keras' HashedCrossing; started by benchmarks.cross_peer.")
    parser.add_argument("--columns", type=Path, required=True, help="folder with a .npy file per column")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # TensorFlow prints as it likes; the answers keep a line of their own
    run = make(arguments.columns)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        spent_s, done = 0.0, 0
        while spent_s < turn["seconds"] or done < turn["passes"]:
            before_s = time.process_time()
            run()
            spent_s += time.process_time() - before_s
            done += 1
        print(json.dumps({"done": done, "spent_s": spent_s}), file=answers, flush=True)
    os._exit(0)  # its threads may never come to an end


if __name__ == "__main__":
    main()
