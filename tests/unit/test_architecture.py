# SPDX-License-Identifier: Apache-2.0
"""The house rules hold in this repository, and each check can fail."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import architecture as rules

ROOT = Path(__file__).resolve().parents[2]
Check = Callable[[Path], Iterator[str]]
CHECKS: list[Check] = [
    rules.check_imports, rules.check_floors, rules.check_circles, rules.check_functions, rules.check_names,
    rules.check_license, rules.check_docstrings, rules.check_parameters,
]  # fmt: skip
HEAD = rules.SPDX + "\n"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_repository_keeps_the_rule(check: Check) -> None:
    violations = list(check(ROOT))
    assert not violations, "\n" + "\n".join(violations)


def test_the_walk_sees_every_package() -> None:
    seen = {s.package for s in rules.sources(ROOT)}
    assert {*rules.PACKAGES, "tests", "tools"} <= seen


def test_constraints_pin_every_dependency() -> None:
    """And name no path, host or hash, so that they install anywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} is pinned to {pins[name]}"
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())


def violations_of(check: Check, root: Path, path: str, text: str) -> list[str]:
    """What `check` says about a tree of the one file."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return list(check(root))


@pytest.mark.parametrize(
    ("path", "line", "expected"),
    [
        ("proto/rowhouse/a.py", "import ps_server.table.table", "rowhouse imports ps_server.table.table"),
        ("proto/rowhouse/a.py", "from ps_client import x", "rowhouse imports ps_client"),
        ("ps_server/a.py", "from ps_client.client import x", "ps_server imports ps_client.client"),
        ("ps_server/serve/supervisor.py", "import ps_client.transport.grpc", "ps_server imports ps_client"),
        ("ps_server/cli.py", "import ps_client", "ps_server imports ps_client"),
        ("ps_server/command/a.py", "import feature_cross", "ps_server imports feature_cross"),
        ("ps_server/kernel/a.py", "import feature_cross", "ps_server imports feature_cross"),
        ("ps_client/a.py", "def f():\n    import ps_server", "ps_client imports ps_server"),
        ("ps_client/a.py", "import_module('ps_server.shard.shard')", "imports ps_server.shard.shard"),
        ("feature_cross/a.py", "from rowhouse.codec import x", "feature_cross imports rowhouse.codec"),
        ("feature_cross/a.py", "from tests import naive", "feature_cross imports tests"),
        ("ps_server/table/table.py", "from rocksdict import Rdict", "rocksdict is imported outside"),
        ("ps_client/client.py", "import torch.nn", "torch is imported outside ps_client/torch/"),
        ("ps_client/torchlike.py", "import torch", "torch is imported outside"),
    ],
)  # fmt: skip
def test_an_arrow_the_other_way_is_found(path: str, line: str, expected: str, tmp_path: Path) -> None:
    assert expected in "\n".join(violations_of(rules.check_imports, tmp_path, path, HEAD + line))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("ps_server/disk/store.py", "from rocksdict import Rdict"),
        ("ps_client/torch/bag.py", "import torch"),
        ("ps_server/command/a.py", "from ps_client.transport.grpc import GrpcTransport"),
        ("ps_server/a.py", "from rowhouse import error\nfrom . import b\nfrom .kernel import c"),
        ("examples/a.py", "import ps_client, ps_server, feature_cross, torch"),
        ("feature_cross/a.py", "from rowhouse.distribution import install_hint"),
        ("tests/a.py", "import rocksdict"),
    ],
)
def test_an_arrow_along_the_way_is_not(path: str, line: str, tmp_path: Path) -> None:
    assert violations_of(rules.check_imports, tmp_path, path, HEAD + line) == []


def test_relative_imports_are_resolved(tmp_path: Path) -> None:
    found = violations_of(
        rules.check_imports, tmp_path, "ps_server/kernel/a.py", "from ...ps_client import x"
    )
    assert found and "imports ps_client" in found[0]


@pytest.mark.parametrize(
    ("path", "line", "expected"),
    [
        ("ps_server/disk/a.py", "from ps_server.table.config import x", "imports ps_server.table"),
        ("ps_server/table/a.py", "from ps_server import shard", "imports ps_server.shard, which"),
        ("ps_server/table/a.py", "def f():\n    from ..life import x", "imports ps_server.life, which"),
        ("proto/rowhouse/mix.py", "from rowhouse.codec import x", "imports rowhouse.codec, which"),
        ("ps_server/attic/a.py", "", "stands on no floor"),
        ("ps_server/a.py", "", "stands on no floor"),
    ],
)  # fmt: skip
def test_an_arrow_upwards_is_found(path: str, line: str, expected: str, tmp_path: Path) -> None:
    assert expected in "\n".join(violations_of(rules.check_floors, tmp_path, path, HEAD + line))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("ps_server/shard/a.py", "from ps_server.shard.group import x\nfrom ps_server.kernel import y"),
        ("ps_server/psctl.py", "from ps_server.command import x"),
        ("ps_server/__init__.py", "from ps_server.serve import x"),
    ],
)
def test_an_arrow_downwards_is_not(path: str, line: str, tmp_path: Path) -> None:
    assert violations_of(rules.check_floors, tmp_path, path, HEAD + line) == []


def test_a_circle_is_found_and_named_once(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        file = tmp_path / "ps_client" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{HEAD}from ps_client.{other} import x\n", encoding="utf-8")
    found = list(rules.check_circles(tmp_path))
    assert found == ["ps_client.a and ps_client.b, ps_client.c import each other in a circle"]


def test_a_long_file_is_reported(tmp_path: Path) -> None:
    text = HEAD + "x = 1\n" * rules.FILE_LINES_MAX
    assert violations_of(rules.long_files, tmp_path, "ps_server/a.py", text) == ["ps_server/a.py: 401 lines"]


def test_a_function_over_its_room_is_found(tmp_path: Path) -> None:
    """The docstring does not count."""
    text = (
        "class A:\n    async def f():\n        '''One\n\n        two.\n        '''\n" + "        x = 1\n" * 59
    )
    assert violations_of(rules.check_functions, tmp_path, "tests/a.py", text) == []
    found = violations_of(rules.check_functions, tmp_path, "tests/a.py", text + "        x = 1\n")
    assert found == ["tests/a.py:2: f has 61 lines; at most 60"]


@pytest.mark.parametrize("path", ["ps_server/utils.py", "ps_client/common/a.py", "tests/helpers.py"])
def test_a_banned_name_is_found(path: str, tmp_path: Path) -> None:
    assert "no module is called" in violations_of(rules.check_names, tmp_path, path, HEAD)[0]


def test_a_name_that_contains_a_banned_one_is_fine(tmp_path: Path) -> None:
    assert violations_of(rules.check_names, tmp_path, "ps_server/utilisation.py", HEAD) == []


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("", False),
        ("import os\n", False),
        ("#!/bin/sh\n" + HEAD, True),
        ("import os\n" + HEAD, False),
        (HEAD, True),
    ],
)
def test_a_missing_license_line_is_found(text: str, fine: bool, tmp_path: Path) -> None:
    assert (violations_of(rules.check_license, tmp_path, "tools/a.py", text) == []) == fine


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(): pass", ["f"]),
        ("class A:\n    def g(self): pass", ["A", "A.g"]),
        ("class A:\n    'Doc.'\n    class B:\n        'Doc.'\n        def g(self): pass", ["A.B.g"]),
        ("def _f(): pass\nclass _A:\n    def g(self): pass", []),
        ("class A:\n    'Doc.'\n    def __len__(self): pass", []),
        ("class A:\n    'Doc.'\n    @x.setter\n    def x(self, v): pass", []),
        ("@overload\ndef f(): ...\ndef f():\n    'Doc.'", []),
    ],
)
def test_a_missing_docstring_is_found(text: str, names: list[str], tmp_path: Path) -> None:
    found = violations_of(rules.check_docstrings, tmp_path, "ps_client/a.py", text)
    assert [f.split(" ")[1] for f in found] == names


def test_docstrings_are_not_asked_of_tests(tmp_path: Path) -> None:
    assert violations_of(rules.check_docstrings, tmp_path, "tests/a.py", "def f(): pass") == []


def documented(*names: str) -> str:
    entries = "".join(f"    {n}\n        What it is: this.\n" for n in names)
    returns = "\n    Returns\n    -------\n    int\n        It.\n"
    return f'    """Do.\n\n    Parameters\n    ----------\n{entries}{returns}    """\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(a, b):\n" + documented("a", "b"), ""),
        ("def f(a, *, b=1, **c):\n" + documented("a, b : int", "**c"), ""),
        ("def f(a):\n" + documented("a", "b"), "f documents 'b', which it does not take"),
        ("def f(a, b):\n" + documented("a"), "f takes 'b', which it does not document"),
        ("def f(a, b):\n    '''Says nothing of them.'''", ""),
        ("class A:\n" + documented("a") + "    def __init__(self, a): pass", ""),
        (
            "class A:\n" + documented("a") + "    def __init__(self, b): pass",
            "A takes 'b', which it does not",
        ),
        (
            "class A:\n" + documented("a") + "    a: int\n    b: int",
            "A takes 'b', which it does not document",
        ),
    ],
)
def test_documented_arguments_that_are_not_the_signatures_are_found(
    text: str, expected: str, tmp_path: Path
) -> None:
    found = violations_of(rules.check_parameters, tmp_path, "ps_server/a.py", text)
    assert (expected in "\n".join(found)) if expected else found == []
