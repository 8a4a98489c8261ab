# SPDX-License-Identifier: Apache-2.0
"""Slots that move, are used again, or change their seed: against a previous config, and against a lock."""

import json
from pathlib import Path
from typing import Any

import pytest

from feature_cross import ConfigError
from feature_cross.author.cli import main
from feature_cross.author.guard.lock import read_previous

OLD = """\
ids: {slot_bits: 6}
entities:
  user:
    attributes:
      id: {type: int}
      city: {type: string}
      seen: {type: int, list: true}
features:
  id: {kind: attribute, slot: 1, of: user.id}
  city: {kind: attribute, slot: 2, of: user.city}
  seen:
    kind: combination
    of: user.seen
    slots:
      permutation: 3
      single: 4
      sorted: 5
"""

CHANGES = [
    ("id: {kind: attribute, slot: 1,", "id: {kind: attribute, slot: 9,", [("moved-slot", 9, "was 1 in")]),
    ("permutation: 3", "permutation: 33", [("moved-slot", 14, "slot of seen.permutation was 3 in")]),
    ("  id: {kind", "  uid: {kind", [("reused-slot", 9, "slot 1 of uid was id's in")]),
    ("  id: {kind: attribute, ", "  uid: {kind: attribute, seed: id, ", []),
    ("slot: 2, of", "slot: 2, seed: town, of", [("changed-seed", 10, "seed of city was 0x")]),
    ("slot_bits: 6", "slot_bits: 7", [("changed-layout", 1, "slot_bits was 6 in")]),
    ("features:\n", "features:\n  # more\n  new: {kind: weak, slot: 20, of: [user.id, user.seen]}\n", []),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "c.yaml").write_text(OLD)
    return tmp_path


def check(files: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["check", str(files / "c.yaml"), "--json", *flags])
    return code, json.loads(capsys.readouterr().out)["problems"]


@pytest.mark.parametrize(("old", "new", "wanted"), CHANGES)
def test_what_changed_is_named_at_its_line(
    files: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, wanted: list[tuple[str, int, str]]
) -> None:
    assert old in OLD
    (files / "c.yaml").write_text(OLD.replace(old, new))
    assert main(["lock", str(files / "old.yaml")]) == 0
    capsys.readouterr()
    for against in ("old.yaml", "old.lock.json"):
        code, problems = check(files, capsys, "--against", str(files / against))
        assert code == (1 if wanted else 0)
        assert [(p["code"], p["line"]) for p in problems] == [(c, line) for c, line, _ in wanted]
        for problem, (_, _, message) in zip(problems, wanted, strict=True):
            assert message in problem["message"] and problem["severity"] == "error"


def test_swapped_slots_name_whose_they_were(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = OLD.replace("slot: 1,", "slot: 0,").replace("slot: 2,", "slot: 1,")
    swapped = swapped.replace("slot: 0,", "slot: 2,")
    (files / "c.yaml").write_text(swapped)
    code, problems = check(files, capsys, "--against", str(files / "old.yaml"))
    assert code == 1 and [(p["code"], p["line"]) for p in problems] == [("moved-slot", 9), ("moved-slot", 10)]
    assert "is 2 now, which was city's" in problems[0]["message"]


def test_a_lock_beside_the_config_is_found_and_remembers_what_is_gone(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(files / "c.yaml")
    assert main(["lock", config]) == 0
    without = OLD.replace("  city: {kind: attribute, slot: 2, of: user.city}\n", "")
    (files / "c.yaml").write_text(without)
    assert main(["lock", config]) == 0
    assert "4 features, 1 retired" in capsys.readouterr().out
    (files / "c.yaml").write_text(without + "  town: {kind: attribute, slot: 2, of: user.city}\n")
    code, problems = check(files, capsys)
    assert code == 1 and [(p["code"], p["line"]) for p in problems] == [("reused-slot", 17)]
    before = (files / "c.lock.json").read_text()
    assert main(["lock", config]) == 1
    assert "is left as it was" in capsys.readouterr().out
    assert (files / "c.lock.json").read_text() == before
    assert main(["lock", config, "--accept", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] and [p["code"] for p in report["problems"]] == ["reused-slot"]
    assert check(files, capsys) == (0, [])
    (files / "c.yaml").write_text(OLD)
    code, problems = check(files, capsys)
    assert [(p["code"], p["message"].partition(" in ")[0]) for p in problems] == [
        ("reused-slot", "slot 2 of city was town's")
    ]


LOCK: dict[str, Any] = {"id_format": 1, "version": 1, "slot_bits": 6, "features": {}, "retired": {}}
DAMAGED = [
    "{", "[1]", '{"id_format": 1}', '{"id_format": 2, "version": 1}', "[" * 100_000,
    json.dumps(LOCK | {"features": {"a": {"slot": "1", "seed": "0x1"}}}),
    json.dumps(LOCK | {"retired": {"a": {"slot": 1, "seed": "x"}}}),
    json.dumps(LOCK | {"slot_bits": "6"}),
    json.dumps(LOCK | {"features": []}),
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_lock_is_refused(files: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = files / "c.lock.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.lock\.json"):
        read_previous(path)
    code, problems = check(files, capsys)
    assert code == 1 and len(problems) == 1


def test_a_previous_state_that_is_not_there_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none.lock.json", "none.yaml"):
        assert main(["check", str(files / "c.yaml"), "--against", str(files / name)]) == 2
        assert f"{name}: cannot be read" in capsys.readouterr().err
