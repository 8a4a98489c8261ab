# SPDX-License-Identifier: Apache-2.0
"""No command writes over what it reads, or into a folder; what was there stays as it was."""

from pathlib import Path

import pytest

from feature_cross.author.cli import main

CONFIG = """version: 1
entities: {user: {attributes: {id: {column: user, type: int}, spent: {column: spent, type: float,
  buckets: {quantiles: 2, edges: [1.0]}}}}}
features:
  user_x_spent: {kind: categorical, of: [user.id, user.spent], slot: 1}
"""
COMMANDS = {
    "run": ["run", "{data}", "--config", "{config}"],
    "fit": ["fit", "{config}", "--data", "{data}", "--refit"],
    "lock": ["lock", "{config}"],
    "golden": ["golden", "{config}", "{data}", "--force"],
    "dictionary": ["dictionary", "{config}", "{data}"],
}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("target", ["config", "data", "folder", "nowhere"])
def test_out_is_refused_before_anything_is_written(
    command: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (command, target) in {("fit", "config"), ("lock", "data")}:
        pytest.skip("fit writes its config; lock reads no data")
    config, data = tmp_path / "crosses.yaml", tmp_path / "clicks.csv"
    config.write_text(CONFIG)
    data.write_text("user,spent\n1,0.5\n2,1.5\n")
    places = {"config": config, "data": data, "folder": tmp_path, "nowhere": tmp_path / "no" / "x.parquet"}
    flags = [part.format(config=config, data=data) for part in COMMANDS[command]]
    assert main([*flags, "--out", str(places[target])]) == 2
    assert "--out is " in capsys.readouterr().err
    assert config.read_text() == CONFIG
    assert data.read_text() == "user,spent\n1,0.5\n2,1.5\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clicks.csv", "crosses.yaml"]
