# SPDX-License-Identifier: Apache-2.0
"""The whole way on one machine: log, ids, cluster, training, kill -9, recovery, report.

    python -m examples.demo --example click
    python -m examples.demo --example retail --data online_retail.parquet
    python -m examples.demo --example dota2 --data dota2_matches.parquet

Each arm (without crosses, with them) is trained once per seed by two trainers against two shards. A
checkpoint is taken while the last run still trains, so what that run pushed after it exists in memory and
in the push log only when both shards are killed.

Exit codes: 0 done; 1 a child failed, or the AUC after recovery differs; 2 a wrong flag or file; 130
interrupted. Whatever the code, no process stays behind. Thread safety: a process's main thread.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rowhouse.error import RowhouseError
from rowhouse.program import screen

from examples.cluster import LocalCluster
from examples.dataset import derive, distinct_ids, write
from examples.page import write_page
from examples.process import Child, ChildError
from examples.recipe import ARMS, EXAMPLES, Example, Run
from examples.report import Result, show, write_json
from feature_cross import CrossError, Engine

TRAINERS: Final = 2
SEEDS: Final = 3
PROBES_BEFORE_CHECKPOINT: Final = 3
"""Of the last run's six: half of its pushes are in the store at the kill, half in the push log only."""


class Demo:
    """One run of the demo.

    Parameters
    ----------
    example
        Which.
    data
        File of the real data; None for the generated log.
    out
        Folder for ids, shards, logs and reports; `ids`, `data` and old reports in it are replaced.
    rows
        Rows of the log to use; None is all.
    seeds
        Trainings of each arm.
    console
        Where progress and tables go.
    """

    def __init__(
        self, example: Example, data: Path | None, out: Path, rows: int | None, seeds: int, console: Console
    ) -> None:
        self.example, self.data, self.out, self.rows, self.console = example, data, out, rows, console
        runs = [Run(arm=arm, seed=seed) for seed in range(seeds) for arm in ARMS]
        self.result = Result(example.name, example.recipe, runs)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip

    def run(self) -> None:
        """Everything, from the log to the report; ChildError when a child fails."""
        self._make_room()
        with self._bar:
            with self._phase("deriving ids"):
                self._derive()
            with self._phase("starting two shards"):
                config = self.example.cluster(self.result.runs, self.out / "data")
                cluster = LocalCluster(config, self.out)
            with cluster:
                self._with_cluster(cluster)
        with self._phase("writing the report"):
            write_json(self.result, self.out / "report.json")
            write_page(self.result, self.out / "report.html")

    def _with_cluster(self, cluster: LocalCluster) -> None:
        with self._phase("training", len(self.result.runs)) as task:
            self._train(cluster, task)
        with self._phase("evaluating", len(self.result.runs)) as task:
            self._evaluate(cluster, self.result.auc, task)
        in_memory = cluster.sizes()  # before the kill: what recovers comes back to memory as it is asked for
        with self._phase("kill -9 both shards, recovering"):
            killed = cluster.kill()
            self.result.recovery_s = cluster.recover(killed)
        with self._phase("evaluating what recovered", len(self.result.runs)) as task:
            self._evaluate(cluster, self.result.auc_recovered, task)
        with self._phase("checkpoint"):
            cluster.checkpoint()
            self.result.sizes = {
                name: replace(in_memory[name], disk_bytes=size.disk_bytes)
                for name, size in cluster.sizes().items()
            }

    def _make_room(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for old in [*self.out.glob("dense.*.pt"), *self.out.glob("*.log"), *self.out.glob("report.*")]:
            old.unlink()
        for folder in ("ids", "data"):
            shutil.rmtree(self.out / folder, ignore_errors=True)

    def _derive(self) -> None:
        engine = Engine(self.example.crosses())
        for name, part in zip(("train", "test"), self.example.log.make(self.data, self.rows), strict=True):
            ids = derive(part, engine, self.example.recipe)
            write(ids, self.out / "ids" / f"{name}.parquet")
            self.result.examples[name] = ids.num_rows
            if name == "train":
                self.result.distinct = {f: distinct_ids(ids, f) for f in self.example.recipe.features()}

    def _flags(self, cluster: LocalCluster) -> list[str]:
        names = ",".join(run.name for run in self.result.runs)
        return [
            "--example", self.example.name, "--endpoints", cluster.endpoints,
            "--ids", str(self.out / "ids"), "--out", str(self.out), "--runs", names,
        ]  # fmt: skip

    def _train(self, cluster: LocalCluster, task: TaskID) -> None:
        torchrun = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        torchrun += ["--local-addr", "127.0.0.1", "--nproc-per-node", str(TRAINERS)]
        command = [sys.executable, *torchrun, "-m", "examples.train", *self._flags(cluster)]
        environment = {"GLOO_SOCKET_IFNAME": _loopback(), "OMP_NUM_THREADS": "1"}
        last = self.result.runs[-1].name
        checkpointed = False
        with Child("torchrun", command, self.out / "trainer.log", environment) as trainers:
            for line in trainers.lines:
                facts = json.loads(line)
                run = facts.pop("run")
                self._note(task, run, **facts)
                if not checkpointed and len(self.result.curves.get(last, ())) == PROBES_BEFORE_CHECKPOINT:
                    checkpointed = True
                    cluster.checkpoint()
            trainers.finish()

    def _note(
        self, task: TaskID, run: str, *, step: int = 0, steps: int = 0, auc: float | None = None,
        examples: int = 0, train_s: float = 0.0,
    ) -> None:  # fmt: skip
        """One line of a trainer's progress (see examples/train.py)."""
        if examples:
            self.result.train_examples[run], self.result.train_s[run] = examples, train_s
            rate, curve = examples / train_s, self.result.curves[run]
            self._say(f"  {run}: AUC {curve[-1][1]:.4f} on the probe, {rate:,.0f} examples/s")
            return
        done = len(self.result.train_s) + step / steps
        self._bar.update(task, completed=done, note=f"{run}, step {step} of {steps}")
        if auc is not None:
            self.result.curves.setdefault(run, []).append((step, auc))

    def _evaluate(self, cluster: LocalCluster, figures: dict[str, float], task: TaskID) -> None:
        command = [sys.executable, "-m", "examples.evaluate", *self._flags(cluster)]
        with Child("evaluation", command, self.out / "evaluate.log") as child:
            for line in child.lines:
                facts = json.loads(line)
                figures[facts["run"]] = facts["auc"]
                self._bar.update(task, advance=1, note=facts["run"])
            child.finish()

    @contextmanager
    def _phase(self, name: str, total: int = 1) -> Iterator[TaskID]:
        """A line of progress and a measured time around one phase."""
        self._say(name)
        started_s = time.perf_counter()
        task = self._bar.add_task(name, total=total, note="")
        yield task
        self._bar.update(task, completed=total, note="")
        self.result.phases_s[name] = time.perf_counter() - started_s

    def _say(self, text: str) -> None:
        """A line where there is no terminal to draw bars on."""
        if not self.console.is_terminal:
            self.console.print(text, highlight=False)


def _loopback() -> str:
    return "lo" if sys.platform == "linux" else "lo0"


def _interrupt(number: int, _: FrameType | None) -> None:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt; nothing is to cut the cleaning up."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="examples.demo",
        description="Train with and without crosses, kill -9 the cluster, recover, report.",
        epilog="example:\n  python -m examples.demo --example retail --data online_retail.parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--example", default="click", choices=EXAMPLES)
    parser.add_argument("--data", type=Path, help="file of the real data (retail, dota2)")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="default build/demo")
    parser.add_argument("--rows", type=_count, help="rows of the log to use (all)")
    parser.add_argument("--seeds", type=_count, default=SEEDS, help=f"trainings of each arm ({SEEDS})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; `argv` without the program's name, None takes the process's. The exit code."""
    arguments = _parser().parse_args(argv)
    console = screen()
    out = arguments.out.absolute()
    try:
        demo = Demo(Example(arguments.example), arguments.data, out, arguments.rows, arguments.seeds, console)
        demo.run()
    except KeyboardInterrupt:
        print("examples.demo: interrupted; every process was stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, CrossError) as error:
        print(f"examples.demo: {error}", file=sys.stderr)
        return 2
    except (ChildError, RowhouseError) as error:
        print(f"examples.demo: {error}", file=sys.stderr)
        return 1
    show(demo.result, console)
    console.print(f"{out / 'report.html'}\n{out / 'report.json'}", highlight=False, soft_wrap=True)
    return 0 if demo.result.recovered_exactly else 1


if __name__ == "__main__":
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupt)
    sys.exit(main())
