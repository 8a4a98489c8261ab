# SPDX-License-Identifier: Apache-2.0
"""The distribution has one name, and everything that tells a person what to install uses it."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from rowhouse.distribution import DISTRIBUTION, install_hint

from tools.lowest import NEWEST, lowest, requirements

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

OTHERS = {"lightning", "ray"}
"""Packages of other projects that a page or a message may tell a person to install."""

COMMAND = re.compile(r"\bpip install\s+([^`\"\n;#]*)")


def told(text: str) -> list[str]:
    """The requirements of each `pip install` in a text; flags, files and variables are left out."""
    words = [word for command in COMMAND.finditer(text) for word in command[1].split()]
    bare = [word.strip("'),.") if word != "." else word for word in words if not re.match(r"-|\$|'?\{", word)]
    return [word for word in bare if word and not word.endswith(".txt")]


def complaints(text: str) -> list[str]:
    """What is wrong with the `pip install`s of a text."""
    found = []
    for word in told(text):
        own = re.fullmatch(
            r"(?:\.|\[)(.*)", word
        )  # the tree itself: . or .[extras], of which strip took the point
        need = Requirement(f"{DISTRIBUTION}[{own[1].strip('[]')}]" if own else word)
        if need.name == DISTRIBUTION:
            found += [f"{word}: no extra {extra!r}" for extra in sorted(need.extras - EXTRAS.keys())]
        elif need.name not in OTHERS:
            found.append(f"{word}: {need.name!r} is not what this project is called, nor one it knows")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pip install 'rowhouse-ps[torch]'", []),
        ("`pip install rowhouse-ps`, or `pip install '.[torch,author]'`", []),
        ("pip install --constraint constraints.txt -e . 'ray[data]'", []),
        ("pip install 'rowhouse[torch]'", ["rowhouse[torch]: 'rowhouse' is not what"]),
        ("pip install 'rowhouse-ps[tensor]'", ["rowhouse-ps[tensor]: no extra 'tensor'"]),
    ],
)
def test_a_wrong_name_is_found(text: str, expected: list[str]) -> None:
    found = complaints(text)
    assert len(found) == len(expected)
    assert all(one.startswith(other) for one, other in zip(found, expected, strict=True))


def test_every_pip_install_names_what_there_is() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    read = 0
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ""} and path.is_file() and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            assert complaints(text) == [], name
            read += bool(told(text))
    assert read >= 3, "the pattern finds nothing"


def test_the_hint_names_the_distribution_and_its_extras() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert complaints(install_hint()) == [] and all(complaints(install_hint(extra)) == [] for extra in EXTRAS)


def test_hints_of_the_code_name_extras_that_there_are() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for top in ("ps_client", "ps_server", "feature_cross")
                     for p in (ROOT / top).rglob("*.py"))  # fmt: skip
    named = set(re.findall(r"install_hint\([\"'](\w+)[\"']\)", code))
    assert {"torch"} <= named <= EXTRAS.keys()


def test_the_lowest_protobuf_and_grpcio_are_those_of_the_stubs() -> None:
    """Generated code refuses a protobuf or grpcio that is older than its generator."""
    stubs = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "proto/rowhouse/v1").glob("*_pb2*.py"))
    generated = re.search(r"^# Protobuf Python Version: (\S+)$", stubs, re.MULTILINE)
    grpc = re.search(r"^GRPC_GENERATED_VERSION = '(\S+)'$", stubs, re.MULTILINE)
    assert generated and grpc
    floors = dict(need.split("==") for need in requirements("3.11"))
    assert Version(floors["protobuf"]) == Version(generated[1])
    names = ("grpcio", "grpcio-health-checking", "grpcio-reflection")
    assert {floors[name] for name in names} == {grpc[1]}


def test_every_requirement_of_a_user_has_one_lower_bound() -> None:
    assert requirements(NEWEST)
    assert lowest("a>=1.2; python_version < '3.12'", "3.13") is None
    with pytest.raises(ValueError, match="must declare one lower bound"):
        lowest("a==1", "3.11")


def test_the_pythons_that_are_declared_are_those_that_are_tested() -> None:
    declared = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: Python :: 3." in text]
    assert PROJECT["requires-python"] == f">={declared[0]}" and declared[-1] == NEWEST
