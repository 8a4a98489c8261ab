# SPDX-License-Identifier: Apache-2.0
"""How commands end: one line on stderr, and an exit code."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rowhouse.error import ConfigError, CorruptionError, RowhouseError, UnavailableError
from rowhouse.program import INTERRUPTED, run_program, screen, show_table

from feature_cross.error import DataError


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_code_of_the_work_is_the_code(given: int | None, code: int) -> None:
    assert run_program("it", lambda: given) == code


@pytest.mark.parametrize("kind", [ConfigError, CorruptionError, UnavailableError])
def test_an_error_of_ours_is_one_line_and_its_code(
    kind: type[RowhouseError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("it", lambda: raising(kind("dim is 0"))) == kind.exit_code
    assert capsys.readouterr().err == f"it: {kind.__name__}: dim is 0\n"


def test_a_command_may_tell_errors_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("it", lambda: raising(DataError("column 'a' is missing")), named=False) == 1
    assert capsys.readouterr().err == "it: column 'a' is missing\n"
    assert run_program("it", lambda: raising(PermissionError("no")), refused=5) == 5


def test_an_error_of_the_system_is_74(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("it", lambda: len((tmp_path / "none").read_text())) == 74
    assert "it: FileNotFoundError: " in capsys.readouterr().err


def test_an_interrupt_inside_a_kernel_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    error = SystemError("returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    assert run_program("it", lambda: raising(error), interrupted="nothing was written") == INTERRUPTED
    assert capsys.readouterr().err == "it: nothing was written\n"


def test_a_fault_of_ours_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program("it", lambda: raising(ZeroDivisionError()))
    with pytest.raises(SystemError):
        run_program("it", lambda: raising(SystemError()))


WAITS = """
import sys, time
from rowhouse.program import run_program
def work():
    print("ready", flush=True)
    time.sleep(60)
sys.exit(run_program("it", work))
"""


def test_ctrl_c_is_quiet_and_130() -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=600)
    assert (process.returncode, told) == (130, "it: interrupted\n")


LONG = """
import sys
from rowhouse.program import run_program
sys.exit(run_program("it", lambda: print("x" * 10**6)))
"""


def test_a_reader_that_had_enough_is_no_error() -> None:
    command = [sys.executable, "-c", LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=600)) == (b"", 0)


FOLDER = "/".join(["a-folder-with-a-name"] * 12)


def test_nothing_is_wrapped_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("path", "rows", title=f"3 rows of {FOLDER} [1]")
    table.add_row(FOLDER, "3")
    show_table(table, screen())
    screen(stderr=True).print(f"see {FOLDER}/report.html")
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"3 rows of {FOLDER} [1]" and out.count(FOLDER) == 2
    assert err == f"see {FOLDER}/report.html\n"


def test_on_a_terminal_a_title_is_one_line_that_can_be_copied() -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=40, color_system=None)
    table = Table("rows", title=f"3 rows of {FOLDER}")
    show_table(table, terminal)
    assert written.getvalue().splitlines()[0] == f"3 rows of {FOLDER}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_has_no_letters_for_is_no_error(encoding: str) -> None:
    script = """
import sys
from rowhouse.error import ConfigError
from rowhouse.program import run_program
def work():
    print("10¹² bytes → 日本")
    raise ConfigError("table '日本' is not there")
sys.exit(run_program("demo", work))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert b"10" in done.stdout and b"demo: ConfigError: table '\\u65e5\\u672c' is not there" in done.stderr
